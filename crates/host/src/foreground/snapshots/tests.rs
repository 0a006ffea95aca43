use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;

use machine::devices::serial::ConsoleSink;
use machine::vm::Boot;
use storage::disk::{ImageForm, create_qcow2};
use tempfile::TempDir;

use super::*;

/// A console that nobody reads.
struct Silent;

impl ConsoleSink for Silent {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// A VM that has disks and no need to run.
struct Place {
    folder: TempDir,
    spec: VmSpec,
}

const SIZE_BYTES: u64 = 1 << 20;

/// What an image shows, and what it is.
fn shown(path: &Path, format: DiskFormat) -> (ImageForm, Vec<u8>) {
    let mut image = DiskImage::open(path, DiskOptions { format: Some(format), ..DiskOptions::default() }).unwrap();
    let mut content = vec![0; image.size_bytes() as usize];
    image.read_at(0, &mut content).unwrap();
    (image.form(), content)
}

fn go_on(restoring: Restoring) -> Result<Vm> {
    let Restoring { disks, saved } = restoring;
    saved.go_on(open::parts(disks, Vec::new(), Box::new(Silent))?, EngineKind::Soft, InputMode::Live)
}

impl Place {
    fn new(disks: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut text = "name = \"vm\"\nmemory = \"64M\"\nkernel = \"kernel\"\n".to_owned();
        for disk in disks {
            text += &format!("[[disk]]\n{disk}\n");
        }
        let mut spec = VmSpec::parse(&text).unwrap();
        for disk in &mut spec.disks {
            disk.path = folder.path().join(&disk.path);
        }
        Self { folder, spec }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn raw(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, vec![byte; SIZE_BYTES as usize]).unwrap();
        path
    }

    /// An overlay of a raw image, with something of its own.
    fn overlay(&self, name: &str, base: &str) -> PathBuf {
        let path = self.path(name);
        let backing = Backing { path: self.path(base), format: DiskFormat::Raw };
        create_qcow2(&path, SIZE_BYTES, Some(&backing)).unwrap();
        let options = DiskOptions { format: Some(DiskFormat::Qcow2), ..DiskOptions::default() };
        let mut image = DiskImage::open(&path, options).unwrap();
        image.write_at(SIZE_BYTES / 2, b"before").unwrap();
        image.flush().unwrap();
        path
    }

    fn snapshot(&self) -> Result<PathBuf> {
        self.snapshot_at("vm.snapshot")
    }

    fn snapshot_at(&self, name: &str) -> Result<PathBuf> {
        let file = self.path(name);
        let images = open::disks(&self.spec)?;
        let disks = SnapshotDisks::of(&images);
        let parts = open::parts(images, Vec::new(), Box::new(Silent))?;
        let boot = Boot::Flat { program: &[0xeb, 0xfe], address: 0x10_0000, rsi: 0 };
        let mut vm = Vm::boot(open::config(&self.spec)?, &boot, parts, EngineKind::Soft, InputMode::Live)?;
        write(&mut vm, &self.spec, &disks, &file, Holds::Memory)?;
        Ok(file)
    }

    fn restore(&self) -> Result<Vm> {
        let file = self.path("vm.snapshot");
        let (spec, snapshot) = open_snapshot(&file)?;
        let restoring = Restoring::begin(&file, &spec, snapshot)?;
        go_on(restoring)
    }

    /// Of the disks alone, of the VM while it is off.
    fn snapshot_disks(&self) -> Result<PathBuf> {
        let file = self.path("vm.snapshot");
        write_disks(&self.spec, open::disks(&self.spec)?, &file)?;
        Ok(file)
    }

    fn restore_disks(&self) -> Result<()> {
        let file = self.path("vm.snapshot");
        let (spec, snapshot) = open_snapshot(&file)?;
        restore_disks(&file, &spec, snapshot)
    }

    /// A restore that must fail, say all of this, and change nothing.
    #[track_caller]
    fn refuses(&self, expected: &[&str]) {
        let before = self.everything();
        let Err(error) = self.restore() else { panic!("it was restored; expected {expected:?}") };
        let message = format!("{error:#}");
        for text in expected {
            assert!(message.contains(text), "{text:?} is not in: {message}");
        }
        assert!(!message.contains('\n'), "{message}");
        assert!(self.everything() == before, "changed by a restore that failed: {message}");
    }

    /// Names, kinds, permissions and contents of all files but kept digests.
    fn everything(&self) -> Vec<(PathBuf, u32, u64, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_none_or(|ending| ending != "identity"))
            .map(|path| {
                let metadata = fs::symlink_metadata(&path).unwrap();
                let content = fs::read(&path).unwrap_or_default();
                (path, metadata.mode(), metadata.ino(), content)
            })
            .collect();
        files.sort();
        files
    }
}

