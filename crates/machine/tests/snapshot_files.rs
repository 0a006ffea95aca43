//! Snapshot files of the format before, as a twinvm of then wrote them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use machine::vm::{Snapshot, SnapshotPlace, VmError};

const DISKS: &[u8] = include_bytes!("fixtures/format-6-disks.snapshot");
const MEMORY: &[u8] = include_bytes!("fixtures/format-6-memory.snapshot");

fn place(path: &Path) -> std::io::Result<SnapshotPlace> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    Ok(SnapshotPlace { file, path: path.to_owned() })
}

/// The disk that both were taken of.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[8192..12288].fill(0xa5);
    disk[(1 << 20) - 4096..][..19].copy_from_slice(b"the end of the disk");
    disk
}

#[test]
fn disks_of_the_format_before_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let snapshot = Snapshot::open(DISKS).unwrap();
    assert_eq!((snapshot.head().has_memory, snapshot.head().disks[0].mode), (false, 0o640));
    snapshot.read_disks(|_| place(&path)).unwrap();
    assert!(std::fs::read(&path).unwrap() == disk());
}

#[test]
fn a_vm_of_the_format_before_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let snapshot = Snapshot::open(MEMORY).unwrap();
    let content = snapshot.read(|_| place(&path)).unwrap();
    assert_eq!(content.state.engine.processors.instructions, 50_000);
    // Where its program was loaded.
    assert_ne!(content.ram.load::<u64>(0x10_0000), Some(0));
    let mut read = vec![0; 1 << 20];
    File::open(&path).unwrap().read_exact_at(&mut read, 0).unwrap();
    assert!(read == disk());
}

#[test]
fn other_formats_are_refused_by_name() {
    for version in [5u32, 8] {
        let mut file = DISKS[..12].to_vec();
        file[8..].copy_from_slice(&version.to_le_bytes());
        file.extend(crc32fast::hash(&file).to_le_bytes());
        let Err(VmError::Snapshot(error)) = Snapshot::open(&file[..]) else { panic!("format {version} is read") };
        assert!(
            error.to_string().contains(&format!("format {version}, and this twinvm reads formats 6 to 7")),
            "{error}"
        );
    }
}
