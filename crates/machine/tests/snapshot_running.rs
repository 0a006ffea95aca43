//! Snapshots of a VM that goes on, whose file nobody takes meanwhile.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::block::{BlockBackend, ImageDisk};
use machine::devices::virtio::rng::SeededEntropy;
use machine::engine::soft::InputMode;
use machine::platform::Parts;
use machine::snapshot::disk::{SnapshotBase, SnapshotDisk};
use machine::snapshot::format::FormatError;
use machine::vm::{Boot, Snapshot, SnapshotHead, SnapshotPlace, Vm, VmConfig, VmError};
use memory::PAGE_BYTES;
use spec::{CpuLevel, DiskFormat, EngineKind, MemoryBacking, Translator};
use storage::disk::{Backing, BaseIdentity, DiskImage, DiskOptions, FrozenDisk, Spill, create_qcow2, create_raw};
use tempfile::TempDir;

const DISK_BYTES: u64 = 4 << 20;
const COUNTER: u64 = 0x20_0000;
/// `inc qword ptr [rsi]`; `add rsi, 8`; `and rsi, 0x3fffff`; `or rsi, 0x200000`; and again.
const PROGRAM: [u8; 23] = [
    0x48, 0xff, 0x06, 0x48, 0x83, 0xc6, 0x08, 0x48, 0x81, 0xe6, 0xff, 0xff, 0x3f, 0x00, 0x48, 0x81, 0xce, 0x00, 0x00,
    0x20, 0x00, 0xeb, 0xe9,
];

struct Silent;

impl ConsoleSink for Silent {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// A disk that a guest writes to, and the test in its place.
#[derive(Clone)]
struct Shared(Arc<ImageDisk>);

impl BlockBackend for Shared {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(offset, len, may_unmap)
    }

    fn freeze(&self, spill: &Arc<Spill>) -> io::Result<FrozenDisk> {
        self.0.freeze(spill)
    }
}

/// A VM with a raw disk, a qcow2 disk, and one that is based on another image.
struct Place {
    folder: TempDir,
    disks: Vec<Shared>,
    vm: Vm,
    head: SnapshotHead,
}

const FORMATS: [DiskFormat; 3] = [DiskFormat::Raw, DiskFormat::Qcow2, DiskFormat::Qcow2];

fn open(path: &Path, format: DiskFormat) -> DiskImage {
    DiskImage::open(path, DiskOptions { format: Some(format), ..DiskOptions::default() }).unwrap()
}

impl Place {
    fn new(has_memory: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let base = Backing { path: path("base"), format: DiskFormat::Raw };
        std::fs::write(&base.path, vec![0xba; DISK_BYTES as usize]).unwrap();
        create_raw(&path("0"), DISK_BYTES).unwrap();
        create_qcow2(&path("1"), DISK_BYTES, None).unwrap();
        create_qcow2(&path("2"), DISK_BYTES, Some(&base)).unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|number| path(&number.to_string())).collect();
        let disks =
            paths.iter().zip(FORMATS).map(|(path, format)| Shared(Arc::new(ImageDisk::new(open(path, format)))));
        let disks: Vec<Shared> = disks.collect();
        let config = VmConfig {
            name: "vm".into(),
            cpus: 1,
            memory_bytes: 8 << 20,
            cpu: CpuLevel::Portable,
            backing: MemoryBacking::default(),
            translator: Translator::default(),
        };
        let parts = Parts {
            disks: disks.iter().map(|disk| Box::new(disk.clone()) as Box<dyn BlockBackend>).collect(),
            cards: Vec::new(),
            console: Box::new(Silent),
            entropy: Box::new(SeededEntropy::new(1, 0)),
        };
        let boot = Boot::Flat { program: &PROGRAM, address: 0x10_0000, rsi: COUNTER };
        let vm = Vm::boot(config.clone(), &boot, parts, EngineKind::Soft, InputMode::Live).unwrap();
        let described = paths.into_iter().enumerate().map(|(number, path)| SnapshotDisk {
            path,
            read_only: false,
            mode: 0o600,
            base: (number == 2).then(|| SnapshotBase {
                path: base.path.clone(),
                format: base.format,
                content: BaseIdentity::Zeros,
            }),
        });
        let head = SnapshotHead {
            config,
            spec: String::new(),
            disks: described.collect(),
            has_memory,
            taken_unix_ns: 0,
            heeds_generation: false,
        };
        Self { folder, disks, vm, head }
    }

    fn run(&mut self, instructions: u64) {
        let from = self.vm.instructions().unwrap();
        self.vm.run(Some(from + instructions)).unwrap();
    }

    /// What the disks show.
    fn content(&self) -> Vec<Vec<u8>> {
        let read = |disk: &Shared| {
            let mut content = vec![0; DISK_BYTES as usize];
            disk.read_at(0, &mut content).unwrap();
            content
        };
        self.disks.iter().map(read).collect()
    }

    fn memory(&self) -> Vec<u8> {
        let ram = self.vm.platform().ram();
        let mut memory = vec![0; (ram.pages() * PAGE_BYTES) as usize];
        assert!(ram.read_offset(0, &mut memory));
        memory
    }

    fn spill() -> Arc<Spill> {
        Arc::new(Spill::new(tempfile::tempfile().unwrap()))
    }

    /// Reads a snapshot into disks of its own.
    fn restored(&self, file: &[u8]) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = |number: usize| folder.path().join(number.to_string());
        let place = |number| {
            let file = File::options().read(true).write(true).create_new(true).open(path(number))?;
            Ok(SnapshotPlace { file, path: path(number) })
        };
        let snapshot = Snapshot::open(file).unwrap();
        assert_ne!(snapshot.head().taken_unix_ns, 0);
        let memory = if self.head.has_memory {
            let ram = snapshot.read(place).unwrap().ram;
            let mut memory = vec![0; (ram.pages() * PAGE_BYTES) as usize];
            ram.read_offset(0, &mut memory);
            Some(memory)
        } else {
            snapshot.read_disks(place).unwrap();
            None
        };
        let contents = FORMATS.iter().enumerate().map(|(number, format)| {
            let mut content = vec![0; DISK_BYTES as usize];
            open(&path(number), *format).read_at(0, &mut content).unwrap();
            content
        });
        (contents.collect(), memory)
    }
}