#[test]
fn row_2_a_disk_is_restored_by_the_format_of_its_spec_whatever_its_name() {
    for (disk, format) in [
        ("path = \"root.img\"\nformat = \"qcow2\"", "qcow2"),
        ("path = \"root\"\nformat = \"qcow2\"", "qcow2"),
        ("path = \"root.qcow2\"\nformat = \"raw\"", "raw"),
        // Found out when the VM was started, and not again.
        ("path = \"root.qcow2\"", "qcow2"),
    ] {
        let place = Place::new(&[disk]);
        let path = place.spec.disks[0].path.clone();
        let name = path.file_name().unwrap().to_str().unwrap();
        place.raw("base", 1);
        if format == "raw" {
            place.raw(name, 2)
        } else {
            place.overlay(name, "base")
        };
        let before = shown(&path, format.parse().unwrap());
        let file = place.snapshot().unwrap();
        // Even under a name that would say something else.
        let (spec, _) = open_snapshot(&file).unwrap();
        assert_eq!(spec.disks[0].format.unwrap().to_string(), format);
        fs::write(&path, [9; 70_000]).unwrap();
        let vm = place.restore().unwrap_or_else(|error| panic!("{disk}: {error:#}"));
        drop(vm);
        assert!(shown(&path, format.parse().unwrap()) == before, "{disk}");
    }
}

#[test]
fn row_3_the_content_that_is_replaced_is_of_no_interest() {
    let place = Place::new(&["path = \"disk.qcow2\"\nformat = \"qcow2\""]);
    place.raw("base", 1);
    let disk = place.overlay("disk.qcow2", "base");
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o640)).unwrap();
    let before = shown(&disk, DiskFormat::Qcow2);
    place.snapshot().unwrap();
    let harms: [(&str, &dyn Fn()); 4] = [
        ("empty", &|| File::options().write(true).open(&disk).unwrap().set_len(0).unwrap()),
        ("cut short", &|| File::options().write(true).open(&disk).unwrap().set_len(777).unwrap()),
        ("something else", &|| fs::write(&disk, [0x55; 100_000]).unwrap()),
        ("missing", &|| fs::remove_file(&disk).unwrap()),
    ];
    for (what, harm) in harms {
        harm();
        drop(place.restore().unwrap_or_else(|error| panic!("{what}: {error:#}")));
        assert!(shown(&disk, DiskFormat::Qcow2) == before, "{what}");
        assert_eq!(fs::metadata(&disk).unwrap().mode() & 0o7777, 0o640, "{what}");
    }
}

#[test]
fn row_4_a_restore_that_fails_changes_nothing() {
    let disks = [
        "path = \"first.img\"\nformat = \"raw\"",
        "path = \"data.img\"\nformat = \"raw\"\nreadonly = true",
        "path = \"second.img\"\nformat = \"raw\"",
    ];
    let place = Place::new(&disks);
    let (first, data, second) = (place.raw("first.img", 1), place.raw("data.img", 2), place.raw("second.img", 3));
    let file = place.snapshot().unwrap();
    place.raw("first.img", 11);
    place.raw("second.img", 13);
    let away = place.path("away");
    // What a restore needs and does not find.
    fs::rename(&data, &away).unwrap();
    place.refuses(&["data.img", "cannot be used", "No such file"]);
    place.raw("data.img", 5);
    place.refuses(&["data.img", "does not hold what it held"]);
    fs::rename(&away, &data).unwrap();
    // A disk that another VM has.
    let held = DiskImage::open(&second, DiskOptions { format: Some(DiskFormat::Raw), ..DiskOptions::default() });
    place.refuses(&["second.img", "in use"]);
    drop(held);
    fs::hard_link(&second, place.path("other name")).unwrap();
    place.refuses(&["second.img", "2 names"]);
    fs::remove_file(place.path("other name")).unwrap();
    // A snapshot that is damaged at its end, behind the first disk.
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    let end = bad.len() - 100;
    bad[end] ^= 1;
    fs::write(&file, bad).unwrap();
    place.refuses(&["vm.snapshot", "damaged"]);
    fs::write(&file, good).unwrap();
    drop(place.restore().unwrap());
    for (path, byte) in [(first, 1), (data, 2), (second, 3)] {
        assert!(fs::read(&path).unwrap() == vec![byte; SIZE_BYTES as usize], "{}", path.display());
    }
}

