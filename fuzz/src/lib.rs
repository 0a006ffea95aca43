//! What another host may send: each function takes the bytes of a hostile peer, and panics if a promise about them is broken.

use std::sync::OnceLock;

use spec::DiskFormat;
use machine::input::Input;
use memory::encoding::{CapturedPages, PageEncoder, apply, check};
use memory::{GuestRam, PAGE_BYTES};
use network::{FrameOffload, InputPosition};
use protocol::Epoch;
use replication::disk::{
    DiskOp, DiskSet, DiskWrite, SummaryReader, SummaryWriter, WRITE_BYTES_MAX, decode_writes, encode_writes,
};
use replication::gate::{GatedFrame, InboundFrame};
use replication::lockstep::log::{ENTRIES_MAX, Entry, FORMAT_VERSION, SegmentReader, SegmentWriter};
use storage::disk::{DiskImage, DiskOptions, create_raw};
use tempfile::TempDir;

/// Memory of the VM that page records are for, in bytes.
const RAM_BYTES: u64 = 1 << 20;
/// Size of each disk, in bytes: not a multiple of the blocks that are compared.
const DISK_BYTES: u64 = (1 << 20) + 512;
/// Pieces of a summary are cut out of a case by a length of two bytes before each.
const LENGTH_BYTES: usize = 2;

/// Page records: what passes the check can be applied.
pub fn page_records(data: &[u8]) {
    static RAM: OnceLock<GuestRam> = OnceLock::new();
    let ram = RAM.get_or_init(|| GuestRam::new(RAM_BYTES).expect("there is memory"));
    if let Ok(records) = check(data, ram.pages()) {
        assert!(records <= data.len());
        apply(data, ram).expect("checked records are applied");
    }
    assert!(check(data, 0).is_err() || data.is_empty(), "a record for a VM without pages");
}

/// A piece of disk writes: bounded in memory, and within the disks.
pub fn disk_writes(data: &[u8]) {
    let disks = disks();
    let Ok(writes) = decode_writes(data, disks) else { return };
    let bytes: u64 = writes.iter().map(DiskWrite::memory_bytes).sum();
    assert!(bytes <= WRITE_BYTES_MAX as u64 + 64 * data.len() as u64, "{bytes} bytes of memory for {}", data.len());
    disks.apply(&writes).expect("decoded writes are within the disks");
}

/// Pieces of a secondary's summary: after the end or an error nothing is taken.
pub fn disk_summary(data: &[u8]) {
    let mut reader = SummaryReader::new(disks()).expect("the disks can be described");
    let (mut rest, mut is_over) = (data, false);
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let (piece, after) = after.split_at(after.len().min(u16::from_le_bytes(*length).into()));
        rest = after;
        let answer = reader.push(piece);
        assert!(!is_over || answer.is_err(), "something was taken after the end");
        is_over |= !matches!(answer, Ok(None));
    }
}

/// Frames of a checkpoint's output, or one that is passed on: sound ones only.
pub fn frames(data: &[u8]) {
    if let Ok(frames) = postcard::from_bytes::<Vec<GatedFrame>>(data) {
        for frame in frames {
            GatedFrame::new(0, frame.bytes(), frame.offload()).expect("a sound frame");
        }
    }
    if let Ok(frame) = postcard::from_bytes::<InboundFrame>(data) {
        let offload = FrameOffload::from_header(&frame.header).expect("a sound header");
        GatedFrame::new(0, &frame.bytes, offload).expect("a sound frame");
    }
}

/// Segments of the event log, cut out by a length of two bytes before each, and given the checksums that they should have: an error, or the only
/// form of what they say.
pub fn log_segments(data: &[u8]) {
    let positions = [InputPosition { end: 5, frames: 0 }, InputPosition { end: 6, frames: 70 }];
    let (epoch, instructions) = (30u64, 1_000_000u64);
    let mut reader = SegmentReader::new(Epoch::new(epoch), instructions, &positions);
    let mut writer = SegmentWriter::new(Epoch::new(epoch), instructions, &positions);
    let begin = [&FORMAT_VERSION.to_le_bytes()[..], &epoch.to_le_bytes(), &instructions.to_le_bytes()].concat();
    let (mut checksum, mut rest) = (crc32fast::hash(&begin), data);
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let (content, after) = after.split_at(after.len().min(u16::from_le_bytes(*length).into()));
        rest = after;
        let mut hasher = crc32fast::Hasher::new_with_initial(checksum);
        hasher.update(content);
        checksum = hasher.finalize();
        let bytes = [&checksum.to_le_bytes()[..], content].concat();
        let Ok(segment) = reader.read(&bytes) else { return };
        assert!(segment.entries.len() <= ENTRIES_MAX);
        for entry in &segment.entries {
            match entry {
                Entry::Input(event) => writer.input(event.instructions, &event.input),
                Entry::Digest { instructions, digest } => writer.digest(*instructions, *digest),
            }
        }
        assert!(writer.finish(segment.reached, segment.has_output) == bytes, "two forms of one segment");
    }
}

