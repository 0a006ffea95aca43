//! What a hostile writer may send, with the checksum that it should have: it costs no more than the limits allow.

use machine::input::{Input, InputEvent};
use network::InputPosition;
use protocol::Epoch;
use replication::lockstep::log::{ENTRIES_MAX, Entry, LogError, SEGMENT_BYTES_MAX, Segment, SegmentReader};

use super::samples::{EPOCH, INSTRUCTIONS, positions, repair_checksum};

/// Encodings of the smallest entries, each at the count of the one before: the power button, and a frame of card 0 that repeats 64 bytes.
const POWER_BUTTON: [u8; 1] = [0x84];
const REPEATED_FRAME: [u8; 10] = [0xf1, 64, 0, 0, 0, 0, 0, 0, 0, 0];

/// The first segment of a log, which reaches no further than where the log begins.
fn segment(entries: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend([(EPOCH + 1) as u8 & 0x0f, 0]);
    bytes.extend_from_slice(entries);
    repair_checksum(&mut bytes);
    bytes
}

fn read(entries: &[u8], positions: &[InputPosition]) -> Result<Segment, LogError> {
    SegmentReader::new(Epoch::new(EPOCH), INSTRUCTIONS, positions).read(&segment(entries))
}

/// Bytes of the heap that a segment takes.
fn memory_bytes(segment: &Segment) -> usize {
    let frame = |entry: &Entry| match entry {
        Entry::Input(InputEvent { input: Input::Frame { frame, .. }, .. }) => frame.capacity(),
        _ => 0,
    };
    segment.entries.capacity() * size_of::<Entry>() + segment.entries.iter().map(frame).sum::<usize>()
}

#[test]
fn many_tiny_entries_take_bounded_memory() {
    for entry in [&POWER_BUTTON[..], &REPEATED_FRAME] {
        let entries = entry.repeat(ENTRIES_MAX);
        let segment = read(&entries, &positions()).unwrap();
        assert_eq!(segment.entries.len(), ENTRIES_MAX);
        // The vector grows by doubling; a frame repeats at most 64 bytes of the one before.
        let bound = entries.len() + ENTRIES_MAX * (2 * size_of::<Entry>() + 64);
        let bytes = memory_bytes(&segment);
        assert!(bytes <= bound && bytes <= 4 * SEGMENT_BYTES_MAX, "{bytes} bytes of memory");

        let one_too_many = entry.repeat(ENTRIES_MAX + 1);
        assert!(matches!(read(&one_too_many, &positions()), Err(LogError::Malformed(_))));
    }
}

#[test]
fn a_segment_that_is_too_long_is_refused_before_it_is_read() {
    let longest = vec![POWER_BUTTON[0]; SEGMENT_BYTES_MAX - 6 + 1];
    assert_eq!(read(&longest, &positions()), Err(LogError::Malformed("it is too long")));
}

#[test]
fn a_length_that_promises_more_than_there_is_is_refused() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    for head in [&[0x83][..], &[0x85], &[0x96, 0, 0], &[0xf1]] {
        assert!(matches!(read(&[head, &huge].concat(), &positions()), Err(LogError::Malformed(_))), "{head:x?}");
        // 65,535 bytes, which is allowed, and none of them there.
        let promised = [head, &[0xff, 0xff, 0x03]].concat();
        assert!(matches!(read(&promised, &positions()), Err(LogError::Malformed(_))), "{head:x?}");
    }
}

#[test]
fn what_happens_on_a_card_that_the_vm_does_not_have_is_refused() {
    let link = |card| [0x92, card];
    assert!(read(&link(1), &positions()).is_ok());
    assert!(matches!(read(&link(2), &positions()), Err(LogError::Malformed(_))));
    // The first card, of a VM without any.
    assert!(matches!(read(&link(0), &[]), Err(LogError::Malformed(_))));
    assert!(matches!(read(&REPEATED_FRAME, &[]), Err(LogError::Malformed(_))));
}

/// An empty frame of card 0, next in its stream, of which this much is left open: a `virtio_net_hdr` with a checksum to complete.
const OFFLOAD_FRAME: [u8; 22] = [0xd1, 1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn what_means_nothing_or_has_another_form_is_refused() {
    assert!(read(&OFFLOAD_FRAME, &positions()).is_ok());
    let mut other_buffers = OFFLOAD_FRAME;
    other_buffers[11] = 7;
    let mut nothing_open = OFFLOAD_FRAME;
    nothing_open[1..11].fill(0);
    let mut unknown_segmentation = OFFLOAD_FRAME;
    unknown_segmentation[2] = 9;
    let overflow = [&[0x04][..], &[0xff; 9], &[0x01]].concat();
    let refused: [(&[u8], &str); 12] = [
        (&[0x88], "an entry is of an unknown kind"),
        (&[0x94], "an entry has an unknown flag"),
        (&[0xb6, 0, 0, 0], "a failed request contradicts itself"),
        (&[0x04, 0], "an entry is not where it can be"),
        (&[0x04, 1], "an entry is not where it can be"),
        (&overflow, "an entry is not where it can be"),
        (&[0x80, 0x81, 0x00], "a number is not in its shortest form, or too large"),
        (&[0x86, 0xff, 0xff, 0xff, 0xff, 0x1f, 0], "no VM has such a disk"),
        (&[0xb1, 0], "the first card is named though it need not be"),
        (&other_buffers, "a frame's offload is not in its only form"),
        (&nothing_open, "a frame's offload is not in its only form"),
        (&unknown_segmentation, "a frame's offload makes no sense"),
    ];
    for (entry, reason) in refused {
        assert_eq!(read(entry, &positions()), Err(LogError::Malformed(reason)), "{entry:x?}");
    }
}

#[test]
fn numbers_at_their_ends_are_refused_rather_than_wrapped_around() {
    let mut last_epoch = SegmentReader::new(Epoch::new(u64::MAX), 0, &[]);
    let mut at_the_end = SegmentReader::new(Epoch::new(0), u64::MAX, &[]);
    let mut last_frame = SegmentReader::new(Epoch::new(0), 0, &[InputPosition { end: 1, frames: u64::MAX }]);
    let chained = |epoch: u64, instructions: u64, content: &[u8]| {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&replication::lockstep::log::FORMAT_VERSION.to_le_bytes());
        hasher.update(&epoch.to_le_bytes());
        hasher.update(&instructions.to_le_bytes());
        hasher.update(content);
        [&hasher.finalize().to_le_bytes()[..], content].concat()
    };
    let is_malformed = |read: Result<Segment, LogError>| matches!(read, Err(LogError::Malformed(_)));
    assert!(is_malformed(last_epoch.read(&chained(u64::MAX, 0, &[0, 0]))));
    assert!(is_malformed(at_the_end.read(&chained(0, u64::MAX, &[1, 1]))));
    assert!(is_malformed(last_frame.read(&chained(0, 0, &[&[1, 0][..], &REPEATED_FRAME].concat()))));
}