#[test]
fn row_4_a_vm_that_cannot_be_made_here_leaves_its_disks_alone() {
    let place = Place::new(&["path = \"disk.img\"\nformat = \"raw\""]);
    let disk = place.raw("disk.img", 1);
    let file = place.snapshot().unwrap();
    place.raw("disk.img", 2);
    let (spec, snapshot) = open_snapshot(&file).unwrap();
    let mut restoring = Restoring::begin(&file, &spec, snapshot).unwrap();
    // Found out by the engine alone.
    restoring.saved.content.state.engine.processors.vcpus.clear();
    let made = go_on(restoring);
    assert!(format!("{:#}", made.err().unwrap()).contains("vCPUs"));
    assert!(fs::read(&disk).unwrap() == vec![2; SIZE_BYTES as usize]);
    assert_eq!(place.everything().len(), 2, "something is left behind");
}

#[test]
fn a_snapshot_takes_the_place_of_no_disk_by_whatever_name() {
    let place = Place::new(&["path = \"disk.img\"\nformat = \"raw\""]);
    place.raw("disk.img", 1);
    fs::hard_link(place.path("disk.img"), place.path("same")).unwrap();
    symlink("disk.img", place.path("link")).unwrap();
    let before = place.everything();
    for name in ["disk.img", "same", "link"] {
        let message = format!("{:#}", place.snapshot_at(name).unwrap_err());
        assert!(message.contains(name) && message.contains("place of a disk of this VM"), "{message}");
    }
    assert!(place.everything() == before);
}

#[test]
fn row_5_links_modes_and_owners_are_kept_and_a_snapshot_is_private() {
    let place = Place::new(&["path = \"link\"\nformat = \"raw\"", "path = \"plain.img\"\nformat = \"raw\""]);
    fs::create_dir(place.path("elsewhere")).unwrap();
    let (target, plain) = (place.raw("elsewhere/target", 1), place.raw("plain.img", 2));
    symlink("elsewhere/target", place.path("second link")).unwrap();
    symlink("second link", place.path("link")).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o664)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&plain, Some(4321), Some(1234)).unwrap();
    }
    // A file of the same name that anybody could read.
    fs::write(place.path("vm.snapshot"), b"old").unwrap();
    fs::set_permissions(place.path("vm.snapshot"), fs::Permissions::from_mode(0o644)).unwrap();
    let file = place.snapshot().unwrap();
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    let before = [&target, &plain].map(|path| fs::metadata(path).unwrap());
    place.raw("elsewhere/target", 8);
    place.raw("plain.img", 9);
    drop(place.restore().unwrap());
    assert_eq!(fs::read_link(place.path("link")).unwrap(), Path::new("second link"));
    assert_eq!(fs::read_link(place.path("second link")).unwrap(), Path::new("elsewhere/target"));
    for ((path, before), byte) in [&target, &plain].into_iter().zip(before).zip([1, 2]) {
        let after = fs::symlink_metadata(path).unwrap();
        assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
        assert!(fs::read(path).unwrap() == vec![byte; SIZE_BYTES as usize]);
    }
    assert_eq!(fs::read_dir(place.path("elsewhere")).unwrap().count(), 1);
}

/// A device of its own over a file, where the system lets us have one.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(name.trim().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn row_5_a_block_device_is_refused_at_the_snapshot_and_stays_one() {
    let mut place = Place::new(&["path = \"disk\"\nformat = \"raw\""]);
    let Some(device) = LoopDevice::over(&place.raw("behind", 1)) else {
        eprintln!("skipped: there are no loop devices here");
        return;
    };
    symlink(&device.0, place.path("disk")).unwrap();
    for path in [place.path("disk"), device.0.clone()] {
        place.spec.disks[0].path = path;
        let message = format!("{:#}", place.snapshot().unwrap_err());
        assert!(message.contains("is a block device"), "{message}");
        assert!(!place.path("vm.snapshot").exists());
    }
    assert!(fs::metadata(&device.0).unwrap().file_type().is_block_device());
    // One that is only read is fine: it has to be there, with what it held.
    place.spec.disks[0].readonly = true;
    place.snapshot().unwrap();
    drop(place.restore().unwrap());
    fs::write(place.path("other"), [7; 4096]).unwrap();
    Command::new("dd")
        .arg("if=/dev/zero")
        .arg(format!("of={}", device.0.display()))
        .args(["bs=4096", "count=1"])
        .output()
        .unwrap();
    place.refuses(&["does not hold what it held"]);
}

