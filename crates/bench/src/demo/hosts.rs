//! Hosts of one cluster on this machine, each a daemon with processes of its own.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use host::config::HostConfig;
use host::folder::HostFolder;
use spec::{EngineKind, FtMode};
use tempfile::TempDir;
use terminal::interrupt;
use terminal::output::say;

use super::process::{self, Kind};
use super::view::View;
use super::{IMAGE, free_port};

/// Names of the hosts, as far as there are so many.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// The folder of files that any of them may use for VMs.
const FILES: &str = "files";
/// Name of the VM.
pub const VM: &str = "demo";
/// The counter that clients increment.
pub const COUNTER: &str = "counter";
/// How long a daemon may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// What of a log is shown when something went wrong, in bytes.
const LOG_TAIL_BYTES: u64 = 2000;

/// What the hosts are to be.
#[derive(Clone, Copy)]
pub struct Setup {
    /// How many there are: 1 to 3.
    pub count: usize,
    /// Replicas suspect each other after so many ms, or after the hosts' default.
    pub suspicion_ms: Option<u32>,
}

/// The hosts, and the VM on them. Everything ends and every file is removed when this is dropped.
pub struct Hosts {
    exe: PathBuf,
    hosts: Vec<Host>,
    redis: SocketAddr,
    folder: TempDir,
}

struct Host {
    name: &'static str,
    folder: HostFolder,
    daemon: Option<Child>,
}

impl Host {
    /// What runs on it, without the network end.
    fn processes(&self) -> Vec<process::Process> {
        let mut processes = process::in_folder(self.folder.path());
        processes.retain(|process| process.kind != Kind::NetworkEnd);
        processes
    }
}

impl Hosts {
    /// Makes the hosts in a temporary folder, and starts their daemons.
    pub fn start(Setup { count, suspicion_ms }: Setup) -> Result<Self> {
        let exe = std::env::current_exe().context("cannot find the twinvm program")?;
        let folder =
            tempfile::Builder::new().prefix("twinvm-demo-").tempdir().context("cannot make a temporary folder")?;
        // What processes compare paths with is absolute and without symbolic links.
        let root = fs::canonicalize(folder.path())?;
        DirBuilder::new().mode(0o700).create(root.join("run")).context("cannot make a folder for sockets")?;
        let redis = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut hosts = Self { exe, hosts: Vec::new(), redis, folder };
        fs::create_dir(root.join(FILES)).context("cannot make a folder for files")?;
        for name in NAMES.into_iter().take(count) {
            let host = HostFolder::find(Some(&root.join(name)))?;
            hosts.hosts.push(Host { name, folder: host, daemon: None });
        }
        for (number, name) in NAMES.into_iter().take(count).enumerate() {
            hosts.init(number, name, &root)?;
        }
        if let Some(suspicion_ms) = suspicion_ms {
            for host in &hosts.hosts {
                let config = HostConfig { suspicion_ms, ..HostConfig::load(&host.folder)? };
                fs::write(host.folder.config(), config.to_toml()?).context("cannot write a host's configuration")?;
            }
        }
        for number in 0..hosts.hosts.len() {
            hosts.launch(number)?;
        }
        for number in 0..hosts.hosts.len() {
            hosts.wait_for_daemon(number)?;
        }
        Ok(hosts)
    }

    fn init(&self, number: usize, name: &str, root: &Path) -> Result<()> {
        let files = root.join(FILES);
        let common = ["host", "init", "--listen", "127.0.0.1:0", "--metrics", "", "--vm-folder"].map(OsStr::new);
        let common = [&common[..], &[files.as_os_str()]].concat();
        if number == 0 {
            let store = root.join("cluster.db");
            let own = ["--new-cluster", "--name", name, "--store"].map(OsStr::new);
            return self.command(number, common.iter().chain(&own).chain([&store.as_os_str()]));
        }
        let bundle = root.join(format!("{name}.bundle"));
        let issue = ["host", "issue", name, "--out"].map(OsStr::new);
        self.command(0, issue.iter().chain([&bundle.as_os_str()]))?;
        self.command(number, common.iter().chain(&[OsStr::new("--bundle"), bundle.as_os_str()]))
    }

