//! Replicas with a slow link between them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::json;

use crate::client::Client;
use crate::faults::assert_whole;
use crate::replicas::{Replica, Setup, World};
use crate::support::HUNG;

/// 2 Mbit/s, in bytes.
const SLOW_BYTES_PER_S: u64 = 250_000;
/// What a router keeps, in bytes: a tenth of a second.
const QUEUE_BYTES: usize = 25_000;
/// About a packet.
const PACKET_BYTES: usize = 1400;

/// A way to a replica on which so many bytes go in a second, each way.
struct Link {
    address: SocketAddr,
    bytes_per_s: Arc<AtomicU64>,
}

impl Link {
    fn to(target: SocketAddr, bytes_per_s: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Those that it accepts have it as well.
        set_socket_recv_buffer_size(&listener, QUEUE_BYTES).unwrap();
        let link = Self { address: listener.local_addr().unwrap(), bytes_per_s: Arc::new(bytes_per_s.into()) };
        let rate = link.bytes_per_s.clone();
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let far = TcpStream::connect(target).unwrap();
                set_socket_recv_buffer_size(&far, QUEUE_BYTES).unwrap();
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to, rate) = (from.try_clone().unwrap(), to.try_clone().unwrap(), rate.clone());
                    thread::spawn(move || carry(from, to, &rate));
                }
            }
        });
        link
    }

    fn set(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::Release);
    }
}

/// Carries bytes until there are no more.
fn carry(mut from: TcpStream, mut to: TcpStream, rate: &AtomicU64) {
    let _ = to.set_nodelay(true);
    let mut packet = [0; PACKET_BYTES];
    let mut free_at = Instant::now();
    while let Ok(len @ 1..) = from.read(&mut packet) {
        let takes = Duration::from_secs_f64(len as f64 / rate.load(Ordering::Acquire) as f64);
        free_at = free_at.max(Instant::now()) + takes;
        thread::sleep(free_at.saturating_duration_since(Instant::now()));
        if to.write_all(&packet[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

/// A protected guest, and the link between its replicas, over which the first copy went at this speed.
fn protected_over(bytes_per_s: u64) -> (World, Replica, Replica, Link) {
    let (world, primary, secondary, link) = copied_over(bytes_per_s);
    primary.wait_until_protected();
    (world, primary, secondary, link)
}

/// The same when the first copy has begun.
fn copied_over(bytes_per_s: u64) -> (World, Replica, Replica, Link) {
    let mut world = World::new(Setup { suspicion_ms: 500, ..Setup::redis() });
    let primary = world.booted();
    let secondary = world.start_secondary("b");
    let listen = secondary.status().unwrap()["listen"].as_str().unwrap().parse().unwrap();
    let link = Link::to(listen, bytes_per_s);
    let request = json!({ "request": "protect", "secondary": "b", "address": link.address });
    primary.ask(&request).unwrap();
    (world, primary, secondary, link)
}

/// A live primary was taken for silent, as only whole messages counted as heard.
#[test]
fn row_31_an_idle_vm_stays_protected_over_2_mbit_s_and_is_taken_over() {
    let (world, primary, secondary, link) = protected_over(u64::MAX);
    let generation = primary.status().unwrap()["generation"].clone();
    link.set(SLOW_BYTES_PER_S);
    let client = Client::start(world.address());
    let deadline = Instant::now() + HUNG;
    while client.acknowledged() < 30 {
        assert!(Instant::now() < deadline, "{} answers\n{}", client.acknowledged(), primary.log());
        thread::sleep(Duration::from_millis(100));
        let status = primary.status().unwrap();
        assert_eq!(status["protection"]["state"], "protected", "{status:#}\n{}", primary.log());
    }
    assert_eq!(primary.status().unwrap()["generation"], generation);
    primary.kill();
    secondary.wait_for_takeover();
    let before = client.acknowledged();
    client.wait_for_progress(5);
    assert!(client.acknowledged() > before);
    assert_whole(&client.stop());
}

#[test]
fn row_31_a_burst_over_a_slow_link_delays_output_and_costs_no_protection() {
    let (world, primary, secondary, link) = protected_over(u64::MAX);
    let generation = primary.status().unwrap()["generation"].clone();
    link.set(SLOW_BYTES_PER_S);
    // Several times what the link carries within the suspicion time.
    let redis = redis::Client::open(("127.0.0.1", world.address().port())).unwrap();
    let mut connection = redis.get_connection_with_timeout(HUNG).unwrap();
    connection.set_read_timeout(Some(HUNG)).unwrap();
    let value: Vec<u8> = (0..1u32 << 19).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let () = redis::cmd("SET").arg("large").arg(value).query(&mut connection).unwrap();
    let status = primary.status().unwrap();
    assert_eq!((&status["protection"]["state"], &status["generation"]), (&"protected".into(), &generation));
    drop((primary, secondary));
}

/// Somebody who waits for a first copy that takes hours learns why.
#[test]
fn row_31_a_link_below_the_minimum_is_named_with_its_rate_during_the_first_copy() {
    let (_world, primary, _secondary, link) = copied_over(SLOW_BYTES_PER_S / 4);
    let detail = |status: &serde_json::Value| status["protection"]["detail"].as_str().unwrap_or_default().to_owned();
    let status = primary.wait("the link to be named", |status| detail(status).contains("2 Mbit/s at least"));
    assert_eq!(status["protection"]["state"], "starting", "{status:#}");
    let detail = detail(&status);
    let rate = detail.split("takes in ").nth(1).and_then(|rest| rest.split(" Mbit/s").next());
    let rate: f64 = rate.unwrap_or_else(|| panic!("{detail}")).parse().unwrap();
    // What is lost to frames and encryption, and what pieces round.
    assert!((0.1..0.7).contains(&rate), "{detail}");
    link.set(u64::MAX);
    primary.wait_until_protected();
}

/// How long the first copy of a guest with some tens of MiB in use may take on such a link before it counts as hung.
const SLOW_COPY_MAX: Duration = Duration::from_secs(3600);

#[test]
#[ignore = "takes minutes; part of make soak"]
fn row_31_a_first_copy_goes_over_2_mbit_s() {
    let start = Instant::now();
    let (world, primary, secondary, _link) = copied_over(SLOW_BYTES_PER_S);
    loop {
        let status = primary.status().unwrap();
        let protection = &status["protection"];
        if protection["state"] == "protected" {
            break;
        }
        assert_eq!(protection["state"], "starting", "{protection}\n{}", primary.log());
        assert!(start.elapsed() < SLOW_COPY_MAX, "{protection} {}", status["sync"]);
        thread::sleep(Duration::from_millis(500));
    }
    println!("protected over 2 Mbit/s after {:?}", start.elapsed());
    let client = Client::start(world.address());
    client.wait_for_progress(10);
    primary.kill();
    secondary.wait_for_takeover();
    client.wait_for_progress(5);
    assert_whole(&client.stop());
}
