//! Inputs and segments to write and read.

use machine::input::{FailedContent, Input, InputEvent};
use network::{FrameOffload, InputPosition};
use proptest::prelude::*;
use protocol::Epoch;
use replication::lockstep::log::{Entry, FORMAT_VERSION, Segment};

pub const EPOCH: u64 = 30;
pub const INSTRUCTIONS: u64 = 1_000_000;

/// Where the logs begin: two cards.
pub fn positions() -> [InputPosition; 2] {
    [InputPosition { end: 5, frames: 0 }, InputPosition { end: 6, frames: 70 }]
}

pub fn clock_step(ticks: u64) -> Input {
    Input::ClockStep(ticks)
}

pub fn entropy(len: usize) -> Input {
    Input::Entropy(vec![0x5a; len])
}

/// A frame of the network end with which the log begins.
pub fn frame(card: usize, frames: u64, bytes: &[u8]) -> Input {
    let position = InputPosition { end: positions()[card].end, frames };
    Input::Frame { card, frame: bytes.to_vec(), offload: FrameOffload::default(), position }
}

/// A frame of a TCP connection: Ethernet, IPv4, TCP with time stamps (RFC 791, 9293, 7323), and a payload.
pub fn tcp_frame(number: u32, len: usize, seconds: u32) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..14].copy_from_slice(&[2, 1, 2, 3, 4, 5, 0x52, 0x55, 10, 0, 2, 2, 8, 0]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 80, 0, 0, 0x40, 0, 64, 6]);
    frame[18..20].copy_from_slice(&(number as u16).to_be_bytes());
    frame[24..26].copy_from_slice(&(number.wrapping_mul(40_503) as u16).to_be_bytes());
    frame[26..38].copy_from_slice(&[10, 0, 2, 2, 10, 0, 2, 15, 0xc3, 0x50, 0x18, 0xeb]);
    frame[38..42].copy_from_slice(&number.wrapping_mul(34).to_be_bytes());
    frame[42..46].copy_from_slice(&number.wrapping_mul(9).to_be_bytes());
    frame[46..54].copy_from_slice(&[0x80, 0x18, 0x01, 0xf6, number as u8, (number >> 8) as u8 ^ 0x5a, 0, 0]);
    frame[54..58].copy_from_slice(&[1, 1, 8, 10]);
    frame[58..62].copy_from_slice(&(seconds * 1000 + number / 2).to_be_bytes());
    frame[62..66].copy_from_slice(&(seconds * 1000 + number / 2 + 7).to_be_bytes());
    let payload = (0..).map(|byte: u32| (byte.wrapping_mul(31) ^ number) as u8);
    frame[66..].iter_mut().zip(payload).for_each(|(byte, value)| *byte = value);
    frame
}

fn at(instructions: u64, input: Input) -> Entry {
    Entry::Input(InputEvent { instructions: INSTRUCTIONS + instructions, input })
}

/// An entry of each kind, and with each flag.
pub fn one_of_each() -> Vec<Segment> {
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0];
    let offload = FrameOffload::from_header(&header[..network::HEADER_LEN].try_into().unwrap()).unwrap();
    let first = vec![
        at(5, clock_step(300)),
        at(5, frame(0, 1, b"0123456789abcdef-first")),
        at(5, frame(0, 2, b"0123456789ABcdef-second")),
        at(7, Input::Frame { card: 1, frame: vec![9; 60], offload, position: InputPosition { end: 8, frames: 3 } }),
        at(400, Input::Link { card: 1, up: true }),
        at(400, Input::Link { card: 0, up: false }),
    ];
    let second = vec![
        at(100_000, Input::Console(b"ls\n".to_vec())),
        at(100_000, Input::PowerButton),
        at(100_001, Input::Entropy(vec![0xe0, 0xe1])),
        at(100_002, Input::DiskFailed { disk: 0, request: 77, content: FailedContent::Unchanged }),
        at(100_003, Input::DiskFailed { disk: 1, request: 300, content: FailedContent::Bytes(vec![1, 2, 3]) }),
        at(100_004, Input::DiskFailed { disk: 0, request: 78, content: FailedContent::Unknown }),
        Entry::Digest { instructions: INSTRUCTIONS + 200_000, digest: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100 },
    ];
    vec![
        Segment { epoch: Epoch::new(EPOCH + 1), reached: INSTRUCTIONS + 400, has_output: false, entries: first },
        Segment { epoch: Epoch::new(EPOCH + 2), reached: INSTRUCTIONS + 200_001, has_output: true, entries: second },
        Segment {
            epoch: Epoch::new(EPOCH + 3),
            reached: INSTRUCTIONS + 200_001,
            has_output: false,
            entries: Vec::new(),
        },
    ]
}