    /// Starts a daemon.
    fn launch(&mut self, number: usize) -> Result<()> {
        let log = self.log(number);
        let log = File::options().append(true).create(true).open(&log).context("cannot write a daemon's log")?;
        let mut command = self.twinvm(number)?;
        let host = self.hosts.get_mut(number).context("no such host")?;
        command.args(["host", "start", "--dir"]).arg(host.folder.path());
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for this process, which then ends the daemon.
            .process_group(0)
            .spawn()
            .context("cannot start a host's daemon")?;
        host.daemon = Some(child);
        Ok(())
    }

    fn wait_for_daemon(&mut self, number: usize) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let host = self.hosts.get_mut(number).context("no such host")?;
            let name = host.name;
            let daemon = host.daemon.as_mut().context("the daemon was not started")?;
            if let Some(status) = daemon.try_wait()? {
                bail!("the daemon of host {name} has ended: {status}{}", self.log_tails());
            }
            // The file that a killed daemon has left names another process.
            if let Some(addresses) = host.folder.addresses()
                && addresses.pid == daemon.id()
                && std::net::TcpStream::connect_timeout(&addresses.api, Duration::from_secs(1)).is_ok()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the daemon of host {name} does not answer{}", self.log_tails());
            }
            pause()?;
        }
    }

    /// Creates and starts the VM, on the first host.
    pub fn create_vm(&self, engine: EngineKind) -> Result<()> {
        let path = self.folder.path().join("demo.toml");
        let spec = format!(
            "name = \"{VM}\"\nmemory = \"256M\"\nengine = \"{engine}\"\nimage = \"{IMAGE}\"\n\
             [[disk]]\npath = \"root.qcow2\"\nformat = \"qcow2\"\nbase_image = \"{IMAGE}\"\n\
             [[network]]\nmode = \"user\"\nforward = [\"tcp:{}-:6379\"]\n",
            self.redis
        );
        fs::write(&path, spec).context("cannot write the VM spec")?;
        let words = [OsStr::new("vm"), OsStr::new("create"), path.as_os_str(), OsStr::new("--start")];
        self.command(0, &words)
    }

    /// Begins to protect the VM.
    pub fn protect(&self, mode: FtMode) -> Result<()> {
        let mode = mode.to_string();
        self.command(self.first_alive()?, &["ft", "on", VM, "--mode", &mode, "--yes", "--no-wait"].map(OsStr::new))
    }

    /// Ends its protection.
    pub fn unprotect(&self) -> Result<()> {
        self.command(self.first_alive()?, &["ft", "off", VM].map(OsStr::new))
    }

    /// Where there are files that any host may use for VMs.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join(FILES)
    }

    /// The number of a host's daemon process, if it runs.
    pub fn daemon_pid(&self, name: &str) -> Option<u32> {
        self.hosts.iter().find(|host| host.name == name)?.daemon.as_ref().map(Child::id)
    }

    /// The hosts on which a replica's process runs.
    pub fn with_replicas(&self) -> Vec<&'static str> {
        let runs = |host: &&Host| host.processes().iter().any(|process| process.kind == Kind::Replica);
        self.hosts.iter().filter(runs).map(|host| host.name).collect()
    }

    /// What a command prints on a host that is alive.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        self.run(self.first_alive()?, words.iter().map(OsStr::new))
    }

    /// Where the guest's Redis can be reached.
    pub fn redis(&self) -> SocketAddr {
        self.redis
    }

    /// What the VM's replicas say now.
    pub fn view(&self) -> View {
        View::of(self.hosts.iter().filter(|host| host.daemon.is_some()).map(|host| host.folder.vm(VM)))
    }

    /// Has all processes of a host stand still, with their connections open. The network end goes on: it stands for the network outside.
    pub fn stop(&self, name: &str) -> Result<()> {
        let host = self.hosts.iter().find(|host| host.name == name);
        let host = host.with_context(|| format!("there is no host {name:?}"))?;
        host.processes().iter().for_each(process::Process::stop);
        Ok(())
    }

    /// Kills all processes of a host: its daemon and its replicas. The network end stays.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let host = self.hosts.iter_mut().find(|host| host.name == name);
        let host = host.with_context(|| format!("there is no host {name:?}"))?;
        host.processes().iter().for_each(process::Process::kill);
        if let Some(mut daemon) = host.daemon.take() {
            daemon.wait().context("cannot wait for a killed daemon")?;
        }
        Ok(())
    }

    /// Starts the daemon of a host that was killed.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let number = self.hosts.iter().position(|host| host.name == name);
        let number = number.with_context(|| format!("there is no host {name:?}"))?;
        self.launch(number)?;
        self.wait_for_daemon(number)
    }

    fn first_alive(&self) -> Result<usize> {
        self.hosts.iter().position(|host| host.daemon.is_some()).context("no host is alive")
    }

    fn log(&self, number: usize) -> PathBuf {
        let name = self.hosts.get(number).map_or("unknown", |host| host.name);
        self.folder.path().join(format!("{name}.log"))
    }

    /// This program, to be run for one of the hosts.
    fn twinvm(&self, number: usize) -> Result<Command> {
        let host = self.hosts.get(number).context("no such host")?;
        let mut command = Command::new(&self.exe);
        command.env("TWINVM_HOST_DIR", host.folder.path()).env("XDG_RUNTIME_DIR", self.folder.path().join("run"));
        // The first host makes it, and keeps it though it is killed.
        if let Some(first) = self.hosts.first() {
            command.env("TWINVM_OPERATOR", first.folder.operator());
        }
        Ok(command)
    }

    /// Carries out a command on a host.
    fn command<'a>(&self, number: usize, words: impl IntoIterator<Item = &'a &'a OsStr>) -> Result<()> {
        self.run(number, words.into_iter().copied()).map(drop)
    }

    /// Carries out a command on a host; what it prints.
    fn run<'a>(&self, number: usize, words: impl IntoIterator<Item = &'a OsStr>) -> Result<String> {
        let words: Vec<&OsStr> = words.into_iter().collect();
        let line = || words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let file = || tempfile::tempfile_in(self.folder.path()).context("cannot make a temporary file");
        let (mut printed, errors) = (file()?, file()?);
        let mut child = self
            .twinvm(number)?
            .args(&words)
            .stdin(Stdio::null())
            .stdout(printed.try_clone()?)
            .stderr(errors.try_clone()?)
            .process_group(0)
            .spawn()
            .context("cannot start twinvm")?;
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        let ended = loop {
            if let Some(status) = child.try_wait()? {
                break Ok(status);
            }
            if Instant::now() > deadline {
                break Err(anyhow::anyhow!("it takes too long"));
            }
            if let Err(interrupted) = pause() {
                break Err(interrupted);
            }
        };
        let status = match ended {
            Ok(status) => status,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error.context(format!("twinvm {}", line())));
            }
        };
        if !status.success() {
            let text = tail(errors).unwrap_or_default();
            bail!("twinvm {}: {}{}", line(), text.trim(), self.log_tails());
        }
        let mut text = String::new();
        printed.rewind()?;
        printed.read_to_string(&mut text)?;
        Ok(text)
    }

    /// The ends of all logs, to show when something went wrong.
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for (number, host) in self.hosts.iter().enumerate() {
            for (what, path) in [("host", self.log(number)), ("replica on", host.folder.vm(VM).join("replica.log"))] {
                let tail = File::open(path).ok().and_then(tail).unwrap_or_default();
                if !tail.trim().is_empty() {
                    text.push_str(&format!("\n--- the end of the log of {what} {}:\n{}", host.name, tail.trim_end()));
                }
            }
        }
        text
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        match fs::canonicalize(self.folder.path()) {
            Ok(folder) => process::kill_all(&folder),
            Err(error) => say(format_args!("twinvm: cannot find the demo's folder to end what runs in it: {error}")),
        }
        for daemon in self.hosts.iter_mut().filter_map(|host| host.daemon.as_mut()) {
            // It was killed, and leaves the table of processes now.
            let _ = daemon.wait();
        }
    }
}

/// Waits a moment; an error if somebody wants this process to end.
pub fn pause() -> Result<()> {
    if interrupt::is_requested() {
        bail!("interrupted");
    }
    std::thread::sleep(Duration::from_millis(10));
    Ok(())
}

/// The end of a file.
fn tail(mut file: File) -> Option<String> {
    let len = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
