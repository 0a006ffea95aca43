//! A VM that the `twinvm` program runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spec::EngineKind;
use tempfile::TempDir;

use crate::support::guest::{free_port, images_dir};
use crate::support::{HUNG, place};

/// Events and console of a foreground run, as they come.
#[derive(Default)]
struct Seen {
    console: String,
    events: Vec<String>,
}

pub struct RunningVm {
    name: String,
    folder: TempDir,
    process: Child,
    seen: Arc<Mutex<Seen>>,
    ports: Vec<(u16, u16)>,
}

/// `twinvm` with the tests' images, or those in its folder if there are any, and a runtime folder of its own.
fn twinvm(folder: &Path, arguments: &[&str]) -> Command {
    let shared = images_dir();
    let home = if folder.join("images").is_dir() { folder } else { shared.parent().unwrap() };
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinvm"));
    command.env("TWINVM_HOME", home).env("XDG_RUNTIME_DIR", folder).args(arguments);
    command
}

/// Runs `twinvm`, which must refuse; returns what it says.
pub fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = twinvm(folder, arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?} was not refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn diskless(name: &str, image: &str, memory: &str, cpus: u32, command: &str) -> String {
    format!(
        "name = \"{name}\"\nmemory = \"{memory}\"\ncpus = {cpus}\nimage = \"{image}\"\n\
         cmdline = 'console=ttyS0 quiet twinvm.run=\"{command}\"'\n"
    )
}

/// Runs a VM as [`RunningVm::start_diskless`] does, with its console on a pipe that nobody reads, and its messages on a disk that is full. Waits for
/// its end, and returns what the pipe holds then.
pub fn run_unread(name: &str, image: &str, command: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.toml");
    std::fs::write(&file, diskless(name, image, "128M", 1, command)).unwrap();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let engine = place::engine().to_string();
    let mut process = twinvm(folder.path(), &["run", file.to_str().unwrap(), "--engine", &engine])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(full)
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        match process.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() < HUNG => std::thread::sleep(Duration::from_millis(50)),
            None => {
                process.kill().unwrap();
                panic!("it waits for a reader");
            }
        }
    };
    assert!(status.success(), "{status}");
    let mut held = Vec::new();
    process.stdout.take().unwrap().read_to_end(&mut held).unwrap();
    String::from_utf8_lossy(&held).into_owned()
}

/// Runs a VM whose console gets this once the guest says `ready`, and no more; what it has written until it ended.
pub fn run_piped(name: &str, image: &str, command: &str, input: Vec<u8>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.toml");
    std::fs::write(&file, diskless(name, image, "128M", 1, command)).unwrap();
    let engine = place::engine().to_string();
    let mut process = twinvm(folder.path(), &["run", file.to_str().unwrap(), "--engine", &engine])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (stdin, mut stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    let mut input = Some((stdin, input));
    loop {
        let len = stdout.read(&mut chunk).unwrap();
        if len == 0 {
            break;
        }
        seen.extend_from_slice(&chunk[..len]);
        if seen.windows(6).any(|word| word == b"ready\n" || word == b"ready\r")
            && let Some((mut stdin, input)) = input.take()
        {
            std::thread::spawn(move || stdin.write_all(&input).unwrap());
        }
    }
    assert!(process.wait().unwrap().success());
    String::from_utf8_lossy(&seen).into_owned()
}

/// Starts a command whose events are read, and whose messages go to a file.
fn in_background(mut command: Command, folder: &Path) -> Child {
    let messages = std::fs::File::options().append(true).create(true).open(folder.join("messages")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(messages).spawn().unwrap()
}

fn follow(process: &mut Child) -> Arc<Mutex<Seen>> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let out = process.stdout.take().unwrap();
    let follower = seen.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            let mut seen = follower.lock().unwrap();
            match event["event"].as_str().unwrap() {
                "console" => seen.console.push_str(event["text"].as_str().unwrap()),
                other => seen.events.push(other.to_owned()),
            }
        }
    });
    seen
}

