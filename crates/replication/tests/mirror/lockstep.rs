//! A guest whose secondary executes its log.

use replication::driver::{PrimaryEnd, SecondaryEnd};
use spec::{EngineKind::Soft, FtMode};

use crate::{World, guest, rounds, wait};

/// There is no output whose acks would say how far the secondary is, and heartbeats are seconds apart.
#[test]
fn a_guest_without_output_does_not_wait_for_a_secondary_that_keeps_up() {
    let world = World::new(Soft);
    let leader = world.boot();
    let follower = world.protect(&leader, "b");
    leader.primary.set_mode(FtMode::Lockstep).unwrap();
    wait("the secondary to compare its state", || {
        let status = leader.primary.status();
        assert_eq!(status.failure, None);
        status.figures.lockstep.is_some_and(|figures| figures.digests >= 3)
    });
    let (end, vm) = leader.thread.join().unwrap();
    assert!(matches!(end, PrimaryEnd::Reset), "{end:?}");
    assert_eq!(guest::result(&vm), guest::expected(rounds(Soft)));
    let end = follower.thread.join().unwrap();
    assert!(matches!(end, SecondaryEnd::Ended), "the secondary was given up");
}
