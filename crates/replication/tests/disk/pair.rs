//! Two replicas' images of one disk.

use std::path::{Path, PathBuf};

use machine::devices::virtio::block::BlockBackend;
use proptest::prelude::*;
use replication::disk::{
    DiskCopy, DiskSet, DiskSummary, PIECE_BYTES_MAX, SUMMARY_PIECE_BYTES_MAX, SummaryReader, SummaryWriter,
    decode_writes, encode_writes,
};
use spec::DiskFormat;
use storage::disk::{Backing, DiskImage, DiskOptions, create_qcow2, create_raw};
use tempfile::TempDir;

/// Neither a multiple of the blocks that are copied nor of qcow2's clusters.
pub const SIZE: u64 = 20 * 65536 + 3 * 512;

pub fn open(path: &Path, format: DiskFormat) -> DiskImage {
    DiskImage::open(path, DiskOptions { format: Some(format), ..DiskOptions::default() }).unwrap()
}

pub fn open_read_only(path: &Path, format: DiskFormat) -> DiskImage {
    DiskImage::open(path, DiskOptions { format: Some(format), read_only: true, direct: false }).unwrap()
}

/// The kinds of images on the two sides.
#[derive(Clone, Copy, Debug)]
pub enum Images {
    Raw,
    Qcow2,
    RawToQcow2,
    /// Over one base.
    Overlays,
    /// Over two bases with the same content, one of them raw and the other qcow2.
    OverlaysOfEqualBases,
    /// Over bases with different content.
    OverlaysOfDifferentBases,
}

pub fn images() -> impl Strategy<Value = Images> {
    prop_oneof![
        Just(Images::Raw),
        Just(Images::Qcow2),
        Just(Images::RawToQcow2),
        Just(Images::Overlays),
        Just(Images::OverlaysOfEqualBases),
        Just(Images::OverlaysOfDifferentBases),
    ]
}

/// Content of a base: some of it zeros.
fn base_content(salt: u8) -> Vec<u8> {
    (0..SIZE).map(|i| if i / 65536 % 3 == 0 { 0 } else { (i / 997) as u8 ^ salt }).collect()
}

/// A disk on both sides, each with an image of its own.
pub struct Pair {
    pub primary: DiskSet,
    pub secondary: DiskSet,
    _dir: TempDir,
}

impl Pair {
    pub fn new(images: Images) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let base = |name: &str, format, salt| {
            let path = at(name);
            match format {
                DiskFormat::Raw => create_raw(&path, SIZE).unwrap(),
                DiskFormat::Qcow2 => create_qcow2(&path, SIZE, None).unwrap(),
            }
            open(&path, format).write_at(0, &base_content(salt)).unwrap();
            Backing { path, format }
        };
        let raw = |name: &str| -> (PathBuf, DiskFormat) {
            create_raw(&at(name), SIZE).unwrap();
            (at(name), DiskFormat::Raw)
        };
        let qcow2 = |name: &str, backing: Option<&Backing>| {
            create_qcow2(&at(name), SIZE, backing).unwrap();
            (at(name), DiskFormat::Qcow2)
        };
        let (here, there) = match images {
            Images::Raw => (raw("here"), raw("there")),
            Images::Qcow2 => (qcow2("here", None), qcow2("there", None)),
            Images::RawToQcow2 => (raw("here"), qcow2("there", None)),
            Images::Overlays => {
                let base = base("base", DiskFormat::Raw, 0);
                (qcow2("here", Some(&base)), qcow2("there", Some(&base)))
            }
            Images::OverlaysOfEqualBases => {
                let (one, other) = (base("base", DiskFormat::Raw, 0), base("other", DiskFormat::Qcow2, 0));
                (qcow2("here", Some(&one)), qcow2("there", Some(&other)))
            }
            Images::OverlaysOfDifferentBases => {
                let (one, other) = (base("base", DiskFormat::Raw, 0), base("other", DiskFormat::Raw, 5));
                (qcow2("here", Some(&one)), qcow2("there", Some(&other)))
            }
        };
        let set = |(path, format): (PathBuf, DiskFormat)| DiskSet::new(vec![open(&path, format)]);
        Self { primary: set(here), secondary: set(there), _dir: dir }
    }

    /// The secondary's summary, as the primary reads it.
    pub fn summary(&self) -> DiskSummary {
        summary(&self.primary, &self.secondary)
    }

    /// Sends what is in the log.
    pub fn send_log(&self) {
        send_log(&self.primary, &self.secondary);
    }

    pub fn assert_equal(&self) {
        assert_equal(&self.primary, &self.secondary);
    }
}