impl RunningVm {
    /// Starts a VM of this image with these ports forwarded.
    pub fn start(name: &str, image: &str, memory: &str, cpus: u32, guest_ports: &[u16]) -> Self {
        Self::start_as(name, None, image, memory, cpus, guest_ports)
    }

    /// The same, of a VM with this ID.
    pub fn start_as(name: &str, id: Option<&str>, image: &str, memory: &str, cpus: u32, guest_ports: &[u16]) -> Self {
        let id = id.map_or_else(String::new, |id| format!("id = \"{id}\"\n"));
        let folder = tempfile::tempdir().unwrap();
        let ports: Vec<_> = guest_ports.iter().map(|&port| (port, free_port())).collect();
        let forward: Vec<_> = ports.iter().map(|(guest, host)| format!("\"tcp:127.0.0.1:{host}-:{guest}\"")).collect();
        let spec = format!(
            "name = \"{name}\"\n{id}memory = \"{memory}\"\ncpus = {cpus}\nimage = \"{image}\"\n\
             [[disk]]\npath = \"root.qcow2\"\nformat = \"qcow2\"\nbase_image = \"{image}\"\n\
             [[network]]\nmode = \"user\"\nforward = [{}]\n",
            forward.join(", ")
        );
        Self::run(name, folder, &spec, ports)
    }

    /// Starts a VM without disk and network, which runs a command in its initial RAM disk and powers off.
    pub fn start_diskless(name: &str, image: &str, memory: &str, cpus: u32, command: &str) -> Self {
        Self::run(name, tempfile::tempdir().unwrap(), &diskless(name, image, memory, cpus, command), Vec::new())
    }

    /// The same with an empty disk and a network.
    pub fn start_with_parts(name: &str, image: &str, memory: &str, cpus: u32, command: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        storage::disk::create_raw(&folder.path().join("disk.raw"), 1 << 20).unwrap();
        let parts = "[[disk]]\npath = \"disk.raw\"\nformat = \"raw\"\n[[network]]\nmode = \"user\"\n";
        Self::run(name, folder, &(diskless(name, image, memory, cpus, command) + parts), Vec::new())
    }

