//! Frozen disks: what is read is what they held at that moment, whatever is done to them meanwhile.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use proptest::prelude::*;
use spec::DiskFormat;
use storage::disk::{
    Allocation, Backing, DiskError, DiskImage, DiskOptions, FrozenDisk, ImageShape, Spill, create_qcow2, create_raw,
};
use tempfile::TempDir;

/// Not a multiple of clusters and pieces, so that their end is tested.
const SIZE: u64 = 1_000_448;
static GOES_ON: AtomicBool = AtomicBool::new(false);

type Shared = Arc<Mutex<DiskImage>>;

fn open(path: &Path, format: DiskFormat) -> DiskImage {
    DiskImage::open(path, DiskOptions { format: Some(format), ..DiskOptions::default() }).unwrap()
}

fn spill() -> Arc<Spill> {
    Arc::new(Spill::new(tempfile::tempfile().unwrap()))
}

fn freeze(image: &Shared) -> FrozenDisk {
    let freezer = image.lock().unwrap().freezer();
    freezer.freeze(image.clone(), &spill()).unwrap()
}

fn whole(image: &mut DiskImage) -> Vec<u8> {
    let mut content = vec![0xee; image.size_bytes() as usize];
    image.read_at(0, &mut content).unwrap();
    content
}

/// A disk made of what is read of a frozen one.
struct Copy {
    folder: TempDir,
    image: DiskImage,
    /// How far it was read.
    at: u64,
}

impl Copy {
    /// `name` is what the disk is called: its base may be relative to that.
    fn begin(frozen: &FrozenDisk, name: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (form, at) = (frozen.form().unwrap(), folder.path().join("copy"));
        form.create(&File::options().read(true).write(true).create_new(true).open(&at).unwrap(), &at).unwrap();
        let options = DiskOptions { format: Some(form.shape.format()), ..DiskOptions::default() };
        let image = DiskImage::open_as(&at, name, options).unwrap();
        assert_eq!(image.form(), form);
        Self { folder, image, at: 0 }
    }

    /// Reads a part; false after the last.
    fn step(&mut self, frozen: &mut FrozenDisk) -> bool {
        let Some((stretch, data)) = frozen.read_next(&GOES_ON).unwrap() else {
            assert_eq!(self.at, self.image.size_bytes());
            return false;
        };
        assert!(stretch.offset == self.at && stretch.length > 0, "{stretch:?} after {}", self.at);
        self.at += stretch.length;
        match stretch.allocation {
            Allocation::Data => {
                assert_eq!(data.len() as u64, stretch.length);
                self.image.write_at(stretch.offset, data).unwrap();
            }
            Allocation::Zeros => self.image.write_zeroes(stretch.offset, stretch.length, true).unwrap(),
            Allocation::Absent => {}
        }
        true
    }