#[test]
fn row_6_a_base_that_was_rebuilt_is_refused_by_name() {
    let place = Place::new(&["path = \"root.qcow2\"\nformat = \"qcow2\""]);
    let base = place.raw("base.img", 1);
    let disk = place.overlay("root.qcow2", "base.img");
    place.snapshot().unwrap();
    let copy = place.path("copy");
    fs::rename(&base, &copy).unwrap();
    place.refuses(&["root.qcow2", "base.img", "No such file"]);
    // Of the same size.
    place.raw("base.img", 2);
    place.refuses(&["root.qcow2", "based on", "base.img", "does not hold what it held"]);
    // Another one with the same content is as good.
    fs::remove_file(&base).unwrap();
    fs::copy(&copy, &base).unwrap();
    drop(place.restore().unwrap());
    let options = DiskOptions { format: Some(DiskFormat::Qcow2), ..DiskOptions::default() };
    let mut bytes = [0; 6];
    DiskImage::open(&disk, options).unwrap().read_at(SIZE_BYTES / 2, &mut bytes).unwrap();
    assert_eq!(&bytes, b"before");
}

#[test]
fn row_6_what_a_base_is_based_on_itself_counts_as_well() {
    let place = Place::new(&["path = \"top.qcow2\"\nformat = \"qcow2\""]);
    place.raw("bottom.img", 1);
    let middle = place.overlay("middle.qcow2", "bottom.img");
    let backing = Backing { path: middle, format: DiskFormat::Qcow2 };
    create_qcow2(&place.path("top.qcow2"), SIZE_BYTES, Some(&backing)).unwrap();
    place.snapshot().unwrap();
    place.raw("bottom.img", 2);
    place.refuses(&["top.qcow2", "middle.qcow2", "does not hold what it held"]);
}

#[test]
fn row_7_each_restored_vm_is_another_one_and_its_kernel_is_told() {
    let place = Place::new(&[]);
    place.snapshot().unwrap();
    let ids: Vec<_> = (0..2)
        .map(|_| {
            let mut vm = place.restore().unwrap();
            assert_ne!(vm.save().unwrap().platform.power.events & machine::devices::power::EVENT_GENERATION, 0);
            GenerationId::of(vm.platform().ram()).unwrap()
        })
        .collect();
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn a_snapshot_does_not_take_the_place_of_a_disk() {
    let mut place =
        Place::new(&["path = \"vm.snapshot\"\nformat = \"raw\"", "path = \"data\"\nformat = \"raw\"\nreadonly = true"]);
    place.raw("vm.snapshot", 1);
    let data = place.raw("data", 2);
    let message = format!("{:#}", place.snapshot().unwrap_err());
    assert!(message.contains("take the place of a disk of this VM"), "{message}");
    place.spec.disks.remove(0);
    fs::remove_file(place.path("vm.snapshot")).unwrap();
    symlink(&data, place.path("vm.snapshot")).unwrap();
    assert!(format!("{:#}", place.snapshot().unwrap_err()).contains("take the place of a disk of this VM"));
    assert!(fs::read(&data).unwrap() == vec![2; SIZE_BYTES as usize]);
}

#[test]
fn disks_alone_are_restored_all_or_none_and_start_no_vm() {
    let place = Place::new(&[
        "path = \"base\"\nformat = \"raw\"\nreadonly = true",
        "path = \"a\"\nformat = \"raw\"",
        "path = \"b\"\nformat = \"qcow2\"",
    ]);
    place.raw("base", 1);
    place.raw("a", 2);
    place.overlay("b", "base");
    let file = place.snapshot_disks().unwrap();
    let both = || [shown(&place.path("a"), DiskFormat::Raw), shown(&place.path("b"), DiskFormat::Qcow2)];
    let before = both();
    assert!(!open_snapshot(&file).unwrap().1.head().has_memory);
    // It is no VM.
    place.refuses(&["vm.snapshot", "disks alone"]);
    place.raw("a", 3);
    fs::write(place.path("b"), "of no interest").unwrap();
    // What the disks are based on has changed.
    place.raw("base", 4);
    let error = format!("{:#}", place.restore_disks().unwrap_err());
    assert!(error.contains("base") && error.contains("put the old file back"), "{error}");
    assert_eq!(fs::read(place.path("b")).unwrap(), b"of no interest");
    place.raw("base", 1);
    let good = fs::read(&file).unwrap();
    fs::write(&file, &good[..good.len() - 8]).unwrap();
    let error = format!("{:#}", place.restore_disks().unwrap_err());
    assert!(error.contains("cut short"), "{error}");
    assert!(fs::read(place.path("a")).unwrap().iter().all(|&byte| byte == 3));
    fs::write(&file, &good).unwrap();
    place.restore_disks().unwrap();
    assert!(both() == before);
    // A disk that somebody has is not replaced.
    let held = open::disks(&place.spec).unwrap();
    assert!(format!("{:#}", place.restore_disks().unwrap_err()).contains("in use"));
    assert!(place.snapshot_disks().is_err());
    drop(held);
    // One with memory is no snapshot of disks.
    place.snapshot().unwrap();
    assert!(format!("{:#}", place.restore_disks().unwrap_err()).contains("memory included"));
}
