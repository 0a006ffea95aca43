//! Disk images against a plain vector of bytes, against `qemu-img`, and against damage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use spec::DiskFormat;
use storage::disk::{Backing, DiskError, DiskImage, DiskOptions, create_qcow2, create_raw};

/// Not a multiple of qcow2's clusters, so that their end is tested.
const SIZE: u64 = 1_000_448;

fn create(path: &Path, format: DiskFormat) {
    match format {
        DiskFormat::Raw => create_raw(path, SIZE).unwrap(),
        DiskFormat::Qcow2 => create_qcow2(path, SIZE, None).unwrap(),
    }
}

fn open(path: &Path, format: DiskFormat) -> DiskImage {
    DiskImage::open(path, DiskOptions { format: Some(format), ..DiskOptions::default() }).unwrap()
}

fn open_read_only(path: &Path, format: DiskFormat) -> Result<DiskImage, DiskError> {
    DiskImage::open(path, DiskOptions { format: Some(format), read_only: true, direct: false })
}

fn error(result: Result<DiskImage, DiskError>) -> DiskError {
    match result {
        Ok(image) => panic!("{} could be opened", image.path().display()),
        Err(error) => error,
    }
}

fn whole(image: &mut DiskImage) -> Vec<u8> {
    let mut content = vec![0xee; image.size_bytes() as usize];
    image.read_at(0, &mut content).unwrap();
    content
}

