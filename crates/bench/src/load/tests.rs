//! Loads against a server that can be as bad as it likes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::fake::{Act, serve};
use super::{Broken, Connection, Counter, Load, LoadOptions, Outcome};

/// How long anything may take before it counts as hung.
const HUNG: Duration = Duration::from_secs(60);

fn options(depth: usize) -> LoadOptions {
    LoadOptions { depth, silence_max: HUNG }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < HUNG, "{what}: waited {HUNG:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts until `acknowledged` replies have come or the load has ended.
fn count(address: SocketAddr, depth: usize, acknowledged: u64) -> Load<Counter> {
    let load = Load::count(address, "n", options(depth)).unwrap();
    until("the load", || {
        let seen = load.snapshot();
        seen.acknowledged >= acknowledged || seen.broken.is_some()
    });
    load
}

fn audited(load: Load<Counter>, address: SocketAddr) -> Outcome {
    load.finish_and_audit(address, "n", HUNG).unwrap()
}

#[test]
fn a_good_server_is_found_good_at_any_depth() {
    for depth in [1, 64] {
        let address = serve(|_| Act::Answer);
        let outcome = audited(count(address, depth, 1000), address);
        assert!(outcome.acknowledged >= 1000);
        assert_eq!((outcome.lost, outcome.repeated, outcome.unanswered, outcome.broken), (0, 0, 0, None));
        assert_eq!(outcome.latencies.count(), outcome.acknowledged);
        assert!(outcome.duration > Duration::ZERO);
    }
}

#[test]
fn the_counter_goes_on_from_what_it_holds() {
    let address = serve(|n| if n == 1 { Act::Set(41) } else { Act::Answer });
    assert_eq!(audited(count(address, 1, 1), address).repeated, 41);
    assert_eq!(audited(count(address, 1, 10), address).repeated, 0);
}

#[test]
fn undone_increments_are_lost() {
    for depth in [1, 8] {
        // 99 were acknowledged; the 100th increment finds 90.
        let address = serve(|n| if n == 100 { Act::Set(90) } else { Act::Answer });
        let outcome = audited(count(address, depth, 200), address);
        assert_eq!((outcome.lost, outcome.repeated, outcome.broken), (9, 0, None));
    }
}

#[test]
fn increments_that_nobody_asked_for_are_noticed() {
    let address = serve(|n| if n == 100 { Act::Set(100) } else { Act::Answer });
    let outcome = audited(count(address, 1, 200), address);
    assert_eq!((outcome.lost, outcome.repeated), (0, 1));
}

#[test]
fn what_was_undone_at_the_very_end_is_found_by_another_connection() {
    let address = serve(|n| if n == 51 { Act::CountAndClose } else { Act::Answer });
    let load = count(address, 1, u64::MAX);
    let outcome = audited(load, address);
    // The unanswered one was carried out, as it may.
    assert_eq!((outcome.acknowledged, outcome.unanswered, outcome.lost, outcome.repeated), (50, 1, 0, 0));
    assert!(outcome.broken.unwrap().contains("closed"));

    let first = serve(|n| if n == 51 { Act::CountAndClose } else { Act::Answer });
    let load = count(first, 1, u64::MAX);
    let empty = serve(|_| Act::Answer);
    assert_eq!(audited(load, empty).lost, 50, "a server that knows nothing was believed");
}

#[test]
fn a_gap_is_seen_while_it_is_open_and_after() {
    const GAP: Duration = Duration::from_millis(300);
    let address = serve(|n| if n == 100 { Act::Wait(GAP) } else { Act::Answer });
    let load = count(address, 1, 99);
    until("an open gap", || load.take_longest_gap() > GAP / 3);
    until("the end of the gap", || load.snapshot().acknowledged > 100);
    assert!(load.take_longest_gap() >= GAP);
    assert!(audited(load, address).latencies.max() >= GAP);
}

#[test]
fn silence_is_a_broken_connection() {
    let address = serve(|n| if n >= 10 { Act::Hang } else { Act::Answer });
    let silent = LoadOptions { depth: 1, silence_max: Duration::from_millis(100) };
    let load = Load::count(address, "n", silent).unwrap();
    until("the end", || load.snapshot().broken.is_some());
    let (outcome, _) = load.finish();
    assert_eq!((outcome.acknowledged, outcome.unanswered), (9, 1));
    assert!(outcome.broken.unwrap().contains("no reply for"));
}

#[test]
fn nonsense_and_refusals_end_a_load() {
    for (reply, expected) in [("-LOADING wait\r\n", "LOADING wait"), ("+OK\r\n", "OK"), ("hello\r\n", "no sense")] {
        let address = serve(move |n| if n == 5 { Act::Say(reply) } else { Act::Answer });
        let (outcome, _) = count(address, 1, u64::MAX).finish();
        assert_eq!(outcome.acknowledged, 4);
        let broken = outcome.broken.unwrap();
        assert!(broken.contains(expected), "{broken}");
    }
    let address = serve(|n| if n == 5 { Act::Say(":5\r\n:6\r\n") } else { Act::Answer });
    let (outcome, _) = count(address, 1, u64::MAX).finish();
    assert!(outcome.broken.unwrap().contains("nothing was asked for"));
}

#[test]
fn latencies_are_taken_once_and_kept_in_all() {
    let address = serve(|_| Act::Answer);
    let load = count(address, 1, 100);
    let first = load.take_latencies().count();
    until("more", || load.snapshot().acknowledged >= first + 100);
    let second = load.take_latencies().count();
    let (outcome, _) = load.finish();
    assert!(first >= 100 && second >= 100);
    assert!(outcome.latencies.count() >= first + second && outcome.latencies.count() == outcome.acknowledged);
}

#[test]
fn a_question_is_answered_or_refused() {
    let mut connection = Connection::open(serve(|_| Act::Answer), HUNG).unwrap();
    assert!(matches!(connection.ask(&[b"PING"], HUNG), Err(Broken::Refused(message)) if message.contains("PING")));
    assert_eq!(Counter::read(&mut connection, "n", HUNG).unwrap(), 0);
}
