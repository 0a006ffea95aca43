//! The thread that applies what is committed.

use machine::devices::virtio::block::BlockBackend;
use replication::disk::{DiskApplier, DiskOp, DiskSyncError, DiskWrite};

use crate::pair::{Images, Pair};

fn batch(round: u64) -> Vec<DiskWrite> {
    let data = vec![round as u8; 4096];
    vec![
        DiskWrite { disk: 0, op: DiskOp::Write { offset: round % 3 * 2048, data } },
        DiskWrite { disk: 0, op: DiskOp::Flush },
    ]
}

#[test]
fn committed_changes_are_applied_in_order() {
    let pair = Pair::new(Images::Qcow2);
    let applier = DiskApplier::start(pair.secondary.clone(), 1 << 20).unwrap();
    let primary = pair.primary.backends();
    for round in 0..500 {
        primary[0].write_at(round % 3 * 2048, &vec![round as u8; 4096]).unwrap();
        applier.push(batch(round));
    }
    applier.drain().unwrap();
    assert_eq!((applier.applied(), applier.queued_bytes()), (500, 0));
    assert!(applier.error().is_none());
    pair.assert_equal();
}

/// A primary whose guest writes nothing makes checkpoints all the same.
#[test]
fn batches_of_nothing_take_no_room() {
    let pair = Pair::new(Images::Raw);
    let applier = DiskApplier::start(pair.secondary.clone(), 1).unwrap();
    applier.push(batch(1));
    (0..10_000).for_each(|_| applier.push(Vec::new()));
    applier.drain().unwrap();
    assert_eq!((applier.applied(), applier.queued_bytes()), (1, 0));
}

#[test]
fn a_full_queue_makes_the_caller_wait() {
    let pair = Pair::new(Images::Raw);
    // No two batches fit, so each waits for the one before.
    let applier = DiskApplier::start(pair.secondary.clone(), 1).unwrap();
    for round in 0..100 {
        applier.push(batch(round));
        assert!(applier.applied() >= round);
    }
    applier.drain().unwrap();
}

#[test]
fn an_error_is_kept_and_ends_the_work() {
    let pair = Pair::new(Images::Raw);
    let applier = DiskApplier::start(pair.secondary.clone(), 1).unwrap();
    applier.push(batch(1));
    applier.push(vec![DiskWrite { disk: 3, op: DiskOp::Flush }, DiskWrite { disk: 0, op: DiskOp::Lost }]);
    // Blocks no more, whatever is pushed.
    for _ in 0..10 {
        applier.push(batch(2));
    }
    assert!(applier.drain().is_err());
    let error = applier.error().unwrap();
    assert!(matches!(*error, DiskSyncError::Lost { disk: 0 } | DiskSyncError::Refused { disk: 3, .. }), "{error}");
    let mut content = [0; 4096];
    pair.secondary.backends()[0].read_at(2048, &mut content).unwrap();
    assert_eq!(content, [1; 4096]);
}

#[test]
fn dropping_an_applier_does_not_wait_for_its_queue() {
    let pair = Pair::new(Images::Raw);
    let applier = DiskApplier::start(pair.secondary.clone(), u64::MAX).unwrap();
    (0..1000).for_each(|round| applier.push(batch(round)));
    drop(applier);
    // The disk is free for another one.
    let applier = DiskApplier::start(pair.secondary.clone(), 1 << 20).unwrap();
    applier.push(batch(3));
    applier.drain().unwrap();
    let backend: &dyn BlockBackend = &*pair.secondary.backends().remove(0);
    let mut content = [0; 4096];
    backend.read_at(0, &mut content).unwrap();
    assert_eq!(content, [3; 4096]);
}