/// Changes disks in ways that look like nothing, until it is told to stop.
fn hammer(disks: &[Shared], seed: u64, is_over: &AtomicBool, done: &AtomicU64) {
    let mut random = seed;
    while !is_over.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (offset, length) = ((random >> 20) % (DISK_BYTES / 512) * 512, (random >> 40) % 200 * 512);
        let length = length.min(DISK_BYTES - offset);
        for disk in disks {
            match random >> 60 {
                0 => disk.discard(offset, length).unwrap(),
                1 => disk.write_zeroes(offset, length, true).unwrap(),
                _ => disk.write_at(offset, &vec![(random >> 50) as u8; length as usize]).unwrap(),
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Lets the guest and those who write to its disks go on for a while.
fn goes_on(place: &mut Place, done: &AtomicU64) {
    let enough = done.load(Ordering::Relaxed) + 200;
    place.run(200_000);
    while done.load(Ordering::Relaxed) < enough {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_snapshot_holds_what_was_there_in_the_pause_however_long_its_file_takes() {
    for has_memory in [false, true] {
        let mut place = Place::new(has_memory);
        for round in 0..3 {
            let (is_over, done) = (AtomicBool::new(false), AtomicU64::new(0));
            let disks = place.disks.clone();
            // What is there before each round.
            thread::scope(|scope| {
                scope.spawn(|| hammer(&disks, round, &is_over, &done));
                goes_on(&mut place, &done);
                is_over.store(true, Ordering::Relaxed);
            });
            let (expected, memory) = (place.content(), place.memory());
            let frozen = place.vm.freeze(&place.head, &Place::spill()).unwrap();
            let (mut output, input) = io::pipe().unwrap();
            let (head, is_written) = (place.head.clone(), AtomicBool::new(false));
            let is_over = AtomicBool::new(false);
            let (file, is_early, second) = thread::scope(|scope| {
                scope.spawn(|| {
                    frozen.write(&head, input, &AtomicBool::new(false)).unwrap();
                    is_written.store(true, Ordering::Relaxed);
                });
                scope.spawn(|| hammer(&disks, round + 100, &is_over, &done));
                goes_on(&mut place, &done);
                let is_early = is_written.load(Ordering::Relaxed);
                // There is no second one meanwhile.
                let second = place.vm.freeze(&place.head, &Place::spill()).err();
                let mut file = Vec::new();
                output.read_to_end(&mut file).unwrap();
                is_over.store(true, Ordering::Relaxed);
                (file, is_early, second)
            });
            assert!(!is_early, "a pipe that nobody reads has taken all of it");
            let second = second.unwrap().to_string();
            assert!(second.contains("another snapshot"), "{second}");
            assert!(place.content() != expected, "nothing was written meanwhile");
            let (found, found_memory) = place.restored(&file);
            for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(found == expected, "disk {number} in round {round}");
            }
            assert_ne!(place.memory(), memory, "the guest stood still");
            assert!(found_memory.is_none_or(|found| found == memory), "memory in round {round}");
        }
    }
}

#[test]
fn a_snapshot_that_is_given_up_leaves_the_vm_as_it_is() {
    for has_memory in [false, true] {
        let mut place = Place::new(has_memory);
        place.disks[0].write_at(0, &[1; 4096]).unwrap();
        let frozen = place.vm.freeze(&place.head, &Place::spill()).unwrap();
        let given_up = frozen.write(&place.head, Vec::new(), &AtomicBool::new(true)).unwrap_err();
        assert!(matches!(given_up, VmError::Snapshot(FormatError::Cancelled)), "{given_up}");
        place.run(10_000);
        let expected = place.content();
        let file = place.vm.freeze(&place.head, &Place::spill()).unwrap();
        let file = file.write(&place.head, Vec::new(), &AtomicBool::new(false)).unwrap();
        assert!(place.restored(&file).0 == expected);
    }
}

#[test]
fn a_disk_that_is_based_on_another_file_than_the_head_says_is_refused() {
    let mut place = Place::new(false);
    let frozen = place.vm.freeze(&place.head, &Place::spill()).unwrap();
    place.head.disks[2].base.as_mut().unwrap().path = place.folder.path().join("0");
    let file = frozen.write(&place.head, Vec::new(), &AtomicBool::new(false)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let read = Snapshot::open(&file[..]).unwrap().read_disks(|number| {
        let path = folder.path().join(number.to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(SnapshotPlace { file, path })
    });
    let error = read.unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("based on another file"), "{error}");
}