/// `qemu-img check` finds no fault. Where it is not installed, there is nothing to say.
fn assert_qemu_img_agrees(path: &Path) {
    if let Ok(output) = Command::new("qemu-img").args(["check", "-f", "qcow2", "-U"]).arg(path).output() {
        // 3: clusters that are counted but not used, as a killed writer may leave them.
        let sound = matches!(output.status.code(), Some(0 | 3));
        assert!(sound, "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Read(u64, usize),
    Flush,
    Kill,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Half of the ranges are whole sectors, as a guest's are; the others are anything.
    let range = prop_oneof![
        (0..SIZE / 512, 0..200_u64).prop_map(|(s, n)| (s * 512, n * 512)),
        (0..SIZE, 0..100_000_u64),
        (0..SIZE / 65536, 1..4_u64).prop_map(|(s, n)| (s * 65536, n * 65536)),
    ]
    .prop_map(|(offset, length)| (offset, length.min(SIZE - offset)));
    let step = prop_oneof![
        6 => (range.clone(), any::<u8>()).prop_map(|((o, l), byte)| Step::Write(o, l as usize, byte)),
        2 => (range.clone(), any::<bool>()).prop_map(|((o, l), unmap)| Step::Zero(o, l, unmap)),
        2 => range.clone().prop_map(|(o, l)| Step::Discard(o, l)),
        4 => range.prop_map(|(o, l)| Step::Read(o, l as usize)),
        1 => Just(Step::Flush),
        1 => Just(Step::Kill),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

/// Takes the file as it would be had the process been killed now: what was not `touched` since the last flush is there, and
/// the image can be written to without harm.
fn assert_survives_kill(path: &Path, format: DiskFormat, oracle: &[u8], touched: &[bool]) {
    let killed = path.with_extension("killed");
    fs::copy(path, &killed).unwrap();
    let mut disk = open(&killed, format);
    let content = whole(&mut disk);
    for (at, (found, expected)) in content.iter().zip(oracle).enumerate() {
        assert!(touched[at] || found == expected, "{at}: {found} instead of {expected}");
    }
    let everything: Vec<u8> = (0..SIZE).map(|i| (i / 11) as u8).collect();
    disk.write_at(0, &everything).unwrap();
    drop(disk);
    assert!(whole(&mut open(&killed, format)) == everything);
    if format == DiskFormat::Qcow2 {
        assert_qemu_img_agrees(&killed);
    }
}

/// Does the same to an image and to a vector, and compares.
fn run(path: &Path, format: DiskFormat, mut oracle: Vec<u8>, steps: &[Step]) {
    let mut image = Some(open(path, format));
    let mut touched = vec![false; oracle.len()];
    for step in steps {
        let disk = image.as_mut().unwrap();
        if let Step::Write(offset, length, _) = *step {
            touched[offset as usize..][..length].fill(true);
        }
        if let Step::Zero(offset, length, _) | Step::Discard(offset, length) = *step {
            touched[offset as usize..][..length as usize].fill(true);
        }
        match *step {
            Step::Write(offset, length, byte) => {
                let data: Vec<u8> = (0..length).map(|i| byte.wrapping_add((i / 7) as u8)).collect();
                disk.write_at(offset, &data).unwrap();
                oracle[offset as usize..][..length].copy_from_slice(&data);
            }
            Step::Zero(offset, length, may_unmap) => {
                disk.write_zeroes(offset, length, may_unmap).unwrap();
                oracle[offset as usize..][..length as usize].fill(0);
            }
            Step::Discard(offset, length) => {
                disk.discard(offset, length).unwrap();
                oracle[offset as usize..][..length as usize].fill(0);
            }
            Step::Read(offset, length) => {
                let mut data = vec![0xee; length];
                disk.read_at(offset, &mut data).unwrap();
                assert!(data == oracle[offset as usize..][..length], "{step:?}");
            }
            Step::Flush => {
                disk.flush().unwrap();
                touched.fill(false);
            }
            Step::Kill => assert_survives_kill(path, format, &oracle, &touched),
            Step::Reopen => {
                // The lock of the one must be gone before the other is opened.
                drop(image.take());
                image = Some(open(path, format));
            }
        }
    }
    let mut disk = image.unwrap();
    assert!(whole(&mut disk) == oracle);
    assert_survives_kill(path, format, &oracle, &touched);
    disk.flush().unwrap();
    // What is in the file now, without what closing the image would add.
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    assert!(whole(&mut open_read_only(&copy, format).unwrap()) == oracle);
    if format == DiskFormat::Qcow2 {
        assert_qemu_img_agrees(&copy);
    }
}

#[test]
fn a_read_without_a_wait_reads_the_same_or_says_that_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["disk.raw", "disk.qcow2"] {
        let path = folder.path().join(name);
        if name.ends_with("raw") { create_raw(&path, 1 << 20) } else { create_qcow2(&path, 1 << 20, None) }.unwrap();
        let mut image = DiskImage::open(&path, DiskOptions::default()).unwrap();
        image.write_at(4096, &[9; 4096]).unwrap();
        let mut read = [0; 4096];
        // Whether the host can tell depends on its file system.
        if image.read_cached(4096, &mut read) {
            assert!(name.ends_with("raw") && read == [9; 4096]);
        }
        assert!(!image.read_cached((1 << 20) - 512, &mut read));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn raw_images_keep_what_is_written(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        create(&path, DiskFormat::Raw);
        run(&path, DiskFormat::Raw, vec![0; SIZE as usize], &steps);
    }

    #[test]
    fn qcow2_images_keep_what_is_written(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        create(&path, DiskFormat::Qcow2);
        run(&path, DiskFormat::Qcow2, vec![0; SIZE as usize], &steps);
    }

    #[test]
    fn overlays_show_their_base_until_written(steps in steps(), base_is_qcow2 in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let format = if base_is_qcow2 { DiskFormat::Qcow2 } else { DiskFormat::Raw };
        let (base, path) = (dir.path().join("base.img"), dir.path().join("disk.qcow2"));
        create(&base, format);
        let content: Vec<u8> = (0..SIZE).map(|i| (i / 997) as u8).collect();
        open(&base, format).write_at(0, &content).unwrap();
        let before = fs::read(&base).unwrap();
        create_qcow2(&path, SIZE, Some(&Backing { path: base.clone(), format })).unwrap();
        run(&path, DiskFormat::Qcow2, content, &steps);
        assert!(fs::read(&base).unwrap() == before, "the base was written to");
    }
}

#[test]
fn a_flush_makes_writes_survive_the_process() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(&path, format);
        let mut image = open(&path, format);
        image.write_at(70_000, b"acknowledged").unwrap();
        image.flush().unwrap();
        // Never closed: neither its destructor nor its buffers can help.
        std::mem::forget(image);
        let copy = dir.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        let mut data = [0; 12];
        open(&copy, format).read_at(70_000, &mut data).unwrap();
        assert_eq!(&data, b"acknowledged", "{format}");
    }
}

#[test]
fn writers_exclude_everyone_and_readers_share() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    create(&path, DiskFormat::Raw);
    {
        let _writer = open(&path, DiskFormat::Raw);
        let refused = error(open_read_only(&path, DiskFormat::Raw)).to_string();
        assert!(
            refused.starts_with(&format!("{}: in use by another disk of this process: ", path.display())),
            "{refused}"
        );
        assert!(matches!(error(DiskImage::open(&path, DiskOptions::default())), DiskError::InUse { .. }));
    }
    let _reader = open_read_only(&path, DiskFormat::Raw).unwrap();
    let _second = open_read_only(&path, DiskFormat::Raw).unwrap();
    assert!(matches!(error(DiskImage::open(&path, DiskOptions::default())), DiskError::InUse { .. }));
}

#[test]
fn a_base_is_locked_while_an_overlay_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let base = Backing { path: dir.path().join("base.raw"), format: DiskFormat::Raw };
    create(&base.path, DiskFormat::Raw);
    let overlays = ["a.qcow2", "b.qcow2"].map(|name| dir.path().join(name));
    for path in &overlays {
        create_qcow2(path, SIZE, Some(&base)).unwrap();
    }
    let open_overlays = overlays.map(|path| open(&path, DiskFormat::Qcow2));
    assert!(matches!(error(DiskImage::open(&base.path, DiskOptions::default())), DiskError::InUse { .. }));
    drop(open_overlays);
    open(&base.path, DiskFormat::Raw);
}