pub fn summary(primary: &DiskSet, secondary: &DiskSet) -> DiskSummary {
    let mut writer = SummaryWriter::new(secondary, &primary.describe().unwrap()).unwrap();
    let mut reader = SummaryReader::new(primary).unwrap();
    let mut piece = Vec::new();
    loop {
        piece.clear();
        let more = writer.next_piece(&mut piece).unwrap();
        assert!(piece.len() <= SUMMARY_PIECE_BYTES_MAX);
        let summary = reader.push(&piece).unwrap();
        assert_eq!(more, summary.is_none());
        let progress = writer.progress();
        assert!(progress.done_bytes <= progress.total_bytes);
        if let Some(summary) = summary {
            assert_eq!(progress.done_bytes, progress.total_bytes);
            return summary;
        }
    }
}

/// One piece of a copy, applied; returns whether more will follow, and the length of the piece.
pub fn copy_piece(copy: &mut DiskCopy, secondary: &DiskSet) -> (bool, usize) {
    let mut piece = Vec::new();
    let more = copy.next_piece(&mut piece).unwrap();
    assert!(piece.len() <= PIECE_BYTES_MAX);
    secondary.apply_block_piece(&piece).unwrap();
    (more, piece.len())
}

/// More pieces than any copy here takes: what takes more has no end.
const PIECES_MAX: usize = 20_000;

/// The rest of a copy; returns the bytes sent.
pub fn copy_all(copy: &mut DiskCopy, secondary: &DiskSet) -> usize {
    let mut sent = 0;
    for _ in 0..PIECES_MAX {
        let (more, bytes) = copy_piece(copy, secondary);
        sent += bytes;
        if !more {
            let progress = copy.progress();
            assert_eq!(progress.done_bytes, progress.total_bytes);
            return sent;
        }
    }
    panic!("a copy without end");
}

pub fn send_log(primary: &DiskSet, secondary: &DiskSet) {
    let writes = primary.take_log();
    let mut decoded = Vec::new();
    encode_writes(&writes, |piece| {
        assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES_MAX);
        decoded.extend(decode_writes(piece, secondary).unwrap());
    });
    assert!(decoded == writes);
    secondary.apply(&decoded).unwrap();
}

pub fn whole(backend: &dyn BlockBackend) -> Vec<u8> {
    let mut content = vec![0xee; backend.size_bytes() as usize];
    backend.read_at(0, &mut content).unwrap();
    content
}

pub fn assert_equal(primary: &DiskSet, secondary: &DiskSet) {
    for (number, (here, there)) in primary.backends().into_iter().zip(secondary.backends()).enumerate() {
        let (here, there) = (whole(&*here), whole(&*there));
        let differs = here.iter().zip(&there).position(|(a, b)| a != b);
        assert!(differs.is_none() && here.len() == there.len(), "disk {number} differs at {differs:?}");
    }
}

/// What a guest does.
#[derive(Clone, Debug)]
pub enum Step {
    Write(u64, usize, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
}

pub fn step() -> impl Strategy<Value = Step> {
    let range = prop_oneof![
        (0..SIZE / 512, 1..200_u64).prop_map(|(s, n)| (s * 512, n * 512)),
        (0..SIZE / 65536, 1..4_u64).prop_map(|(s, n)| (s * 65536, n * 65536)),
    ]
    .prop_map(|(offset, length)| (offset, length.min(SIZE - offset)));
    prop_oneof![
        // 0 is written too: as data, not as zeros.
        4 => (range.clone(), 0..4_u8).prop_map(|((o, l), byte)| Step::Write(o, l as usize, byte * 85)),
        1 => (range.clone(), any::<bool>()).prop_map(|((o, l), unmap)| Step::Zero(o, l, unmap)),
        1 => range.prop_map(|(o, l)| Step::Discard(o, l)),
        1 => Just(Step::Flush),
    ]
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..12)
}

pub fn perform(backend: &dyn BlockBackend, step: &Step) {
    match *step {
        Step::Write(offset, length, 0) => backend.write_at(offset, &vec![0; length]).unwrap(),
        Step::Write(offset, length, byte) => {
            let data: Vec<u8> = (0..length).map(|i| byte.wrapping_add((i / 7) as u8)).collect();
            backend.write_at(offset, &data).unwrap();
        }
        Step::Zero(offset, length, may_unmap) => backend.write_zeroes(offset, length, may_unmap).unwrap(),
        Step::Discard(offset, length) => backend.discard(offset, length).unwrap(),
        Step::Flush => backend.flush().unwrap(),
    }
}

pub fn perform_all(set: &DiskSet, steps: &[Step]) {
    let backends = set.backends();
    steps.iter().for_each(|step| perform(&*backends[0], step));
}