    /// Pulls an image of this disk into a store of its own, and starts a VM of it, which shows a file of the disk and powers off.
    pub fn start_pulled(name: &str, disk: &Path, sha256: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        let arguments = ["image", "pull", "test-pulled", disk.to_str().unwrap(), "--sha256", sha256];
        let output = twinvm(folder.path(), &arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let spec = diskless(
            name,
            "test-pulled",
            "256M",
            1,
            "mkdir /disk; mount -t ext4 /dev/vda /disk; cat /disk/usr/greeting",
        ) + "[[disk]]\npath = \"root.qcow2\"\nformat = \"qcow2\"\nbase_image = \"test-pulled\"\n";
        Self::run(name, folder, &spec, Vec::new())
    }

    fn run(name: &str, folder: TempDir, spec: &str, ports: Vec<(u16, u16)>) -> Self {
        let file = folder.path().join("vm.toml");
        std::fs::write(&file, spec).unwrap();
        let engine = place::engine().to_string();
        let arguments = ["run", file.to_str().unwrap(), "--engine", &engine, "--json"];
        let mut process = in_background(twinvm(folder.path(), &arguments), folder.path());
        let seen = follow(&mut process);
        Self { name: name.to_owned(), folder, process, seen, ports }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The port of 127.0.0.1 that leads to `guest_port`.
    pub fn port(&self, guest_port: u16) -> u16 {
        self.ports.iter().find(|(guest, _)| *guest == guest_port).unwrap().1
    }

    /// Runs a `twinvm` command, which must succeed.
    pub fn twinvm(&self, arguments: &[&str]) -> String {
        let output = twinvm(self.folder(), arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            let said = || std::fs::read_to_string(self.folder().join("messages")).unwrap_or_default();
            assert!(start.elapsed() < HUNG, "waited {HUNG:?} until {what}; console:\n{}\n{}", self.console(), said());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn wait_for_console(&self, text: &str) {
        self.wait_until(text, || self.console().contains(text));
    }

    pub fn console(&self) -> String {
        self.seen.lock().unwrap().console.clone()
    }

    /// How often an event came.
    pub fn events(&self, event: &str) -> usize {
        self.seen.lock().unwrap().events.iter().filter(|&seen| seen == event).count()
    }

    /// The process is confined: it sees nothing but what its VM needs, has no rights, and its system calls are filtered. One that was restored
    /// needs the folder of its disks, where new ones took the place of the old.
    pub fn assert_confined(&self, is_restored: bool) {
        let process = Path::new("/proc").join(self.process.id().to_string());
        let status = std::fs::read_to_string(process.join("status")).unwrap();
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"] {
            assert!(status.contains(line), "{status}");
        }
        let children = std::fs::read_to_string(process.join(format!("task/{}/children", self.process.id()))).unwrap();
        let broker = Path::new("/proc").join(children.trim());
        let status = std::fs::read_to_string(broker.join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2") && status.contains("CapPrm:\t0000000000000000"), "{status}");
        assert!(broker.join("root/etc/passwd").symlink_metadata().is_err(), "its broker sees files");
        let sees = |path: &Path| process.join("root").join(path.strip_prefix("/").unwrap()).symlink_metadata().is_ok();
        assert!(sees(&self.folder().join("root.qcow2")));
        // What belongs to nobody, to its user, and to other VMs in the foreground.
        let sockets = self.folder().join("twinvm");
        let hidden: [PathBuf; 3] = ["/etc/passwd".into(), env!("CARGO_BIN_EXE_twinvm").into(), sockets];
        for hidden in &hidden[..if is_restored { 2 } else { 3 }] {
            assert!(hidden.exists() && !sees(hidden), "{}", hidden.display());
        }
    }

    /// Presses the power button and waits for the end.
    pub fn shut_down(self) {
        self.twinvm(&["vm", "stop", &self.name]);
        self.wait_for_end();
    }

    /// Waits until the guest has powered off; nothing may be left.
    pub fn wait_for_end(mut self) {
        let start = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < HUNG, "the guest does not power off; console:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(self.process.wait().unwrap().success());
        let left: Vec<_> = std::fs::read_dir(self.folder().join("twinvm")).unwrap().flatten().collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        let said = std::fs::read_to_string(self.folder().join("messages")).unwrap();
        assert!(!said.contains("was refused"), "{said}");
    }

    /// Ends the process as a crash would. Returns the folder, and the disk in it.
    pub fn kill(mut self) -> (TempDir, PathBuf) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        let disk = folder.path().join("root.qcow2");
        (folder, disk)
    }

    /// Changes the spec, for the next start.
    pub fn replace_in_spec(&self, from: &str, to: &str) {
        let file = self.folder().join("vm.toml");
        let spec = std::fs::read_to_string(&file).unwrap();
        assert!(spec.contains(from), "{spec}");
        std::fs::write(&file, spec.replace(from, to)).unwrap();
    }

    /// Ends the process, with which all is gone that the guest has not brought to its disk, and powers the VM on again.
    pub fn cut_power_and_start(self) -> Self {
        let (name, ports) = (self.name.clone(), self.ports.clone());
        let (folder, _) = self.kill();
        let spec = std::fs::read_to_string(folder.path().join("vm.toml")).unwrap();
        Self::run(&name, folder, &spec, ports)
    }

    /// Ends the process as a crash would, and continues from a snapshot, on this engine.
    pub fn kill_and_restore(mut self, file: &Path, engine: EngineKind) -> Self {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let engine = engine.to_string();
        let arguments = ["vm", "restore", file.to_str().unwrap(), "--engine", &engine, "--json"];
        self.process = in_background(twinvm(self.folder.path(), &arguments), self.folder.path());
        self.seen = follow(&mut self.process);
        self
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
