//! The event log's format: what is written is read, nothing else is, and it stays as `docs/event-log.md` describes it.

mod limits;
mod overhead;
mod samples;

use machine::input::InputEvent;
use proptest::prelude::*;
use protocol::Epoch;
use replication::lockstep::log::{
    ENTRIES_MAX, Entry, LogError, SEGMENT_BYTES_MAX, Segment, SegmentReader, SegmentWriter,
};

use samples::{EPOCH, INSTRUCTIONS, positions};

fn writer() -> SegmentWriter {
    SegmentWriter::new(Epoch::new(EPOCH), INSTRUCTIONS, &positions())
}

fn reader() -> SegmentReader {
    SegmentReader::new(Epoch::new(EPOCH), INSTRUCTIONS, &positions())
}

fn encode(segments: &[Segment]) -> Vec<Vec<u8>> {
    let mut writer = writer();
    let encode = |segment: &Segment| {
        for entry in &segment.entries {
            match entry {
                Entry::Input(InputEvent { instructions, input }) => writer.input(*instructions, input),
                Entry::Digest { instructions, digest } => writer.digest(*instructions, *digest),
            }
        }
        writer.finish(segment.reached, segment.has_output)
    };
    segments.iter().map(encode).collect()
}

/// Hexadecimal text with comments, as in the golden file.
fn from_hex(text: &str) -> Vec<u8> {
    let digits: String =
        text.lines().filter_map(|line| line.split('#').next()).flat_map(str::split_whitespace).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn the_format_is_that_of_the_golden_file() {
    let segments = samples::one_of_each();
    let encoded = encode(&segments);
    let hex = |bytes: &Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let golden: Vec<Vec<u8>> = include_str!("golden.hex").split("\n\n").map(from_hex).collect();
    let shown: Vec<String> = encoded.iter().map(hex).collect();
    assert_eq!(encoded, golden, "encoded:\n{}", shown.join("\n\n"));
    let mut reader = reader();
    for (segment, bytes) in segments.iter().zip(&golden) {
        assert_eq!(&reader.read(bytes).unwrap(), segment);
    }
}

#[test]
fn a_segment_that_is_damaged_missing_or_repeated_is_refused() {
    let encoded = encode(&samples::one_of_each());
    for (number, bytes) in encoded.iter().enumerate() {
        let at = |number: usize| {
            let mut reader = reader();
            encoded[..number].iter().for_each(|bytes| drop(reader.read(bytes).unwrap()));
            reader
        };
        for len in 0..bytes.len() {
            assert!(at(number).read(&bytes[..len]).is_err(), "cut to {len} bytes");
        }
        for bit in 0..8 * bytes.len() {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(at(number).read(&damaged), Err(LogError::Checksum), "bit {bit}");
        }
        for (other, _) in encoded.iter().enumerate().filter(|&(other, _)| other != number) {
            assert_eq!(at(other).read(bytes), Err(LogError::Checksum), "segment {number} in place of {other}");
        }
    }
    assert_eq!(
        SegmentReader::new(Epoch::new(EPOCH + 16), INSTRUCTIONS, &positions()).read(&encoded[0]),
        Err(LogError::Checksum)
    );
    assert_eq!(
        SegmentReader::new(Epoch::new(EPOCH), INSTRUCTIONS + 1, &positions()).read(&encoded[0]),
        Err(LogError::Checksum)
    );
}

#[test]
fn a_writer_ends_segments_before_they_are_too_long_to_be_read() {
    let (mut writer, mut reader) = (writer(), reader());
    let (clock_step, large) = (samples::clock_step(1), samples::frame(0, 9, &[7; network::FRAME_LEN_MAX]));
    for input in [&clock_step, &large] {
        let mut count = 0;
        while !writer.is_full() {
            writer.input(INSTRUCTIONS, input);
            count += 1;
        }
        // One more of whatever size still fits.
        writer.input(INSTRUCTIONS, &samples::entropy(512 << 10));
        let bytes = writer.finish(INSTRUCTIONS, false);
        assert!(bytes.len() <= SEGMENT_BYTES_MAX);
        let segment = reader.read(&bytes).unwrap();
        assert_eq!(segment.entries.len(), count + 1);
        assert!(segment.entries.len() <= ENTRIES_MAX);
    }
}

#[test]
fn an_entry_beyond_the_end_of_its_segment_is_refused() {
    // The same checksum would not save it: what a hostile writer sends has the right one.
    let mut writer = writer();
    writer.input(INSTRUCTIONS + 10, &samples::clock_step(1));
    let mut bytes = writer.finish(INSTRUCTIONS + 10, false);
    // After checksum and flags: how far the segment reaches.
    assert_eq!(bytes[5], 10);
    bytes[5] = 9;
    samples::repair_checksum(&mut bytes);
    assert!(matches!(reader().read(&bytes), Err(LogError::Malformed(_))));
}

/// The cost of the log beside the frames in it, for clients of a Redis.
#[test]
fn the_log_is_no_longer_than_the_frames_in_it_and_a_tenth() {
    for (what, frames, len, seconds_apart) in [("one at a time", 1, 100, 600), ("pipelined", 2, 1514, 700)] {
        let (mut writer, mut at, mut inbound, mut log) = (writer(), INSTRUCTIONS, 0, 0);
        for request in 0..2000u32 {
            at += 50_000;
            writer.input(at, &samples::clock_step(20_000 + u64::from(request % 977)));
            for number in 0..frames {
                let frame = samples::tcp_frame(request * frames + number, len, request / seconds_apart);
                inbound += frame.len();
                writer.input(at, &samples::frame(0, 1 + u64::from(request * frames + number), &frame));
            }
            log += writer.finish(at, false).len();
            at += 60_000 + u64::from(request % 613);
            writer.input(at, &samples::clock_step(90_000));
            log += writer.finish(at, true).len();
        }
        println!("{what}: {log} bytes of log for {inbound} bytes of frames: {:.2}", log as f64 / inbound as f64);
        assert!(log * 10 <= inbound * 11, "{what}: {log} bytes of log for {inbound} bytes of frames");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(segments in samples::any_log()) {
        let mut reader = reader();
        for (segment, bytes) in segments.iter().zip(encode(&segments)) {
            prop_assert_eq!(&reader.read(&bytes).unwrap(), segment);
        }
    }

    /// Whatever a hostile writer sends, with the right checksum: an error, or the one form of what it says.
    #[test]
    fn garbage_does_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 5..400)) {
        bytes[4] = bytes[4] & 0x10 | (EPOCH as u8 + 1) & 0x0f;
        samples::repair_checksum(&mut bytes);
        if let Ok(segment) = reader().read(&bytes) {
            prop_assert_eq!(&encode(&[segment])[0], &bytes);
        }
    }
}
