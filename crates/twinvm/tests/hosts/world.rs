//! Hosts of one cluster on this machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use storage::image::ImageSpec;
use tempfile::TempDir;

use crate::processes::{children, processes, signal};
use crate::support::HUNG;
use crate::support::booted::{self, Booted};
use crate::support::guest::{free_port, images_dir};
use crate::support::{guest, images, place};

/// The VM of most tests.
pub const VM: &str = "redis";

/// The hosts; all their processes end when this is dropped.
pub struct World {
    /// They go before the folder, which could not be removed below them.
    mounts: Vec<Mount>,
    folder: TempDir,
    daemons: BTreeMap<String, Child>,
    port: u16,
    /// The cluster store, if it is not a file.
    etcd: Option<String>,
}

/// What a command came to.
pub struct Outcome {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

fn outcome(mut command: Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { success: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl World {
    /// No hosts yet.
    pub fn empty() -> Self {
        // Processes are found by this path.
        let folder = tempfile::Builder::new().prefix("twinvm-hosts-").tempdir().unwrap();
        fs::create_dir(folder.path().join("run")).unwrap();
        Self { mounts: Vec::new(), folder, daemons: BTreeMap::new(), port: free_port(), etcd: None }
    }

    /// Has what somebody has mounted on a host's folder unmounted with this.
    pub fn owns_mount(&mut self, host: &str) {
        self.mounts.push(Mount(self.path(host)));
    }

    /// Hosts that run. Where silence is not tested, it is given so much time that a loaded machine does not look like a dead
    /// host.
    pub fn of(hosts: &[&str]) -> Self {
        Self::with_settings(hosts, |_, text| text)
    }

    /// The same, with a store in etcd.
    pub fn on_etcd(hosts: &[&str], address: &str) -> Self {
        let mut world = Self::empty();
        world.etcd = Some(address.to_owned());
        world.with_hosts(hosts, |_, text| text)
    }

    /// The same, with changes to each `host.toml`.
    pub fn with_settings(hosts: &[&str], change: impl Fn(&str, String) -> String) -> Self {
        Self::empty().with_hosts(hosts, change)
    }

    /// Hosts that run, in folders that may be there.
    pub fn with_hosts_of(self, hosts: &[&str]) -> Self {
        self.with_hosts(hosts, |_, text| text)
    }

    /// Hosts that run, with changes to each `host.toml`.
    pub fn with_hosts(mut self, hosts: &[&str], change: impl Fn(&str, String) -> String) -> Self {
        for host in hosts {
            self.make(host, *host == hosts[0], hosts[0], &change);
        }
        for host in hosts {
            self.launch(host);
        }
        for host in hosts {
            self.wait_for_daemon(host);
        }
        self
    }

    /// One more host, by the keys of host `a`.
    pub fn add_host(&mut self, host: &str, change: impl Fn(&str, String) -> String) {
        self.make(host, false, "a", &change);
        self.start(host);
    }

    fn make(&self, host: &str, is_first: bool, first: &str, change: &impl Fn(&str, String) -> String) {
        self.init(host, is_first, first);
        let path = self.path(host).join("host.toml");
        let text = fs::read_to_string(&path)
            .unwrap()
            .replace("suspicion_ms = 100", &format!("suspicion_ms = {}", 2000 * place::slowness()));
        fs::write(&path, change(host, text)).unwrap();
    }

    fn init(&self, host: &str, is_first: bool, first: &str) {
        let common = ["host", "init", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
        if is_first {
            let store = self.etcd.clone().unwrap_or_else(|| self.store().to_str().unwrap().to_owned());
            let own = ["--new-cluster", "--name", host, "--store", &store];
            self.done(host, &[&common[..], &own].concat());
            fs::copy(self.path(host).join("operator.pem"), self.operator()).unwrap();
        } else {
            let bundle = self.path(&format!("{host}.bundle"));
            let bundle = bundle.to_str().unwrap();
            self.done(first, &["host", "issue", host, "--out", bundle]);
            self.done(host, &[&common[..], &["--bundle", bundle]].concat());
        }
    }

    /// A path in the folder of this world; a host's folder is that with its name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The keys of the operator who gives the commands.
    pub fn operator(&self) -> PathBuf {
        self.path("operator.pem")
    }

    /// The cluster store.
    pub fn store(&self) -> PathBuf {
        self.path("cluster.db")
    }

    /// The folder of a VM on a host.
    pub fn vm_folder(&self, host: &str) -> PathBuf {
        self.path(host).join("vms").join(VM)
    }

    /// Starts a daemon.
    pub fn launch(&mut self, host: &str) {
        let log = File::options().append(true).create(true).open(self.path(&format!("{host}.log"))).unwrap();
        let child = self
            .command(host, &["host", "start"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.daemons.insert(host.to_owned(), child);
    }

    /// Waits until a daemon that was launched answers.
    pub fn wait_for_daemon(&mut self, host: &str) {
        let deadline = Instant::now() + HUNG;
        loop {
            let daemon = self.daemons.get_mut(host).unwrap();
            let ended = daemon.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon of {host} has ended: {ended:?}\n{}", self.logs());
            let addresses = fs::read_to_string(self.path(host).join("daemon.json")).unwrap_or_default();
            let pid = self.daemons[host].id();
            // The file that a killed daemon has left names another process.
            if addresses.contains(&format!("\"pid\":{pid},")) {
                return;
            }
            assert!(Instant::now() < deadline, "the daemon of {host} does not answer\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts a daemon that answers.
    pub fn start(&mut self, host: &str) {
        self.launch(host);
        self.wait_for_daemon(host);
    }

    /// Kills a daemon; its replicas go on.
    pub fn kill_daemon(&mut self, host: &str) {
        let mut daemon = self.daemons.remove(host).unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// As Ctrl-C in the daemon's terminal does, which reaches all of its process group.
    pub fn interrupt_daemon_group(&mut self, host: &str) {
        let group = format!("-{}", self.daemons[host].id());
        assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
        self.wait_for_daemon_end(host);
    }

    /// Waits for a daemon to end by itself.
    pub fn wait_for_daemon_end(&mut self, host: &str) {
        let mut daemon = self.daemons.remove(host).unwrap();
        let deadline = Instant::now() + HUNG;
        while daemon.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the daemon of {host} does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// As when a host loses power: its daemon and its replicas are gone at once. The network is not the host's.
    pub fn kill_host(&mut self, host: &str) {
        let folder = self.path(host);
        for (pid, _) in processes(&folder).iter().filter(|(_, what)| what != "net-end") {
            signal(*pid, "KILL");
        }
        self.daemons.remove(host).unwrap().wait().unwrap();
        self.wait_for_no_replica(host);
    }

    /// Kills the only replica on a host, and not its daemon.
    pub fn kill_replica(&self, host: &str) {
        let replicas = self.replicas(host);
        assert_eq!(replicas.len(), 1);
        signal(replicas[0], "KILL");
    }

    /// The host of the other replica that the replica on a host is connected to, as it says itself.
    pub fn peer_of_replica(&self, host: &str) -> Option<String> {
        let socket = UnixStream::connect(self.vm_folder(host).join("replica.sock")).ok()?;
        (&socket).write_all(b"{\"request\":\"status\"}\n").ok()?;
        let mut answer = String::new();
        BufReader::new(&socket).read_line(&mut answer).ok()?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        answer["status"]["peer"].as_str().map(str::to_owned)
    }

    /// Pulls the plug of the VM on a host whose daemon is away.
    pub fn power_off_by_replica(&self, host: &str) {
        let socket = UnixStream::connect(self.vm_folder(host).join("replica.sock")).unwrap();
        (&socket).write_all(b"{\"request\":\"stop\",\"force\":true}\n").unwrap();
        let mut answer = String::new();
        BufReader::new(&socket).read_line(&mut answer).unwrap();
        assert!(answer.contains("done"), "{answer}");
    }

    /// The replica processes on a host.
    pub fn replicas(&self, host: &str) -> Vec<u32> {
        let processes = processes(&self.path(host));
        let replicas = processes.into_iter().filter(|(_, what)| what == "replica").map(|(pid, _)| pid);
        let mut replicas: Vec<u32> = replicas.collect();
        // What one starts looks like it until it has a program of its own.
        let started: Vec<u32> = replicas.iter().flat_map(|pid| children(*pid)).collect();
        replicas.retain(|pid| !started.contains(pid));
        replicas
    }

    /// Waits until no replica runs on a host.
    pub fn wait_for_no_replica(&self, host: &str) {
        let deadline = Instant::now() + HUNG;
        while !self.replicas(host).is_empty() {
            assert!(Instant::now() < deadline, "a replica goes on on {host}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The daemon of a host.
    pub fn daemon(&self, host: &str) -> u32 {
        self.daemons[host].id()
    }

    /// The brokers on a host, which call themselves by another name.
    pub fn brokers(&self, host: &str) -> Vec<u32> {
        self.replicas(host).into_iter().flat_map(children).collect()
    }

    /// All processes of the world but this one.
    pub fn all_processes(&self) -> Vec<(u32, String)> {
        processes(self.folder.path())
    }

    fn command(&self, host: &str, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinvm"));
        command
            .args(words)
            .env("TWINVM_HOST_DIR", self.path(host))
            .env("TWINVM_HOME", images_dir().parent().unwrap())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("TWINVM_OPERATOR", self.operator())
            .current_dir(self.folder.path());
        command
    }

    /// A command that goes on, with its streams piped.
    pub fn spawn(&self, host: &str, words: &[&str]) -> Child {
        let mut command = self.command(host, words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A command that goes on, whose output nobody reads.
    pub fn spawn_with(&self, host: &str, words: &[&str], output: Stdio) -> Child {
        let mut command = self.command(host, words);
        command.stdin(Stdio::null()).stdout(output).spawn().unwrap()
    }

    /// Carries out a command on a host.
    pub fn run(&self, host: &str, words: &[&str]) -> Outcome {
        outcome(self.command(host, words))
    }

    /// Changes the VM in an editor, which is this command.
    pub fn edit(&self, host: &str, editor: &str) -> Outcome {
        let mut command = self.command(host, &["vm", "edit", VM]);
        command.env_remove("VISUAL").env("EDITOR", editor);
        outcome(command)
    }

    /// What a command says that must succeed.
    pub fn done(&self, host: &str, words: &[&str]) -> String {
        let outcome = self.run(host, words);
        assert!(outcome.success, "{words:?} on {host}: {}{}\n{}", outcome.stdout, outcome.stderr, self.logs());
        outcome.stdout
    }

    /// The same with `--json`.
    pub fn json(&self, host: &str, words: &[&str]) -> Value {
        let text = self.done(host, &[words, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
    }

    /// Why a command fails that must: one line, on standard error.
    pub fn refused(&self, host: &str, words: &[&str]) -> String {
        let Outcome { success, stdout, stderr } = self.run(host, words);
        assert!(!success, "{words:?} succeeded: {stdout}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{words:?}: {stderr}");
        stderr
    }

    /// Why a command fails that is given without the keys of an operator.
    pub fn refused_without_operator(&self, host: &str, words: &[&str]) -> String {
        let mut command = self.command(host, words);
        let output = command.env_remove("TWINVM_OPERATOR").stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success(), "{words:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Creates a VM with a Redis that answers on [`Self::address`], and starts it: as it was when it had booted for another test, if it has.
    pub fn boot_redis(&self, host: &str) {
        self.boot(host, &images::redis());
    }

    /// The same with one that writes every change to its append-only file before it answers.
    pub fn boot_append_only(&self, host: &str) {
        self.boot(host, &images::redis_append_only());
    }

    fn boot(&self, host: &str, image: &ImageSpec) {
        self.create(host, VM, &image.name, image.redis_append_only);
        let booted = Booted::of(&guest::image(image), VM);
        if booted.as_ref().is_some_and(|booted| self.goes_on(host, booted)) {
            return self.wait_for_redis();
        }
        self.done(host, &["vm", "start", VM]);
        self.wait_for_redis();
        Booted::settle(self.address());
        if let Some(booted) = booted
            && self.run(host, &["vm", "snapshot", "create", VM, booted::NAME]).success
        {
            booted.keep(&self.booted_snapshot(host));
            self.done(host, &["vm", "snapshot", "rm", VM, booted::NAME]);
        }
    }

    fn booted_snapshot(&self, host: &str) -> PathBuf {
        self.path(host).join(format!("vms/{VM}/snapshots/{}.snapshot", booted::NAME))
    }

    fn goes_on(&self, host: &str, booted: &Booted) -> bool {
        let (file, own) = (self.path("booted.snapshot"), self.booted_snapshot(host));
        if booted.put(&self.vm_folder(host), &file).is_none() {
            return false;
        }
        // The folder may be on a file system that is too small for it.
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        symlink(&file, &own).unwrap();
        let restored = self.run(host, &["vm", "snapshot", "restore", VM, booted::NAME]);
        if !restored.success {
            booted.forget(&restored.stderr);
        }
        self.done(host, &["vm", "snapshot", "rm", VM, booted::NAME]);
        fs::remove_file(file).unwrap();
        restored.success
    }

    /// Creates a VM.
    pub fn create(&self, host: &str, name: &str, image: &str, redis_append_only: bool) {
        let spec = self.spec(name, image, redis_append_only, self.port);
        self.done(host, &["vm", "create", spec.to_str().unwrap()]);
    }

    /// The file of a VM's spec.
    pub fn spec(&self, name: &str, image: &str, redis_append_only: bool, port: u16) -> PathBuf {
        guest::image(&ImageSpec { redis_append_only, ..images::service(image, "redis-server") });
        let path = self.path(&format!("{name}.toml"));
        let text = format!(
            "name = \"{name}\"\nmemory = \"256M\"\nengine = \"{}\"\nimage = \"{image}\"\n[[disk]]\npath = \
             \"{name}.qcow2\"\nformat = \"qcow2\"\nbase_image = \"{image}\"\n[[network]]\nmode = \"user\"\nforward = \
             [\"tcp:127.0.0.1:{port}-:6379\"]\n",
            place::engine()
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// Where the guest's Redis answers.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Waits until the guest's Redis answers, on connections that are given up again.
    pub fn wait_for_redis(&self) {
        let deadline = Instant::now() + HUNG;
        let answers = || -> std::io::Result<bool> {
            let stream = TcpStream::connect(self.address())?;
            stream.set_read_timeout(Some(Duration::from_millis(500)))?;
            (&stream).write_all(b"PING\r\n")?;
            let mut answer = String::new();
            BufReader::new(&stream).read_line(&mut answer)?;
            Ok(answer == "+PONG\r\n")
        };
        while !answers().unwrap_or(false) {
            assert!(Instant::now() < deadline, "no answer from the guest\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `ft status` says on a host.
    pub fn status(&self, host: &str) -> Value {
        self.json(host, &["ft", "status", VM])
    }

    /// Waits for a status that `fits`, asking on `host`.
    pub fn wait(&self, host: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + HUNG;
        loop {
            let status = self.status(host);
            if fits(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "waited for {what} on {host}: {status:#}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Waits until a host is known not to be alive.
    pub fn wait_for_lease_end(&self, host: &str, gone: &str) {
        let deadline = Instant::now() + HUNG;
        while self.json(host, &["host", "show", gone])["alive"] == true {
            assert!(Instant::now() < deadline, "the lease of {gone} does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the secondary on a host knows that the guest has written this on its console.
    pub fn wait_for_console_on_secondary(&self, host: &str, text: &str) {
        let deadline = Instant::now() + HUNG;
        loop {
            let mut socket = UnixStream::connect(self.vm_folder(host).join("replica.sock")).unwrap();
            socket.write_all(b"{\"request\":\"console\"}\n").unwrap();
            // Whoever types no more is shown what there is.
            socket.shutdown(Shutdown::Write).unwrap();
            let mut shown = Vec::new();
            std::io::copy(&mut socket, &mut shown).unwrap();
            if String::from_utf8_lossy(&shown).contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "{text:?} does not reach the secondary on {host}");
        }
    }

    /// Waits until no VM has anything reserved on a host.
    pub fn wait_until_nothing_is_reserved(&self, host: &str) {
        let deadline = Instant::now() + HUNG;
        while self.json(host, &["host", "show", host])["memory_reserved_bytes"] != 0 {
            assert!(Instant::now() < deadline, "a reservation is left on {host}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the VM is protected by a primary on `primary`.
    pub fn wait_until_protected(&self, host: &str, primary: &str) -> Value {
        self.wait(host, "protection", |status| status["host"] == primary && state(status) == "protected")
    }

    /// What all daemons and replicas have logged.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for host in ["a", "b", "c"] {
            for path in [self.path(&format!("{host}.log")), self.vm_folder(host).join("replica.log")] {
                // One that is a device has no end.
                if path.is_file()
                    && let Ok(log) = fs::read_to_string(&path)
                {
                    text.push_str(&format!("--- {}\n{log}", path.display()));
                }
            }
        }
        text
    }
}

/// A file system that is mounted there as long as this lives.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (pid, _) in processes(self.folder.path()) {
            signal(pid, "KILL");
        }
        for daemon in self.daemons.values_mut() {
            let _ = daemon.wait();
        }
    }
}

/// The state of protection.
pub fn state(view: &Value) -> &str {
    view["protection"]["state"].as_str().unwrap()
}

/// The reason for it.
pub fn reason(view: &Value) -> &str {
    view["protection"]["reason"].as_str().unwrap_or_default()
}

/// What more is said about it.
pub fn detail(view: &Value) -> &str {
    view["protection"]["detail"].as_str().unwrap_or_default()
}

/// Since when it is so, in ms since 1970.
pub fn since(view: &Value) -> u64 {
    view["protection"]["since_unix_ms"].as_u64().unwrap()
}