/// A writable disk and one that may only be read.
fn disks() -> &'static DiskSet {
    static DISKS: OnceLock<(DiskSet, TempDir)> = OnceLock::new();
    let (disks, _) = DISKS.get_or_init(|| {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let open = |name: &str, read_only| {
            let path = folder.path().join(name);
            create_raw(&path, DISK_BYTES).expect("a disk can be made");
            let options = DiskOptions { format: Some(DiskFormat::Raw), read_only, ..DiskOptions::default() };
            DiskImage::open(&path, options).expect("a disk can be opened")
        };
        (DiskSet::new(vec![open("writable", false), open("readable", true)]), folder)
    });
    disks
}

/// Cases of honest peers, by target, for the fuzzer to start from.
pub fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    vec![
        ("page_records", page_record_seeds()),
        ("disk_writes", disk_write_seeds()),
        ("disk_summary", vec![summary_seed()]),
        ("frames", frame_seeds()),
        ("log_segments", vec![log_seed()]),
    ]
}

/// Two segments, without their checksums.
fn log_seed() -> Vec<u8> {
    let positions = [InputPosition { end: 5, frames: 0 }, InputPosition { end: 6, frames: 70 }];
    let mut writer = SegmentWriter::new(Epoch::new(30), 1_000_000, &positions);
    let frame = |frames, byte| Input::Frame {
        card: 0,
        frame: vec![byte; 100],
        offload: FrameOffload::default(),
        position: InputPosition { end: 5, frames },
    };
    let mut seed = Vec::new();
    for number in 1..=2 {
        let at = 1_000_000 + 1000 * number;
        let inputs =
            [Input::ClockStep(9), frame(number, number as u8), Input::Console(vec![7; 9]), Input::Entropy(vec![8; 40])];
        inputs.iter().for_each(|input| writer.input(at, input));
        writer.digest(at + 10, 77);
        let bytes = writer.finish(at + 20, number == 1);
        let content = bytes.get(4..).unwrap_or_default();
        seed.extend((content.len() as u16).to_le_bytes());
        seed.extend(content);
    }
    seed
}

/// A page in each encoding.
fn page_record_seeds() -> Vec<Vec<u8>> {
    let ram = GuestRam::new(RAM_BYTES).expect("there is memory");
    let (mut encoder, mut pages) = (PageEncoder::new(RAM_BYTES), CapturedPages::default());
    let contents: [fn(u64) -> u8; 5] = [
        |_| 0,
        |byte| (byte % 7) as u8,
        |byte| (byte % 7) as u8 + u8::from(byte < 16),
        |byte| (byte % 7) as u8 ^ (byte % 3) as u8,
        |byte| (byte.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8,
    ];
    let encode = |content: fn(u64) -> u8| {
        let page: Vec<u8> = (0..PAGE_BYTES).map(content).collect();
        assert!(ram.write_offset(3 * PAGE_BYTES, &page));
        pages.capture(&ram, [3].into_iter());
        let mut records = Vec::new();
        pages.iter().for_each(|(page, content)| {
            encoder.encode(page, content, &mut records);
        });
        records
    };
    contents.into_iter().map(encode).collect()
}

/// A change of each kind.
fn disk_write_seeds() -> Vec<Vec<u8>> {
    let ops = [
        DiskOp::Flush,
        DiskOp::Write { offset: 4096, data: (0..200).collect() },
        DiskOp::Write { offset: 0, data: vec![7; 4096] },
        DiskOp::Discard { offset: 512, length: 65_536 },
        DiskOp::WriteZeroes { offset: 512, length: 512, may_unmap: true },
        DiskOp::WriteZeroes { offset: 0, length: DISK_BYTES, may_unmap: false },
        DiskOp::Lost,
    ];
    let mut pieces = Vec::new();
    let writes = ops.map(|op| DiskWrite { disk: 0, op });
    writes.iter().for_each(|write| encode_writes(std::slice::from_ref(write), |piece| pieces.push(piece.to_vec())));
    pieces
}

/// A whole summary.
fn summary_seed() -> Vec<u8> {
    let disks = disks();
    let write = DiskWrite { disk: 0, op: DiskOp::Write { offset: 70_000, data: vec![7; 4096] } };
    disks.apply(&[write]).expect("the disk can be written");
    let primary = disks.describe().expect("the disks can be described");
    let mut writer = SummaryWriter::new(disks, &primary).expect("the disks are alike");
    let mut seed = Vec::new();
    loop {
        let mut piece = Vec::new();
        let more = writer.next_piece(&mut piece).expect("the disks can be read");
        seed.extend((piece.len() as u16).to_le_bytes());
        seed.extend(piece);
        if !more {
            return seed;
        }
    }
}

/// Output of two cards, and a frame that is passed on.
fn frame_seeds() -> Vec<Vec<u8>> {
    let frame = |card| GatedFrame::new(card, &[0x55; 60], FrameOffload::default()).expect("a sound frame");
    let output = postcard::to_stdvec(&vec![frame(0), frame(1)]).expect("frames serialize");
    let header = [0; network::HEADER_LEN];
    let inbound =
        InboundFrame { position: network::InputPosition { end: 7, frames: 1 }, header, bytes: vec![0x55; 60] };
    vec![output, postcard::to_stdvec(&inbound).expect("a frame serializes")]
}