#[test]
fn disks_grow_and_what_is_new_reads_as_zeros() {
    const BIGGER: u64 = 3 << 20;
    let dir = tempfile::tempdir().unwrap();
    let base = Backing { path: dir.path().join("base"), format: DiskFormat::Raw };
    fs::write(&base.path, vec![0x11; BIGGER as usize]).unwrap();
    for (name, format) in [("raw", DiskFormat::Raw), ("qcow2", DiskFormat::Qcow2), ("top", DiskFormat::Qcow2)] {
        let path = dir.path().join(name);
        if name == "top" {
            // Its base is longer: what the disk did not show before must not show afterwards.
            create_qcow2(&path, SIZE, Some(&base)).unwrap();
        } else {
            create(&path, format);
        }
        let mut image = open(&path, format);
        image.write_at(SIZE - 512, &[7; 512]).unwrap();
        let mut expected = whole(&mut image);
        let smaller = image.grow(SIZE - 512).unwrap_err();
        assert!(matches!(smaller, DiskError::BadSize { .. }) && image.size_bytes() == SIZE, "{smaller}");
        assert!(matches!(image.grow(BIGGER + 1), Err(DiskError::BadSize { .. })));
        image.grow(SIZE).unwrap();
        image.grow(BIGGER).unwrap();
        expected.resize(BIGGER as usize, 0);
        assert!(whole(&mut image) == expected, "{name}");
        // All of it can be written, in the same opening.
        image.write_at(BIGGER - 512, &[9; 512]).unwrap();
        image.flush().unwrap();
        drop(image);
        expected[BIGGER as usize - 512..].fill(9);
        assert!(whole(&mut open(&path, format)) == expected, "{name}");
        if format == DiskFormat::Qcow2 {
            assert_qemu_img_agrees(&path);
        }
        assert!(matches!(open_read_only(&path, format).unwrap().grow(BIGGER * 2), Err(DiskError::ReadOnly { .. })));
    }
}

#[test]
fn accesses_beyond_the_end_are_refused() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(&path, format);
        let mut image = open(&path, format);
        let mut data = [0; 512];
        for offset in [SIZE, SIZE - 511, u64::MAX, u64::MAX - 511, 1 << 63] {
            let refused = |result: Result<(), DiskError>| matches!(result, Err(DiskError::OutOfRange { .. }));
            assert!(refused(image.read_at(offset, &mut data)), "{format} {offset}");
            assert!(refused(image.write_at(offset, &data)), "{format} {offset}");
            assert!(refused(image.discard(offset, 512)), "{format} {offset}");
            assert!(refused(image.write_zeroes(offset, 512, false)), "{format} {offset}");
        }
        assert!(image.read_at(0, &mut []).is_ok() && image.read_at(SIZE, &mut []).is_ok());
        assert_eq!(image.size_bytes(), SIZE);
    }
}