/// Gives the first segment of a log the checksum that it should have: CRC-32 of where the log begins, and then of the segment.
pub fn repair_checksum(bytes: &mut [u8]) {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&FORMAT_VERSION.to_le_bytes());
    hasher.update(&EPOCH.to_le_bytes());
    hasher.update(&INSTRUCTIONS.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new_with_initial(hasher.finalize());
    hasher.update(&bytes[4..]);
    let checksum = hasher.finalize().to_le_bytes();
    bytes[..4].copy_from_slice(&checksum);
}

/// Whatever a sender can leave open, or nothing.
fn any_offload() -> impl Strategy<Value = FrameOffload> {
    let header = (0..3u8, prop::sample::select(vec![0u8, 1, 4]), any::<[u8; network::HEADER_LEN - 2]>());
    let offload = header.prop_map(|(flags, segmentation, rest)| {
        let mut header = [flags; network::HEADER_LEN];
        header[1] = segmentation;
        header[2..].copy_from_slice(&rest);
        FrameOffload::from_header(&header).unwrap()
    });
    prop_oneof![Just(FrameOffload::default()), offload]
}

/// Mostly near where others are, so that some follow each other.
fn any_position() -> impl Strategy<Value = InputPosition> {
    prop_oneof![4 => (5..7u64, 0..4u64), 1 => any::<(u64, u64)>()]
        .prop_map(|(end, frames)| InputPosition { end, frames })
}

fn any_input() -> impl Strategy<Value = Input> {
    let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
    let content = prop_oneof![
        Just(FailedContent::Unchanged),
        Just(FailedContent::Unknown),
        bytes(600).prop_map(FailedContent::Bytes)
    ];
    // Few values, so that frames follow each other and are alike.
    let alike = prop::collection::vec(0..3u8, 0..100);
    prop_oneof![
        any::<u64>().prop_map(Input::ClockStep),
        (0..2usize, prop_oneof![alike, bytes(2000)], any_offload(), any_position())
            .prop_map(|(card, frame, offload, position)| Input::Frame { card, frame, offload, position }),
        (0..2usize, any::<bool>()).prop_map(|(card, up)| Input::Link { card, up }),
        bytes(20).prop_map(Input::Console),
        Just(Input::PowerButton),
        bytes(300).prop_map(Input::Entropy),
        (any::<u32>(), any::<u64>(), content).prop_map(|(disk, request, content)| Input::DiskFailed {
            disk,
            request,
            content
        }),
    ]
}

/// A segment as it is drawn: of each entry how many instructions it comes after, and an input or a digest; how far it reaches beyond; whether
/// output waits.
type Drawn = (Vec<(u64, Option<Input>, u128)>, u64, bool);

/// A log of a few segments.
pub fn any_log() -> impl Strategy<Value = Vec<Segment>> {
    let step = prop_oneof![Just(0u64), 0..100u64, 0..(1u64 << 40)];
    let entry = (step.clone(), prop_oneof![9 => any_input().prop_map(Some), 1 => Just(None)], any::<u128>());
    let segment = (prop::collection::vec(entry, 0..20), step, any::<bool>());
    prop::collection::vec(segment, 0..20).prop_map(|segments| {
        let mut instructions = INSTRUCTIONS;
        let segment = |(epoch, (entries, rest, has_output)): (u64, Drawn)| {
            let entries = entries.into_iter().map(|(since, input, digest)| {
                instructions += since;
                match input {
                    Some(input) => Entry::Input(InputEvent { instructions, input }),
                    None => Entry::Digest { instructions, digest },
                }
            });
            let entries = entries.collect();
            instructions += rest;
            Segment { epoch: Epoch::new(epoch), reached: instructions, has_output, entries }
        };
        (EPOCH + 1..).zip(segments).map(segment).collect()
    })
}
