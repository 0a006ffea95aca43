//! What a guest's disks hold, told by one process and backed up by another.

#[allow(dead_code, reason = "the tests of repositories use the rest")]
mod support;

use backup::{Backup, BackupError, StreamWriter, back_up_stream};
use proptest::prelude::*;
use spec::DiskFormat;
use storage::disk::{Backing, DiskImage, DiskOptions, create_qcow2, create_raw};

use support::{Place, noise, of, read};

const MIB: u64 = 1 << 20;

fn open(path: &std::path::Path, format: DiskFormat) -> DiskImage {
    DiskImage::open(path, DiskOptions { format: Some(format), read_only: false, direct: false }).unwrap()
}

#[test]
fn a_disk_is_told_with_what_it_is_based_on_and_without_what_is_zero() {
    let place = Place::new();
    let at = |name: &str| place.root.path().join(name);
    create_raw(&at("base.raw"), 40 * MIB).unwrap();
    let mut base = open(&at("base.raw"), DiskFormat::Raw);
    base.write_at(3 * MIB + 11, &noise(1, 2 << 20)).unwrap();
    base.write_at(30 * MIB, &noise(2, 100_000)).unwrap();
    drop(base);
    let on = |path, format| Some(Backing { path, format });
    create_qcow2(&at("middle.qcow2"), 48 * MIB, on(at("base.raw"), DiskFormat::Raw).as_ref()).unwrap();
    let mut middle = open(&at("middle.qcow2"), DiskFormat::Qcow2);
    middle.write_at(4 * MIB, &noise(3, 5000)).unwrap();
    middle.write_at(45 * MIB, b"beyond the end of what it is based on").unwrap();
    middle.write_zeroes(30 * MIB, MIB, false).unwrap();
    drop(middle);
    create_qcow2(&at("top.qcow2"), 50 * MIB, on(at("middle.qcow2"), DiskFormat::Qcow2).as_ref()).unwrap();
    let mut top = open(&at("top.qcow2"), DiskFormat::Qcow2);
    top.write_at(49 * MIB + 512, b"end").unwrap();
    let mut told = Vec::new();
    let mut stream = StreamWriter::new(&mut told);
    stream.file("kernel", 5, &b"12345"[..]).unwrap();
    assert!(StreamWriter::new(Vec::new()).file("kernel", 6, &b"12345"[..]).is_err());
    stream.disk("disk0", &mut top).unwrap();
    stream.end().unwrap();
    assert!(told.len() < 4 << 20, "{}", told.len());

    let repository = place.open();
    let mut backup = Backup::begin(&repository, of("shop", 1)).unwrap();
    let mut bytes = 0;
    back_up_stream(&told[..], &mut backup, |so_far| {
        bytes = so_far;
        true
    })
    .unwrap();
    assert!(bytes > 2 << 20);
    let point = backup.commit().unwrap();
    let mut expected = vec![0; 50 << 20];
    top.read_at(0, &mut expected).unwrap();
    assert_eq!(&expected[(3 << 20) + 11..][..100], &noise(1, 100)[..]);
    assert!(read(&repository, &point, "disk0").unwrap() == expected);
    assert_eq!(read(&repository, &point, "kernel").unwrap(), b"12345");
    let mut backup = Backup::begin(&repository, of("shop", 1)).unwrap();
    let cancelled = back_up_stream(&told[..], &mut backup, |bytes| bytes < 1 << 20);
    assert!(matches!(cancelled, Err(BackupError::Cancelled)), "{cancelled:?}");
    drop(backup);
    // One that is cut short anywhere leaves no point.
    for cut in [0, 1, 5, 16, 30, 1000, told.len() - 1] {
        let mut backup = Backup::begin(&repository, of("shop", 1)).unwrap();
        let error = back_up_stream(&told[..cut], &mut backup, |_| true).unwrap_err();
        assert!(matches!(error, BackupError::Source(_)), "{cut}: {error}");
    }
    assert_eq!(repository.points().unwrap().points.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever tells it may have been taken over by a guest.
    #[test]
    fn nothing_that_is_told_does_more_than_fail(
        told in prop::collection::vec(prop_oneof![
            (any::<u8>(), any::<u64>()).prop_map(|(name, bytes)| [&[1, 1, name % 3][..], &(bytes >> (bytes % 64)).to_le_bytes()].concat()),
            (any::<u64>(), 0..300_000u32, any::<u8>()).prop_map(|(offset, length, byte)| {
                let content = vec![byte; (length % 1000) as usize];
                let length = if length.is_multiple_of(7) { length } else { content.len() as u32 };
                [&[2][..], &(offset >> (offset % 64)).to_le_bytes(), &length.to_le_bytes(), &content].concat()
            }),
            Just(vec![3]),
            prop::collection::vec(any::<u8>(), 0..20),
        ], 0..12)
    ) {
        let place = Place::new();
        let repository = place.open();
        let mut backup = Backup::begin(&repository, of("shop", 1)).unwrap();
        if back_up_stream(&told.concat()[..], &mut backup, |_| true).is_ok() {
            let point = backup.commit().unwrap();
            prop_assert!(repository.verify(|_| ()).unwrap().is_good(), "{:?}", point.volumes);
        }
    }
}
