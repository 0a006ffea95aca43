//! What cannot work is refused: exit status 1, one clear line, nothing left behind.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
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
        command.env_remove("TWINVM_HOST_DIR").env_remove("TWINVM_OPERATOR").current_dir(self.path());
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
        assert!(message.matches("os error").count() <= 1, "said twice: {message}");
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

/// Whoever starts a network end is told once why it does not start, and says it, whatever was the reason.
#[test]
fn a_network_end_that_does_not_start_says_so_where_it_is_heard() {
    let place = Spec::new("");
    let end = |network: &str, socket: &str, user: &[&str]| {
        let config = format!("{{\"network\":{network}}}");
        let mut command = place.twinvm(&["net-end", "--config", &config, "--socket", socket]);
        let output = command.args(user).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let user_mode = r#"{"mode":"user"}"#;
    for (network, socket, user, expected) in [
        (user_mode, "no-such-folder/end.sock", &[][..], "no-such-folder/end.sock"),
        (r#"{"mode":"bridge","bridge":"no-such-br"}"#, "end.sock", &[], "no-such-br"),
        // Nobody can be this user.
        (user_mode, "end.sock", &["--user", "4294967295"], "confining the process"),
    ] {
        let (told, said) = end(network, socket, user);
        assert!(told.starts_with("error: ") && told.contains(expected) && told.lines().count() == 1, "{told}");
        assert_eq!(said, "", "told twice: {told}");
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

/// It ran, and both wrote.
#[test]
fn row_10_a_disk_that_qemu_uses() {
    let spec = Spec::new("[[disk]]\npath = \"disk\"\nformat = \"raw\"\n");
    let disk = spec.path().join("disk");
    create_raw(&disk, 1 << 20).unwrap();
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]).arg(&disk).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut qemu = command.spawn().expect("qemu-utils is installed by `make setup`");
    // It asks for commands once it has the image.
    qemu.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
    spec.refused(&format!("disk: in use by qemu-io (process {}): stop that", qemu.id()));
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    spec.refused("kernel");
}

#[test]
fn row_25_disks_are_made_shown_and_grown() {
    let spec = Spec::new("");
    let json = |words: &[&str]| -> serde_json::Value {
        let output = spec.twinvm(&[&["disk"], words, &["--json"]].concat()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let refused = |words: &[&str]| {
        let output = spec.twinvm(&[&["disk"], words].concat()).output().unwrap();
        assert!(!output.status.success(), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let made = json(&["create", "data.qcow2", "8M"]);
    assert_eq!((&made["format"], &made["size_bytes"], &made["base"]), (&"qcow2".into(), &(8 << 20).into(), &().into()));
    assert_eq!(json(&["create", "data.raw", "1M", "--format", "raw"])["format"], "raw");
    let top = json(&["create", "top.qcow2", "--base", "data.qcow2"]);
    assert_eq!((&top["size_bytes"], &top["base_format"]), (&(8 << 20).into(), &"qcow2".into()));
    assert_eq!(json(&["resize", "top.qcow2", "16M"])["size_bytes"], 16 << 20);
    assert_eq!(json(&["info", "top.qcow2"])["size_bytes"], 16 << 20);
    for (words, expected) in [
        (&["create", "data.qcow2", "8M"][..], "File exists"),
        (&["create", "x", "--format", "raw", "--base", "data.qcow2"], "cannot be based on"),
        (&["create", "x"], "required"),
        (&["create", "x", "--image", "no-image"], "no-image"),
        (&["resize", "top.qcow2", "1M"], "not made smaller"),
        (&["info", "missing"], "o such file"),
    ] {
        let message = refused(words);
        assert!(message.contains(expected) && !spec.path().join("x").exists(), "{words:?}: {message}");
    }
    // Also one that somebody has is shown, and not changed.
    let path = spec.path().join("data.raw");
    let used = DiskImage::open(&path, DiskOptions::default()).unwrap();
    assert!(json(&["info", "data.raw"])["in_use_by"].as_str().is_some_and(|who| who.contains("refusals")));
    assert!(refused(&["resize", "data.raw", "2M"]).contains("in use by refusals"));
    drop(used);
    // One of a VM with a host is that host's matter.
    fs::write(spec.path().join("vm.json"), "{}").unwrap();
    assert!(refused(&["resize", "data.raw", "2M"]).contains("twinvm vm set"));
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

/// It was said that there is no host, and how to make one: true, and no answer.
#[test]
fn row_22_what_a_vm_in_the_foreground_cannot_do_is_said() {
    let spec = Spec::new("");
    fs::create_dir(spec.path().join("twinvm")).unwrap();
    let listener = UnixListener::bind(spec.path().join("twinvm/vm-taken.sock")).unwrap();
    create_raw(&spec.path().join("data.raw"), 5 << 20).unwrap();
    let text = format!(
        "{}[[disk]]\npath = \"{}/data.raw\"\nformat = \"raw\"\n[[network]]\nmode = \"user\"\nforward = [\"tcp:127.0.0.1:7070-:80\"]\n",
        spec.text,
        spec.path().display()
    );
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&connection).read_line(&mut line);
            let status = serde_json::json!({
                "name": "taken", "pid": 77, "engine": "soft", "cpus": 2, "memory_bytes": 134_217_728, "running_s": 5, "spec": text,
            });
            let _ = writeln!(&connection, "{}", serde_json::json!({ "answer": "done", "status": status }));
        }
    });
    for words in [
        &["vm", "console", "taken"][..],
        &["vm", "start", "taken"],
        &["vm", "rm", "taken"],
        &["ft", "on", "taken"],
        &["ft", "status", "taken"],
        &["vm", "set", "taken", "--cpus", "2"],
        &["top", "taken"],
        &["vm", "snapshot", "create", "taken", "nightly"],
        &["vm", "snapshot", "list", "taken"],
        &["vm", "snapshot", "restore", "taken", "nightly"],
        &["vm", "snapshot", "rm", "taken", "nightly"],
        &["events", "--vm", "taken"],
        &["backup", "run", "taken"],
    ] {
        let output = spec.twinvm(words).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), message.lines().count()), (Some(1), 1), "{message}");
        for expected in
            ["VM taken runs in the foreground (process 77)", "twinvm vm adopt taken", "twinvm vm snapshot taken FILE"]
        {
            assert!(message.contains(expected), "{words:?}: {message}");
        }
    }
    let shown = spec.twinvm(&["vm", "show", "taken"]).output().unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.status.success() && text.contains("128.00 MiB") && text.contains("process:    77"), "{text}");
    // Its disks and cards are shown as those of a VM with a host.
    for expected in ["data.raw, raw, 5.00 MiB (", "user-mode, 10.0.2.15, tcp:127.0.0.1:7070-:80", "  memory = "] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let shown = spec.twinvm(&["vm", "show", "taken", "--json"]).output().unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&shown.stdout).unwrap()["cpus"], 2);
    // Of others it is still said how hosts are made.
    let output = spec.twinvm(&["vm", "show", "other"]).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("twinvm host init"));
}

