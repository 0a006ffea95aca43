//! Disks that are open here are in use for QEMU's programs, and the other way round.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use spec::DiskFormat;
use storage::disk::{Backing, DiskError, DiskImage, DiskOptions, create_qcow2, create_raw};

const SIZE: u64 = 1 << 20;

fn open(path: &Path, format: DiskFormat, read_only: bool) -> Result<DiskImage, DiskError> {
    DiskImage::open(path, DiskOptions { format: Some(format), read_only, direct: false })
}

fn run(program: &str, arguments: &[&str], path: &Path) -> Output {
    Command::new(program).args(arguments).arg(path).output().expect("qemu-utils is installed by `make setup`")
}

/// Runs a program of QEMU's on the image, which must say that somebody has it, and change nothing.
#[track_caller]
fn locked_out(program: &str, arguments: &[&str], path: &Path) {
    let before = fs::read(path).unwrap();
    let output = run(program, arguments, path);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("lock"), "{program} {arguments:?}: {message}");
    assert!(fs::read(path).unwrap() == before, "{program} {arguments:?} changed the image");
}

#[track_caller]
fn works(program: &str, arguments: &[&str], path: &Path) {
    let output = run(program, arguments, path);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A process of QEMU's that has an image open.
struct Qemu(Child);

impl Qemu {
    fn open(path: &Path, more: &[&str]) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(more).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("qemu-utils is installed by `make setup`");
        // It asks for commands once it has the image.
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).expect("qemu-io opens the image");
        Self(child)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Internal snapshots, repairs and new sizes under a running VM: after the first of them it never started again.
#[test]
fn row_10_the_disk_of_a_vm_is_in_use_for_qemus_programs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    create_qcow2(&path, SIZE, None).unwrap();
    let image = open(&path, DiskFormat::Qcow2, false).unwrap();
    locked_out("qemu-img", &["snapshot", "-c", "x"], &path);
    locked_out("qemu-img", &["check", "-f", "qcow2", "-r", "all"], &path);
    locked_out("qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", ""], &path);
    locked_out("qemu-img", &["info"], &path);
    locked_out("qemu-io", &["-f", "qcow2", "-c", "write 0 512"], &path);
    let resize =
        |path: &Path| Command::new("qemu-img").args(["resize", "-f", "qcow2"]).arg(path).arg("2M").output().unwrap();
    assert!(String::from_utf8_lossy(&resize(&path).stderr).contains("lock"));
    // Who asks for it by name may look at what changes.
    works("qemu-img", &["info", "-U"], &path);
    drop(image);
    assert!(resize(&path).status.success());
    works("qemu-img", &["snapshot", "-c", "x"], &path);
}

#[test]
fn row_10_a_raw_disk_of_a_vm_is_not_written_to_or_resized_by_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("disk"), dir.path().join("link"));
    create_raw(&path, SIZE).unwrap();
    symlink(&path, &link).unwrap();
    // By whatever name.
    for name in [&path, &link] {
        let _image = open(name, DiskFormat::Raw, false).unwrap();
        locked_out("qemu-io", &["-f", "raw", "-c", "write 0 512"], &path);
        locked_out("qemu-io", &["-f", "raw", "-c", "write 0 512"], &link);
    }
    let image = open(&path, DiskFormat::Raw, true).unwrap();
    locked_out("qemu-io", &["-f", "raw", "-c", "write 0 512"], &path);
    works("qemu-io", &["-f", "raw", "-r", "-c", "read 0 512"], &path);
    drop(image);
    works("qemu-io", &["-f", "raw", "-c", "write 0 512"], &path);
}

#[test]
fn row_10_what_a_disk_is_based_on_is_in_use_for_qemus_programs_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let base = Backing { path: dir.path().join("base"), format: DiskFormat::Qcow2 };
    let (middle, top) = (dir.path().join("middle"), dir.path().join("top"));
    create_qcow2(&base.path, SIZE, None).unwrap();
    create_qcow2(&middle, SIZE, Some(&base)).unwrap();
    create_qcow2(&top, SIZE, Some(&Backing { path: middle.clone(), format: DiskFormat::Qcow2 })).unwrap();
    let image = open(&top, DiskFormat::Qcow2, false).unwrap();
    for path in [&base.path, &middle] {
        locked_out("qemu-img", &["snapshot", "-c", "x"], path);
        locked_out("qemu-img", &["commit", "-f", "qcow2"], &middle);
        works("qemu-img", &["check", "-f", "qcow2"], path);
    }
    // Both can have another disk over the same base.
    let other = dir.path().join("other");
    create_qcow2(&other, SIZE, Some(&base)).unwrap();
    let qemu = Qemu::open(&other, &["-f", "qcow2"]);
    drop(image);
    open(&top, DiskFormat::Qcow2, false).unwrap();
    drop(qemu);
    works("qemu-img", &["commit", "-f", "qcow2"], &middle);
}

#[test]
fn row_10_a_disk_that_qemu_has_is_in_use_and_the_message_says_who_has_it() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        match format {
            DiskFormat::Raw => create_raw(&path, SIZE).unwrap(),
            DiskFormat::Qcow2 => create_qcow2(&path, SIZE, None).unwrap(),
        }
        let qemu = Qemu::open(&path, &["-f", &format.to_string()]);
        let before = fs::read(&path).unwrap();
        for read_only in [false, true] {
            let refused = match open(&path, format, read_only) {
                Ok(_) => panic!("{format} read_only={read_only} was opened"),
                Err(error) => error.to_string(),
            };
            let holder = format!("{}: in use by qemu-io (process {}): stop that", path.display(), qemu.0.id());
            assert!(refused.starts_with(&holder), "{refused}");
        }
        assert!(fs::read(&path).unwrap() == before);
        // What held it ends without a chance to release anything.
        drop(qemu);
        open(&path, format, false).unwrap();
    }
}

#[test]
fn row_10_what_qemu_only_reads_can_be_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let base = Backing { path: dir.path().join("base"), format: DiskFormat::Raw };
    let top = dir.path().join("top");
    create_raw(&base.path, SIZE).unwrap();
    create_qcow2(&top, SIZE, Some(&base)).unwrap();
    let _qemu = Qemu::open(&top, &["-f", "qcow2", "-r"]);
    open(&base.path, DiskFormat::Raw, true).unwrap();
    open(&top, DiskFormat::Qcow2, true).unwrap();
    assert!(matches!(open(&top, DiskFormat::Qcow2, false), Err(DiskError::InUse { .. })));
}