    fn end(mut self, frozen: &mut FrozenDisk) -> Vec<u8> {
        while self.step(frozen) {}
        let content = whole(&mut self.image);
        drop(self.image);
        self.folder.close().unwrap();
        content
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Read,
    /// Gives the frozen disk up, and freezes it again.
    Again,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = prop_oneof![
        (0..SIZE / 512, 1..200_u64).prop_map(|(s, n)| (s * 512, n * 512)),
        (0..SIZE, 0..100_000_u64),
        (0..SIZE / 65536, 1..6_u64).prop_map(|(s, n)| (s * 65536, n * 65536)),
    ]
    .prop_map(|(offset, length)| (offset, length.min(SIZE - offset)));
    let step = prop_oneof![
        8 => (range.clone(), any::<u8>()).prop_map(|((o, l), byte)| Step::Write(o, l, byte)),
        2 => (range.clone(), any::<bool>()).prop_map(|((o, l), unmap)| Step::Zero(o, l, unmap)),
        2 => range.prop_map(|(o, l)| Step::Discard(o, l)),
        5 => Just(Step::Read),
        1 => Just(Step::Again),
    ];
    prop::collection::vec(step, 1..60)
}

fn change(image: &mut DiskImage, step: &Step) {
    match *step {
        Step::Write(offset, length, byte) => {
            let data: Vec<u8> = (0..length).map(|i| byte.wrapping_add((i / 7) as u8)).collect();
            image.write_at(offset, &data).unwrap();
        }
        Step::Zero(offset, length, may_unmap) => image.write_zeroes(offset, length, may_unmap).unwrap(),
        Step::Discard(offset, length) => image.discard(offset, length).unwrap(),
        Step::Read | Step::Again => {}
    }
}

/// Changes the image as `before` says, freezes it, and changes it as `after` says while it is read.
fn run(path: &Path, format: DiskFormat, before: &[Step], after: &[Step]) {
    let mut image = open(path, format);
    before.iter().for_each(|step| change(&mut image, step));
    let image: Shared = Arc::new(Mutex::new(image));
    let mut expected = whole(&mut image.lock().unwrap());
    let mut frozen = freeze(&image);
    let mut copy = Copy::begin(&frozen, path);
    for step in after {
        match step {
            Step::Read => _ = copy.step(&mut frozen),
            Step::Again => {
                let freezer = image.lock().unwrap().freezer();
                assert!(matches!(freezer.freeze(image.clone(), &spill()), Err(DiskError::InUse { .. })));
                drop(frozen);
                expected = whole(&mut image.lock().unwrap());
                frozen = freeze(&image);
                copy = Copy::begin(&frozen, path);
            }
            step => change(&mut image.lock().unwrap(), step),
        }
    }
    let found = copy.end(&mut frozen);
    let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    assert!(differs.is_none(), "{differs:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_raw_disk_is_read_as_it_was(before in steps(), after in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        create_raw(&path, SIZE).unwrap();
        run(&path, DiskFormat::Raw, &before, &after);
    }

    #[test]
    fn a_qcow2_disk_is_read_as_it_was(before in steps(), after in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        create_qcow2(&path, SIZE, None).unwrap();
        run(&path, DiskFormat::Qcow2, &before, &after);
    }

    #[test]
    fn an_overlay_is_read_as_it_was(before in steps(), after in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let (base, path) = (folder.path().join("base"), folder.path().join("disk"));
        std::fs::write(&base, (0..SIZE / 2).map(|i| (i / 13) as u8 | 1).collect::<Vec<_>>()).unwrap();
        File::options().write(true).open(&base).unwrap().set_len(SIZE / 1024 * 512).unwrap();
        create_qcow2(&path, SIZE, Some(&Backing { path: base, format: DiskFormat::Raw })).unwrap();
        run(&path, DiskFormat::Qcow2, &before, &after);
    }
}

/// What is not in the image is not in the copy either: it shows its base, and takes no space.
#[test]
fn data_zeros_and_nothing_are_told_apart_also_after_they_were_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base"), folder.path().join("disk"));
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    create_qcow2(&path, 1 << 20, Some(&Backing { path: base, format: DiskFormat::Raw })).unwrap();
    let mut image = open(&path, DiskFormat::Qcow2);
    image.write_at(0, &[1; 65536]).unwrap();
    image.write_zeroes(65536, 65536, true).unwrap();
    let image: Shared = Arc::new(Mutex::new(image));
    for overwrite in [false, true] {
        let mut frozen = freeze(&image);
        assert!(matches!(frozen.form().unwrap().shape, ImageShape::Qcow2 { base: Some(_), cluster_bytes: 65536 }));
        if overwrite {
            image.lock().unwrap().write_at(0, &vec![9; 1 << 20]).unwrap();
        }
        let mut found = Vec::new();
        while let Some((stretch, _)) = frozen.read_next(&GOES_ON).unwrap() {
            match found.last_mut() {
                Some((allocation, length)) if *allocation == stretch.allocation => *length += stretch.length,
                _ => found.push((stretch.allocation, stretch.length)),
            }
        }
        let expected =
            [(Allocation::Data, 65536), (Allocation::Zeros, 65536), (Allocation::Absent, (1 << 20) - 131_072)];
        assert_eq!(found, expected, "{overwrite}");
    }
}