/// The system's words were there twice, and nothing said what to do.
#[test]
fn row_23_what_is_missing_is_said_once() {
    let spec = Spec::new("[[disk]]\npath = \"no-disk\"\nformat = \"raw\"\n");
    let file = spec.path().join("vm.toml");
    fs::write(&file, &spec.text).unwrap();
    for (words, hint) in [
        (&["replay", "no-log"][..], "record = \"DIR\""),
        (&["run", "no-spec.toml"], "no-spec.toml"),
        (&["vm", "create", "no-spec.toml"], "no-spec.toml"),
        (&["vm", "restore", "no-snapshot"], "no-snapshot"),
        (&["bench", "cpu", "--json", "no-folder/x.json"], "cannot write no-folder/x.json"),
        (&["demo", "--json", "no-folder/x.json"], "cannot write no-folder/x.json"),
        (&["run", file.to_str().unwrap(), "--engine", "soft"], "no-disk"),
    ] {
        let output = spec.twinvm(words).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), message.lines().count()), (Some(1), 1), "{message}");
        assert!(message.matches("o such file").count() == 1 && message.contains(hint), "{words:?}: {message}");
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
        &["vm", "set", "--help"],
        &["vm", "clone", "--help"],
        &["disk", "create", "--help"],
        &["image", "prune", "--help"],
        &["image", "build", "--help"],
        &["engine", "probe", "--help"],
        &["host", "sandbox", "--help"],
        &["bench", "cpu", "--help"],
        &["bench", "kvm", "--help"],
        &["demo", "--help"],
    ] {
        let output = spec.twinvm(arguments).output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 100, "{arguments:?}");
    }
    for arguments in [&["vm", "list", "--json"][..], &["image", "list", "--json"], &["image", "prune", "--json"]] {
        let output = spec.twinvm(arguments).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer.as_array().map(Vec::len), Some(0), "{arguments:?}");
    }
    let output = spec.twinvm(&["host", "sandbox", "--json"]).output().unwrap();
    let sandbox: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(sandbox["landlock"].is_u64() && sandbox["seccomp"].is_boolean(), "{sandbox}");
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