#[test]
fn read_only_images_refuse_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    create(&path, DiskFormat::Qcow2);
    let before = fs::read(&path).unwrap();
    let mut image = open_read_only(&path, DiskFormat::Qcow2).unwrap();
    assert!(image.is_read_only());
    assert!(matches!(image.write_at(0, &[1]), Err(DiskError::ReadOnly { .. })));
    assert!(matches!(image.discard(0, 512), Err(DiskError::ReadOnly { .. })));
    image.flush().unwrap();
    drop(image);
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn a_guest_cannot_turn_its_raw_disk_into_qcow2() {
    let dir = tempfile::tempdir().unwrap();
    let (path, evil) = (dir.path().join("disk.img"), dir.path().join("evil.qcow2"));
    create(&path, DiskFormat::Raw);
    let secret = Backing { path: dir.path().join("secret"), format: DiskFormat::Raw };
    create_raw(&secret.path, SIZE).unwrap();
    create_qcow2(&evil, SIZE, Some(&secret)).unwrap();
    open(&path, DiskFormat::Raw).write_at(0, &fs::read(&evil).unwrap()).unwrap();

    assert!(matches!(error(DiskImage::open(&path, DiskOptions::default())), DiskError::UnclearFormat { .. }));
    let mut start = [0; 4];
    open(&path, DiskFormat::Raw).read_at(0, &mut start).unwrap();
    assert_eq!(&start, b"QFI\xfb", "raw stays raw when the user says so");
    assert_eq!(DiskImage::open(&evil, DiskOptions::default()).unwrap().format(), DiskFormat::Qcow2);
}

#[test]
fn what_cannot_be_a_disk_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = |path: &Path| error(DiskImage::open(path, DiskOptions::default())).to_string();
    assert!(text(&at("missing")).ends_with("missing: No such file or directory (os error 2)"));
    assert!(text(dir.path()).ends_with("neither a regular file nor a block device"));
    assert!(text(Path::new("/dev/zero")).ends_with("neither a regular file nor a block device"));
    fs::write(at("empty"), "").unwrap();
    assert!(text(&at("empty")).ends_with("a disk of 0 bytes is impossible: empty"));
    fs::write(at("odd"), "odd").unwrap();
    assert!(text(&at("odd")).ends_with("a disk of 3 bytes is impossible: not a multiple of 512"));
    fs::write(at("not.qcow2"), [0; 512]).unwrap();
    assert!(text(&at("not.qcow2")).contains("say which with format"));
    assert!(create_raw(&at("big"), 1 << 62).is_err() && !at("big").exists());
    assert!(matches!(create_raw(&at("odd"), 512), Err(DiskError::Open { .. })), "nothing is overwritten");
    let missing = Backing { path: at("missing"), format: DiskFormat::Raw };
    assert!(create_qcow2(&at("overlay"), SIZE, Some(&missing)).is_err() && !at("overlay").exists());
}

#[test]
fn loops_of_backing_files_end() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    create_qcow2(&a, SIZE, None).unwrap();
    create_qcow2(&b, SIZE, Some(&Backing { path: a.clone(), format: DiskFormat::Qcow2 })).unwrap();
    fs::remove_file(&a).unwrap();
    fs::copy(&b, &a).unwrap();
    assert!(matches!(error(open_read_only(&a, DiskFormat::Qcow2)), DiskError::Unsupported { .. }));
}

#[test]
fn direct_access_takes_any_alignment() {
    // Beside this file's program rather than in /tmp, which may be in memory and know no direct access.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (name, format) in [("disk.raw", DiskFormat::Raw), ("disk.qcow2", DiskFormat::Qcow2)] {
        let path = dir.path().join(name);
        create(&path, format);
        let options = DiskOptions { direct: true, ..DiskOptions::default() };
        let mut image = match DiskImage::open(&path, options) {
            Err(DiskError::Open { source, .. }) if source.kind() == std::io::ErrorKind::InvalidInput => return,
            other => other.unwrap(),
        };
        image.write_at(1_003, &[7; 5_000]).unwrap();
        image.flush().unwrap();
        let mut data = vec![0; 5_002];
        image.read_at(1_002, &mut data).unwrap();
        assert!(data[0] == 0 && data[5_001] == 0 && data[1..5_001].iter().all(|&byte| byte == 7));
    }
}

/// Opens a damaged image and uses all of it: errors are fine, panics, hangs and huge allocations are not.
fn survive(path: &Path) {
    if let Ok(mut image) = open_read_only(path, DiskFormat::Qcow2) {
        let mut data = vec![0; 1 << 16];
        for offset in (0..image.size_bytes()).step_by(data.len()).take(100) {
            let _ = image.read_at(offset, &mut data);
        }
    }
    let options = DiskOptions { format: Some(DiskFormat::Qcow2), ..DiskOptions::default() };
    let Ok(mut image) = DiskImage::open(path, options) else { return };
    let mut data = vec![0; 3 << 16];
    let last = image.size_bytes().saturating_sub(data.len() as u64);
    for offset in [0, 1 << 17, last] {
        let _ = image.read_at(offset, &mut data);
        let _ = image.write_at(offset, &data);
        let _ = image.discard(offset, 1 << 16);
        let _ = image.write_zeroes(offset, 1 << 16, false);
    }
    let _ = image.flush();
}

