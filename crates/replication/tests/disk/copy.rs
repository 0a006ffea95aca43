//! The first copy and the resync.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use replication::disk::{BLOCK_BYTES, DiskCopy, DiskSet, DiskSyncError, SummaryWriter};
use spec::DiskFormat;
use storage::disk::{Backing, create_qcow2, create_raw};

use crate::pair::{
    Images, Pair, SIZE, Step, assert_equal, copy_all, copy_piece, images, open, open_read_only, perform, perform_all,
    step, steps, summary, whole,
};

/// What happens next during a copy.
#[derive(Clone, Debug)]
enum Event {
    Guest(Step),
    Piece,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(prop_oneof![2 => step().prop_map(Event::Guest), 1 => Just(Event::Piece)], 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the disks held before, and whatever the guest does meanwhile.
    #[test]
    fn a_copy_under_a_running_guest_ends_with_equal_disks(
        images in images(),
        common in steps(),
        stale in steps(),
        newer in steps(),
        before in events(),
        during in events(),
        after in steps(),
    ) {
        let pair = Pair::new(images);
        perform_all(&pair.primary, &common);
        perform_all(&pair.secondary, &common);
        perform_all(&pair.secondary, &stale);
        perform_all(&pair.primary, &newer);
        pair.primary.start_log();
        let guest = pair.primary.backends();
        for event in &before {
            if let Event::Guest(step) = event {
                perform(&*guest[0], step);
            }
        }
        let mut copy = DiskCopy::new(&pair.primary, pair.summary()).unwrap();
        for event in &during {
            match event {
                Event::Guest(step) => perform(&*guest[0], step),
                Event::Piece => _ = copy_piece(&mut copy, &pair.secondary),
            }
        }
        copy_all(&mut copy, &pair.secondary);
        perform_all(&pair.primary, &after);
        pair.send_log();
        pair.assert_equal();
    }

    #[test]
    fn a_copy_sends_only_what_differs(images in images(), common in steps(), newer in steps()) {
        let pair = Pair::new(images);
        perform_all(&pair.primary, &common);
        let mut first = DiskCopy::new(&pair.primary, pair.summary()).unwrap();
        copy_all(&mut first, &pair.secondary);
        pair.primary.stop_log();
        pair.assert_equal();
        let before = whole(&*pair.primary.backends()[0]);
        perform_all(&pair.primary, &newer);
        let after = whole(&*pair.primary.backends()[0]);
        let changed = before.chunks(BLOCK_BYTES as usize).zip(after.chunks(BLOCK_BYTES as usize)).filter(|(a, b)| a != b);
        let changed_bytes: usize = changed.map(|(block, _)| block.len()).sum();
        let mut copy = DiskCopy::new(&pair.primary, pair.summary()).unwrap();
        copy_all(&mut copy, &pair.secondary);
        pair.assert_equal();
        // A block that only the primary's image holds is sent unseen, though it may show what its base does.
        let unseen = matches!(images, Images::Overlays | Images::OverlaysOfEqualBases);
        let differing = copy.differing_bytes();
        prop_assert!(differing == changed_bytes as u64 || unseen && differing > changed_bytes as u64);
    }
}

/// Not even what it looked at last is still in the log, which goes its own way from there.
#[test]
fn a_copy_that_is_over_has_sent_all_that_differs() {
    let pair = Pair::new(Images::Raw);
    perform_all(&pair.primary, &[Step::Write(0, SIZE as usize, 85)]);
    let mut copy = DiskCopy::new(&pair.primary, pair.summary()).unwrap();
    copy_all(&mut copy, &pair.secondary);
    assert_eq!((pair.primary.log_ops(), copy.differing_bytes()), (0, SIZE));
    // What is asked of it now leaves the log alone.
    perform_all(&pair.primary, &[Step::Write(512, 512, 170)]);
    assert_eq!(copy_piece(&mut copy, &pair.secondary), (false, 0));
    pair.send_log();
    pair.assert_equal();
}

/// Whatever waits in the log, each piece brings the copy nearer to its end; and when that is reached, the guest's later writes are left
/// to the log.
#[test]
fn a_guest_that_writes_faster_than_it_is_copied_does_not_hold_up_the_copy() {
    let pair = Pair::new(Images::Raw);
    perform_all(&pair.primary, &[Step::Write(0, SIZE as usize, 85)]);
    let guest = pair.primary.backends();
    let mut copy = DiskCopy::new(&pair.primary, pair.summary()).unwrap();
    let mut more = true;
    for round in 0..200_u64 {
        // Two pieces' worth.
        guest[0].write_at(round % 32 * 32768, &vec![round as u8; 256 << 10]).unwrap();
        more = copy_piece(&mut copy, &pair.secondary).0;
        if !more {
            break;
        }
    }
    assert!(!more, "the guest holds up the copy");
    pair.send_log();
    pair.assert_equal();
}

/// Says that the test has ended, also if it panics, so that no thread is waited for in vain.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A guest's thread: writes at random places until the test ends, at most so many times.
fn write_all_the_time(primary: &DiskSet, seed: u64, ends: &AtomicBool) {
    const WRITES_MAX: usize = 20_000;
    let backends = primary.backends();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ seed;
    for _ in 0..WRITES_MAX {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let offset = random % (SIZE / 512) * 512;
        let length = (random >> 32) % 64 * 512;
        let length = length.min(SIZE - offset);
        match random >> 61 {
            0 => backends[0].discard(offset, length).unwrap(),
            1 => backends[0].write_zeroes(offset, length, random & 1 == 0).unwrap(),
            _ => backends[0].write_at(offset, &vec![(random >> 24) as u8; length as usize]).unwrap(),
        }
        // A guest is held back when too much waits.
        while primary.log_bytes() > 1 << 20 && !ends.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        if ends.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn a_guest_that_writes_all_the_time_does_not_disturb_the_copy() {
    for images in [Images::Raw, Images::Overlays, Images::OverlaysOfDifferentBases] {
        let pair = Pair::new(images);
        let ends = AtomicBool::new(false);
        pair.primary.start_log();
        thread::scope(|scope| {
            let (primary, ends) = (&pair.primary, &ends);
            let _ends = Ends(ends);
            for writer in 0..3 {
                scope.spawn(move || write_all_the_time(primary, writer, ends));
            }
            for _ in 0..5 {
                let mut copy = DiskCopy::new(primary, pair.summary()).unwrap();
                copy_all(&mut copy, &pair.secondary);
                // As checkpoints do it, until the next copy.
                pair.send_log();
            }
        });
        pair.send_log();
        pair.assert_equal();
    }
}

#[test]
fn big_overlays_are_compared_only_where_they_were_written() {
    const DISK_BYTES: u64 = 2 << 30;
    let dir = tempfile::tempdir().unwrap();
    let base = Backing { path: dir.path().join("base"), format: DiskFormat::Raw };
    create_raw(&base.path, DISK_BYTES).unwrap();
    let content: Vec<u8> = (0..8 << 20).map(|i| (i / 1013) as u8).collect();
    open(&base.path, base.format).write_at(1 << 30, &content).unwrap();
    let sets: Vec<DiskSet> = ["here.qcow2", "there.qcow2"]
        .iter()
        .map(|name| {
            let path = dir.path().join(name);
            create_qcow2(&path, DISK_BYTES, Some(&base)).unwrap();
            let mut image = open(&path, DiskFormat::Qcow2);
            for piece in 0..20 {
                image.write_at((piece * 97) << 20, &vec![piece as u8 | 1; 1 << 20]).unwrap();
            }
            DiskSet::new(vec![image])
        })
        .collect();
    let [primary, secondary] = <[DiskSet; 2]>::try_from(sets).ok().unwrap();
    primary.backends()[0].write_at(97 << 20, &[99; 4096]).unwrap();
    primary.backends()[0].write_at(500 << 20, &[77; 65536]).unwrap();
    secondary.backends()[0].write_at(700 << 20, &[55; 512]).unwrap();
    primary.describe().unwrap();
    secondary.describe().unwrap();

    let started = Instant::now();
    let mut copy = DiskCopy::new(&primary, summary(&primary, &secondary)).unwrap();
    let total_bytes = copy.progress().total_bytes;
    let sent = copy_all(&mut copy, &secondary);
    let took = started.elapsed();

    assert_eq!(copy.differing_bytes(), 3 * BLOCK_BYTES);
    assert_eq!(total_bytes, (20 << 20) + 2 * BLOCK_BYTES);
    assert!(sent < 8192, "{sent} bytes were sent");
    for offset in [97 << 20, 500 << 20, 700 << 20, 1 << 30] {
        let mut content = [[0; 4096]; 2];
        for (set, content) in [&primary, &secondary].into_iter().zip(&mut content) {
            set.backends()[0].read_at(offset, content).unwrap();
        }
        assert_eq!(content[0], content[1], "at {offset}");
    }
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn several_disks_are_copied_and_read_only_ones_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, byte) in [("cd", 7_u8), ("same-cd", 7), ("other-cd", 8)] {
        create_raw(&at(name), SIZE).unwrap();
        open(&at(name), DiskFormat::Raw).write_at(4096, &[byte; 100_000]).unwrap();
    }
    for name in ["a", "b", "c", "d"] {
        create_raw(&at(name), SIZE).unwrap();
    }
    let writable = |name: &str| open(&at(name), DiskFormat::Raw);
    let read_only = |name: &str| open_read_only(&at(name), DiskFormat::Raw);
    let primary = DiskSet::new(vec![writable("a"), read_only("cd"), writable("b")]);
    for (number, backend) in primary.backends().iter().enumerate().filter(|(number, _)| *number != 1) {
        backend.write_at(200_000, &[number as u8 + 1; 70_000]).unwrap();
    }
    {
        let secondary = DiskSet::new(vec![writable("c"), read_only("same-cd"), writable("d")]);
        let mut copy = DiskCopy::new(&primary, summary(&primary, &secondary)).unwrap();
        copy_all(&mut copy, &secondary);
        assert_equal(&primary, &secondary);
    }
    let refused = |disks| {
        let secondary = DiskSet::new(disks);
        match SummaryWriter::new(&secondary, &primary.describe().unwrap()) {
            Err(DiskSyncError::Different(reason)) => reason,
            _ => panic!("not refused"),
        }
    };
    let reason = refused(vec![writable("c"), read_only("other-cd"), writable("d")]);
    assert!(reason.contains("disk 1 is read-only") && reason.contains("not that on the primary"), "{reason}");
    let reason = refused(vec![writable("c"), writable("same-cd"), writable("d")]);
    assert!(reason.contains("disk 1 is read-only on the primary, writable on the secondary"), "{reason}");
    let reason = refused(vec![writable("c"), read_only("cd")]);
    assert!(reason.contains("the primary has 3, the secondary 2"), "{reason}");
    create_raw(&at("short"), SIZE - 512).unwrap();
    let reason = refused(vec![writable("short"), read_only("cd"), writable("d")]);
    assert!(reason.contains("disk 0"), "{reason}");
}

#[test]
fn a_copy_ends_with_its_log() {
    let pair = Pair::new(Images::Raw);
    perform_all(&pair.primary, &[Step::Write(0, 300_000, 85)]);
    let mut copy = DiskCopy::new(&pair.primary, pair.summary()).unwrap();
    pair.primary.stop_log();
    assert!(matches!(copy.next_piece(&mut Vec::new()), Err(DiskSyncError::Abandoned)));
    // Not even if there is another one by now.
    pair.primary.start_log();
    assert!(matches!(copy.next_piece(&mut Vec::new()), Err(DiskSyncError::Abandoned)));
    assert!(pair.primary.take_log().is_empty());
}

#[test]
fn the_stream_of_a_copy_goes_on_with_what_the_guest_writes() {
    let pair = Pair::new(Images::Raw);
    let mut copy = DiskCopy::new(&pair.primary, pair.summary()).unwrap();
    copy_all(&mut copy, &pair.secondary);
    let mut stream = copy.into_stream();
    assert_eq!(stream.waiting_bytes(), 0);
    let before = stream.sent_bytes();
    perform_all(&pair.primary, &[Step::Write(0, 300_000, 85)]);
    let written = stream.waiting_bytes();
    assert!(written >= 300_000);
    let mut piece = Vec::new();
    assert!(stream.next_piece(&mut piece).unwrap());
    pair.secondary.apply_block_piece(&piece).unwrap();
    assert_eq!(stream.sent_bytes() - before + stream.waiting_bytes(), written);
    // What it took and did not send goes back to its place.
    perform_all(&pair.primary, &[Step::Write(150_000, 512, 170)]);
    let waiting = stream.waiting_bytes();
    assert!(pair.primary.log_bytes() < waiting);
    drop(stream);
    assert_eq!(pair.primary.log_bytes(), waiting);
    pair.send_log();
    pair.assert_equal();
}

#[test]
fn a_stream_ends_with_its_log() {
    let pair = Pair::new(Images::Raw);
    let mut copy = DiskCopy::new(&pair.primary, pair.summary()).unwrap();
    copy_all(&mut copy, &pair.secondary);
    let mut stream = copy.into_stream();
    perform_all(&pair.primary, &[Step::Write(0, 300_000, 85)]);
    let mut piece = Vec::new();
    assert!(stream.next_piece(&mut piece).unwrap() && stream.next_piece(&mut piece).unwrap());
    pair.primary.stop_log();
    pair.primary.start_log();
    while stream.waiting_bytes() > 0 {
        assert!(stream.next_piece(&mut piece).unwrap());
    }
    assert!(matches!(stream.next_piece(&mut piece), Err(DiskSyncError::Abandoned)));
}

#[test]
fn what_a_stream_took_does_not_get_into_a_later_log() {
    let pair = Pair::new(Images::Raw);
    let mut copy = DiskCopy::new(&pair.primary, pair.summary()).unwrap();
    copy_all(&mut copy, &pair.secondary);
    let mut stream = copy.into_stream();
    perform_all(&pair.primary, &[Step::Write(0, 300_000, 85)]);
    assert!(stream.next_piece(&mut Vec::new()).unwrap());
    pair.primary.stop_log();
    pair.primary.start_log();
    drop(stream);
    assert_eq!(pair.primary.log_ops(), 0);
}

/// The secondary's summary is of before the copy, so what came to it in between (of a previous session, say) must be sent again.
#[test]
fn a_guest_that_writes_what_the_secondary_has_is_logged_all_the_same() {
    let pair = Pair::new(Images::Overlays);
    let summary = pair.summary();
    let mut copy = DiskCopy::new(&pair.primary, summary).unwrap();
    let step = Step::Write(65536, 65536, 85);
    perform_all(&pair.primary, std::slice::from_ref(&step));
    copy_all(&mut copy, &pair.secondary);
    pair.send_log();
    pair.assert_equal();
    assert_eq!(copy.differing_bytes(), 0);
}