/// The disk is sparse and huge: neither freezing it nor giving back all of it takes longer for that.
#[test]
fn what_holds_nothing_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let size = 4 << 40;
    create_qcow2(&path, size, None).unwrap();
    let image: Shared = Arc::new(Mutex::new(open(&path, DiskFormat::Qcow2)));
    let spilled = tempfile::tempfile().unwrap();
    let freezer = image.lock().unwrap().freezer();
    // Whoever has the image is not waited for.
    let busy = image.lock().unwrap();
    let mut frozen = freezer.freeze(image.clone(), &Arc::new(Spill::new(spilled.try_clone().unwrap()))).unwrap();
    drop(busy);
    image.lock().unwrap().discard(1 << 30, 1 << 30).unwrap();
    let mut at = 0;
    while let Some((stretch, _)) = frozen.read_next(&GOES_ON).unwrap() {
        assert_eq!((stretch.offset, stretch.allocation), (at, Allocation::Absent));
        at += stretch.length;
    }
    assert_eq!((at, spilled.metadata().unwrap().len()), (size, 0));
}

#[test]
fn a_spill_that_is_full_fails_the_reader_and_no_writer() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        match format {
            DiskFormat::Raw => create_raw(&path, SIZE).unwrap(),
            DiskFormat::Qcow2 => create_qcow2(&path, SIZE, None).unwrap(),
        }
        let mut image = open(&path, format);
        image.write_at(0, &[1; 300_000]).unwrap();
        let image: Shared = Arc::new(Mutex::new(image));
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let freezer = image.lock().unwrap().freezer();
        let mut frozen = freezer.freeze(image.clone(), &Arc::new(Spill::new(full))).unwrap();
        image.lock().unwrap().write_at(100_000, &[2; 512]).unwrap();
        let error = frozen.read_next(&GOES_ON).unwrap_err();
        assert!(error.to_string().contains("cannot be kept: No space left"), "{error}");
        assert!(frozen.read_next(&GOES_ON).is_err());
        drop(frozen);
        let mut byte = [0];
        image.lock().unwrap().read_at(100_100, &mut byte).unwrap();
        assert_eq!(byte, [2]);
        // The next one finds nothing of it.
        let frozen = &mut freeze(&image);
        let expected = whole(&mut image.lock().unwrap());
        assert!(Copy::begin(frozen, &path).end(frozen) == expected);
    }
}

const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;
const WRITERS: u64 = 4;

/// Several threads write to a raw disk without its lock. Each block is read whole, as of a write that had ended before the freeze or was under way.
#[test]
fn writers_beside_the_image_are_seen_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    create_raw(&path, BLOCKS * BLOCK as u64).unwrap();
    let image = open(&path, DiskFormat::Raw);
    let raw = image.raw_file().unwrap().clone();
    let image: Shared = Arc::new(Mutex::new(image));
    let numbers = || (0..BLOCKS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (begun, ended, is_over) = (numbers(), numbers(), AtomicBool::new(false));
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (raw, begun, ended, is_over) = (raw.clone(), &begun, &ended, &is_over);
            scope.spawn(move || {
                for number in 1.. {
                    for block in (writer..BLOCKS).step_by(WRITERS as usize) {
                        if is_over.load(Ordering::Relaxed) {
                            return;
                        }
                        begun[block as usize].store(number, Ordering::SeqCst);
                        let data: Vec<u8> = u64::to_le_bytes(number).repeat(BLOCK / 8);
                        raw.write_at(block * BLOCK as u64, &data).unwrap();
                        ended[block as usize].store(number, Ordering::SeqCst);
                    }
                }
            });
        }
        for _ in 0..100 {
            let all = |numbers: &[AtomicU64]| numbers.iter().map(|n| n.load(Ordering::SeqCst)).collect::<Vec<_>>();
            let at_least = all(&ended);
            let mut frozen = freeze(&image);
            let at_most = all(&begun);
            thread::yield_now();
            let mut content = vec![0; (BLOCKS as usize) * BLOCK];
            while let Some((stretch, data)) = frozen.read_next(&GOES_ON).unwrap() {
                content[stretch.offset as usize..][..data.len()].copy_from_slice(data);
            }
            for (block, content) in content.chunks(BLOCK).enumerate() {
                let number = u64::from_le_bytes(content[..8].try_into().unwrap());
                assert!(content == u64::to_le_bytes(number).repeat(BLOCK / 8), "block {block} is torn");
                assert!((at_least[block]..=at_most[block]).contains(&number), "block {block} holds {number}");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
