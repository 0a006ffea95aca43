//! The guest's clock over takeovers, as a client outside sees it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::client::{Client, wait_for_service};
use crate::replicas::{Setup, World};
use crate::support::{HUNG, place};

/// How far the guest's clock may be behind after a takeover, in us.
const BEHIND_US_MAX: i64 = 1000;
/// How far two clocks may drift apart meanwhile, in us for each second: the host's may be kept in step with others.
const DRIFT_US_PER_S: i64 = 50;
/// How exactly its clock is read.
const EXACT_US: i64 = 800;

/// By how many us the guest's clock is ahead of the host's: between the two.
#[derive(Clone, Copy, Debug)]
struct Ahead {
    at_least_us: i64,
    at_most_us: i64,
}

/// The guest's clock over the whole test, through all takeovers.
struct Clock {
    address: SocketAddr,
    /// What it last showed, in us.
    shown_us: i64,
}

fn host_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// Redis' answer to TIME: by the guest's clock, in us.
fn guest_us(redis: &mut BufReader<TcpStream>) -> i64 {
    redis.get_mut().write_all(b"TIME\r\n").unwrap();
    let mut lines = Vec::new();
    while lines.len() < 5 {
        let mut line = String::new();
        assert!(redis.read_line(&mut line).unwrap() > 0, "the connection broke");
        lines.push(line.trim_end().to_owned());
    }
    lines[2].parse::<i64>().unwrap() * 1_000_000 + lines[4].parse::<i64>().unwrap()
}

impl Clock {
    fn of(world: &World) -> Self {
        Self { address: world.address(), shown_us: 0 }
    }

    /// Asks until it is known exactly: each answer was given between its question and its arrival, however long that took.
    fn ahead(&mut self) -> Ahead {
        let deadline = Instant::now() + HUNG;
        let mut redis = BufReader::new(TcpStream::connect(self.address).unwrap());
        redis.get_ref().set_nodelay(true).unwrap();
        let mut known = Ahead { at_least_us: i64::MIN, at_most_us: i64::MAX };
        while known.at_most_us.saturating_sub(known.at_least_us) > EXACT_US * i64::from(place::slowness()) {
            assert!(Instant::now() < deadline, "{known:?}");
            let asked = host_us();
            let guest = guest_us(&mut redis);
            let answered = host_us();
            let earlier = std::mem::replace(&mut self.shown_us, guest);
            assert!(guest >= earlier, "the guest's clock went back from {earlier} to {guest}");
            known.at_least_us = known.at_least_us.max(guest - answered);
            known.at_most_us = known.at_most_us.min(guest - asked);
            // A clock that is set meanwhile, or runs at another rate, fits no answer.
            if known.at_most_us < known.at_least_us {
                known = Ahead { at_least_us: guest - answered, at_most_us: guest - asked };
            }
        }
        known
    }
}

/// Clients count from 1.
fn forget_counter(address: SocketAddr) {
    let mut redis = BufReader::new(TcpStream::connect(address).unwrap());
    redis.get_mut().write_all(b"DEL counter\r\n").unwrap();
    let mut answer = String::new();
    redis.read_line(&mut answer).unwrap();
    assert!(answer.starts_with(':'), "{answer}");
}

/// Each takeover cost an idle guest 30 ms by its clock in mirror, and 1.4 ms in lockstep, for ever.
#[test]
fn row_30_the_guests_clock_is_not_behind_after_a_takeover_idle_or_under_load() {
    let takeovers = std::env::var("TWINVM_TAKEOVERS").map_or(6, |takeovers| takeovers.parse().unwrap());
    let mut world = World::new(Setup::redis());
    let mut primary = world.boot();
    wait_for_service(world.address());
    let mut clock = Clock::of(&world);
    let (begun, start) = (Instant::now(), clock.ahead());
    let hosts = ["b", "c", "a"];
    for takeover in 0..takeovers {
        let secondary = world.protect(&primary, hosts[takeover % hosts.len()]);
        let before = clock.ahead();
        let load = (takeover % 2 == 1).then(|| {
            forget_counter(world.address());
            Client::start(world.address())
        });
        match &load {
            Some(client) => client.wait_for_progress(50),
            // Idle for longer than any epoch lasts.
            None => std::thread::sleep(Duration::from_millis(300)),
        }
        // Planned ones as well.
        if takeover % 3 == 2 {
            primary.ask(&json!({ "request": "switchover" })).unwrap();
        } else {
            primary.kill();
        }
        secondary.wait_for_takeover();
        if let Some(client) = load {
            client.wait_for_progress(20);
            assert_eq!(client.stop().error, None);
        }
        wait_for_service(world.address());
        let after = clock.ahead();
        let what = format!("takeover {takeover}: {before:?}, then {after:?}");
        println!("{what}");
        let slowness = i64::from(place::slowness());
        assert!(after.at_most_us >= before.at_least_us - BEHIND_US_MAX * slowness, "{what}");
        primary = secondary;
    }
    let end = clock.ahead();
    let what = format!("at first {start:?}, after {takeovers} takeovers {end:?}");
    println!("{what}");
    // What each may cost is too little to be seen in one: over all of them it would add up.
    let bound_us = (BEHIND_US_MAX + DRIFT_US_PER_S * begun.elapsed().as_secs() as i64) * i64::from(place::slowness());
    assert!(end.at_most_us >= start.at_least_us - bound_us, "behind by more than {bound_us} us: {what}");
    assert!(end.at_least_us <= start.at_most_us + bound_us, "ahead by more than {bound_us} us: {what}");
}