fn sample(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("disk.qcow2");
    let base = Backing { path: dir.join("base.raw"), format: DiskFormat::Raw };
    create_raw(&base.path, SIZE).unwrap();
    create_qcow2(&path, SIZE, Some(&base)).unwrap();
    let mut image = open(&path, DiskFormat::Qcow2);
    for offset in [0, 300_000, SIZE - 512] {
        image.write_at(offset, &[5; 512]).unwrap();
    }
    drop(image);
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

#[test]
fn damaged_headers_are_survived() {
    let dir = tempfile::tempdir().unwrap();
    let (path, good) = sample(dir.path());
    for at in 0..160 {
        for value in [0, 1, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at].wrapping_add(1)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            fs::write(&path, &bytes).unwrap();
            survive(&path);
        }
    }
    for length in (0..200).chain([good.len() / 2, good.len() - 1]) {
        fs::write(&path, &good[..length]).unwrap();
        survive(&path);
    }
}

/// Found by [`damage_anywhere_in_the_tables_is_survived`]: freeing a cluster that no refcount block covers sent the library
/// into endless recursion, and allocating with a missing first block overwrote the header.
#[test]
fn images_with_contradicting_tables_are_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let (path, good) = sample(dir.path());
    let be64 = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    let (l1, refcounts) = (be64(40), be64(48));
    let l2 = be64(l1) & 0xff_ffff_ffff_fe00;
    let refcount_block = be64(refcounts);
    for (at, entry, reason) in [
        (refcounts, 0, "the header at 0 has no refcount"),
        (refcounts, 0x30_0000_0000, "the header at 0 has no refcount"),
        (refcount_block, 0, "the header at 0 has no refcount"),
        (l1, 1 << 63, ""),
        (l1, 0x200, "does not begin at a cluster"),
        (l1, 0, ""),
        (l2, 1 << 63 | 0x5000_0000, "is beyond the file"),
        (l2, 1 << 63 | l2 as u64, "is in use for something else"),
        (l2, 1 << 63 | refcounts as u64, "is in use for something else"),
        (l2, 1 << 62 | 1 << 40, "compressed data at 1099511627776 is beyond the file"),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&u64::to_be_bytes(entry));
        fs::write(&path, &bytes).unwrap();
        survive(&path);
        fs::write(&path, &bytes).unwrap();
        let options = DiskOptions { format: Some(DiskFormat::Qcow2), ..DiskOptions::default() };
        match DiskImage::open(&path, options) {
            Ok(_) => assert_eq!(reason, "", "{at}"),
            Err(error) => {
                assert!(matches!(error, DiskError::Corrupt { .. }));
                assert!(!reason.is_empty() && error.to_string().contains(reason), "{error}");
            }
        }
    }
}

#[test]
fn damaged_headers_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (path, good) = sample(dir.path());
    for (at, value, reason) in [
        (7, 9, "only versions 2 and 3"),
        (23, 40, "clusters of 2^40 bytes"),
        (24, 0xff, "a disk of"),
        (35, 1, "encrypted"),
        (36, 0xff, "a first-level table of"),
        (56, 0xff, "a refcount table of"),
        (79, 2, "marked as corrupt"),
        (79, 4, "external data file"),
        (99, 77, "refcounts of 2^77 bits"),
    ] {
        let mut bytes = good.clone();
        bytes[at] = value;
        fs::write(&path, &bytes).unwrap();
        let text = error(open_read_only(&path, DiskFormat::Qcow2)).to_string();
        assert!(text.contains(reason) && text.contains("disk.qcow2"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_anywhere_in_the_tables_is_survived(
        damage in prop::collection::vec((0_usize..1 << 19, prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x80)]), 1..12)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut bytes) = sample(dir.path());
        // The tables are where a cluster begins; most of the rest is empty.
        for (place, value) in damage {
            let at = (place >> 16 << 16 | place & 0x3f) % bytes.len();
            bytes[at] = value;
        }
        fs::write(&path, &bytes).unwrap();
        survive(&path);
    }
}
