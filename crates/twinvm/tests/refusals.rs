//! What cannot work is refused: exit status 1, one clear line, nothing left behind.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use spec::DiskFormat;
use storage::disk::{DiskImage, DiskOptions, create_qcow2, create_raw};
use tempfile::TempDir;

/// A folder with a spec in it, to which tests do harm.
struct Spec {
    folder: TempDir,
    text: String,
}

impl Spec {
    /// A spec whose kernel is not one: what is refused before the kernel is looked at, is refused for its own reason.
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernel"), [0x90; 4096]).unwrap();
        let text = format!("name = \"vm\"\nmemory = \"128M\"\nkernel = \"kernel\"\n{more}");
        Self { folder, text }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn twinvm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinvm"));
        command.env("XDG_RUNTIME_DIR", self.path()).env("TWINVM_HOME", self.path()).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs the spec, which must be refused in one line that contains `expected`.
    #[track_caller]
    fn refused(&self, expected: &str) {
        let file = self.path().join("vm.toml");
        fs::write(&file, &self.text).unwrap();
        let output = self.twinvm(&["run", file.to_str().unwrap(), "--engine", "soft", "--json"]).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(expected), "{expected:?} is not in: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        let left: Vec<_> = fs::read_dir(self.path().join("twinvm"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|name| name != "vm-taken.sock")
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

#[test]
fn what_a_spec_cannot_say() {
    for (more, expected) in [
        ("colour = \"red\"\n", "unknown field `colour`"),
        ("cpus = 0\n", "cpus = 0"),
        ("cpus = 65\n", "cpus = 65"),
        ("cpus = 5\n", "1 to 4 vCPUs, not 5"),
        ("[[disk]]\npath = \"x\"\nformat = \"vmdk\"\n", "unknown variant `vmdk`"),
        ("[[network]]\nmode = \"carrier-pigeon\"\n", "carrier-pigeon"),
        ("[[network]]\nmode = \"user\"\nforward = [\"tcp:80\"]\n", "tcp:80"),
    ] {
        Spec::new(more).refused(expected);
    }
}

#[test]
fn sizes_that_cannot_be() {
    for (memory, expected) in [("1M", "64M to 1024G"), ("lots", "not a size"), ("1000G", "this host has")] {
        let mut spec = Spec::new("");
        spec.text = spec.text.replace("128M", memory);
        spec.refused(expected);
    }
}

#[test]
fn files_that_are_not_there_or_are_something_else() {
    let mut spec = Spec::new("");
    spec.refused("kernel");
    spec.text = spec.text.replace("\"kernel\"", "\"no-such-kernel\"");
    spec.refused("no-such-kernel");
    Spec::new("initrd = \"no-such-initrd\"\n").refused("no-such-initrd");
    Spec::new("[[disk]]\npath = \"no-such-disk\"\nformat = \"raw\"\n").refused("no-such-disk");
    Spec::new("image = \"no-such-image\"\n").refused("twinvm image build no-such-image");
    let spec = Spec::new("[[disk]]\npath = \"disk\"\nformat = \"qcow2\"\n");
    create_raw(&spec.path().join("disk"), 1 << 20).unwrap();
    spec.refused("disk");
}

#[test]
fn a_damaged_disk_image() {
    let spec = Spec::new("[[disk]]\npath = \"disk\"\nformat = \"qcow2\"\n");
    let disk = spec.path().join("disk");
    create_qcow2(&disk, 1 << 20, None).unwrap();
    let mut bytes = fs::read(&disk).unwrap();
    bytes[40..48].fill(0xff);
    fs::write(&disk, &bytes).unwrap();
    spec.refused("disk");
    assert!(fs::read(&disk).unwrap() == bytes, "a refused image was changed");
}

#[test]
fn a_disk_that_another_vm_uses() {
    let spec = Spec::new("[[disk]]\npath = \"disk\"\nformat = \"raw\"\n");
    let disk = spec.path().join("disk");
    create_raw(&disk, 1 << 20).unwrap();
    let options = DiskOptions { format: Some(DiskFormat::Raw), ..DiskOptions::default() };
    let used = DiskImage::open(&disk, options).unwrap();
    spec.refused("in use");
    drop(used);
    spec.refused("kernel");
}

#[test]
fn a_name_that_runs_already() {
    let mut spec = Spec::new("");
    spec.text = spec.text.replace("\"vm\"", "\"taken\"");
    fs::create_dir(spec.path().join("twinvm")).unwrap();
    let _running = UnixListener::bind(spec.path().join("twinvm/vm-taken.sock")).unwrap();
    spec.refused("twinvm vm stop taken");
}

#[test]
fn a_forwarded_port_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    Spec::new(&format!("[[network]]\nmode = \"user\"\nforward = [\"tcp:127.0.0.1:{port}-:80\"]\n"))
        .refused(&port.to_string());
}

#[test]
fn files_that_are_no_snapshots() {
    let spec = Spec::new("");
    let kernel = spec.path().join("kernel");
    for (file, expected) in [(kernel.to_str().unwrap(), "not a twinvm snapshot"), ("no-such-file", "no-such-file")] {
        let output = spec.twinvm(&["vm", "restore", file]).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(expected), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn a_vm_that_does_not_run() {
    let spec = Spec::new("");
    for arguments in [&["vm", "stop", "nobody"][..], &["vm", "snapshot", "nobody", "file"]] {
        let output = spec.twinvm(arguments).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("twinvm vm list"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn every_command_teaches_and_answers_in_json() {
    let spec = Spec::new("");
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["vm", "--help"],
        &["vm", "snapshot", "--help"],
        &["image", "build", "--help"],
        &["engine", "probe", "--help"],
        &["bench", "cpu", "--help"],
        &["bench", "kvm", "--help"],
        &["demo", "--help"],
    ] {
        let output = spec.twinvm(arguments).output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 100, "{arguments:?}");
    }
    for arguments in [&["vm", "list", "--json"][..], &["image", "list", "--json"]] {
        let output = spec.twinvm(arguments).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer.as_array().map(Vec::len), Some(0), "{arguments:?}");
    }
    let output = spec.twinvm(&["engine", "probe", "--json"]).output().unwrap();
    let probe: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(probe["engines"].as_array().unwrap().len(), 2, "{probe}");
    assert!(probe["engines"][1]["mips"].as_f64().unwrap() > 1.0, "{probe}");
    assert!(["kvm", "soft"].contains(&probe["auto"].as_str().unwrap()), "{probe}");
    assert!(!probe["reason"].as_str().unwrap().is_empty(), "{probe}");
    for feature in probe["features"].as_array().unwrap() {
        let is_missing = feature["state"] == "missing";
        assert!(feature["name"].is_string() && feature["hint"].is_string() == is_missing, "{feature}");
    }
}
