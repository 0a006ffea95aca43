//! Ends and hand-overs that come at the wrong time.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use protocol::{DropReason, Reason, StopReason};
use replication::driver::{PrimaryEnd, SecondaryEnd};
use spec::EngineKind::Soft;

use crate::{World, guest, rounds, wait};

/// The secondary lives, but the last checkpoint does not get to it.
#[test]
fn a_hand_over_that_takes_too_long_does_not_hold_the_guest_for_ever() {
    let world = World::new(Soft);
    let leader = world.boot();
    let follower = world.protect(&leader, "b");
    follower.cable.us_per_kib.store(5_000_000, Ordering::Release);
    leader.primary.switch_over().unwrap();
    wait("the hand-over to be given up", || {
        let status = leader.primary.status().protocol;
        status.reason == Some(Reason::Dropped(DropReason::TooSlow))
    });
    let (end, vm) = leader.thread.join().unwrap();
    assert!(matches!(end, PrimaryEnd::Reset), "{end:?}");
    assert_eq!(guest::result(&vm), guest::expected(rounds(Soft)));
    follower.cable.cut();
    let SecondaryEnd::Stopped { .. } = follower.thread.join().unwrap() else { panic!("it took over") };
}

/// Its end is output like any other: it must not be told to anybody before it is decided which replica's guest counts.
#[test]
fn a_guest_that_ends_before_it_is_decided_who_goes_on_has_not_ended() {
    let world = World::new(Soft);
    let leader = world.boot();
    let follower = world.protect(&leader, "b");
    leader.lost.store(true, Ordering::Release);
    follower.cable.cut();
    let SecondaryEnd::TakenOver(_) = follower.thread.join().unwrap() else { panic!("it did not take over") };
    let printed = guest::expected_output(rounds(Soft)).len();
    wait("the guest to end", || world.console.text().len() >= printed);
    thread::sleep(Duration::from_millis(200));
    leader.lost.store(false, Ordering::Release);
    let (end, _) = leader.thread.join().unwrap();
    assert!(matches!(end, PrimaryEnd::Stopped(StopReason::Superseded)), "{end:?}");
}
