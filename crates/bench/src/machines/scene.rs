//! Three machines with a member of etcd and a host each, set up as `docs/operators.md` says, and a protected Redis on them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use host::folder::HostFolder;
use tempfile::TempDir;
use terminal::interrupt;

use super::namespaces::{BRIDGE, Namespaces};
use crate::demo::{IMAGE, View, pause};
use crate::load::Connection;

/// Names of the machines.
pub const NAMES: [&str; 3] = ["a", "b", "c"];
/// Where the client is, and the guest.
const CLIENT: &str = "10.98.0.1/24";
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 50);
/// Redis' port.
const PORT: u16 = 6379;
/// Name of the VM.
const VM: &str = "demo";
/// Stands in etcd's configuration for the folder of a member's files, which is one for all members there and one for each here.
const MEMBER: &str = "MEMBER";
/// How long anything may take before it counts as hung.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long a try to reach the guest's Redis may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// The machines and what runs on them.
pub struct Scene {
    exe: PathBuf,
    // Before the folder: what runs there ends first.
    namespaces: Namespaces,
    /// etcd and the daemon of each machine.
    running: [Vec<Child>; 3],
    folder: TempDir,
}

impl Scene {
    /// Sets the machines up, and boots the VM on the first. The calling thread moves to where the client is.
    pub fn set() -> Result<Self> {
        let exe = std::env::current_exe().context("cannot find the twinvm program")?;
        let folder = tempfile::Builder::new().prefix("twinvm-machines-").tempdir();
        let folder = folder.context("cannot make a temporary folder")?;
        let addresses: Vec<String> = (0..NAMES.len()).map(|number| format!("{}/24", ip_of(number))).collect();
        let namespaces = Namespaces::enter(CLIENT, &addresses)?;
        let mut scene = Self { exe, namespaces, running: Default::default(), folder };
        scene.make_etcd()?;
        for number in 0..NAMES.len() {
            scene.start_etcd(number)?;
        }
        scene.make_hosts()?;
        scene.create_vm()?;
        Ok(scene)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn member(&self, number: usize) -> PathBuf {
        self.path("etcd").join(name(number))
    }

    fn host(&self, number: usize) -> Result<HostFolder> {
        HostFolder::find(Some(&self.path(name(number))))
    }

    /// Writes the members' files, with folders of their own for the same machine.
    fn make_etcd(&self) -> Result<()> {
        let members = (0..NAMES.len()).map(|number| format!("{}={}", name(number), ip_of(number)));
        let mut words = vec!["cluster".to_owned(), "etcd".to_owned()];
        words.extend(members.flat_map(|member| ["--member".to_owned(), member]));
        let data = format!("{MEMBER}/data");
        words.extend(["--out", "etcd", "--member-dir", MEMBER, "--data-dir", &data].map(str::to_owned));
        self.done(0, &words)?;
        for number in 0..NAMES.len() {
            let file = self.member(number).join("etcd.yml");
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let text = text.replace(MEMBER, &self.member(number).to_string_lossy());
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn start_etcd(&mut self, number: usize) -> Result<()> {
        let log = log_file(&self.member(number).join("log"))?;
        let mut command = self.namespaces.command(number, Path::new("etcd"));
        command.arg("--config-file").arg(self.member(number).join("etcd.yml"));
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("cannot start etcd")?;
        self.of(number)?.push(child);
        Ok(())
    }

    fn of(&mut self, number: usize) -> Result<&mut Vec<Child>> {
        self.running.get_mut(number).context("there is no such machine")
    }

    /// Makes the cluster as soon as etcd answers, and has the others join.
    fn make_hosts(&mut self) -> Result<()> {
        let listen = |number: usize| format!("{}:7441", ip_of(number));
        let common = |number| ["--listen".to_owned(), listen(number), "--metrics".to_owned(), String::new()];
        let words = |number: usize, first: &[&str]| -> Vec<String> {
            // They share a kernel, and with it what hosts know a machine by; each is to count as one.
            let own = ["--name", name(number), "--network", BRIDGE, "--domain", name(number)];
            first.iter().chain(&own).map(|word| (*word).to_owned()).chain(common(number)).collect()
        };
        let deadline = Instant::now() + TIMEOUT;
        while let Err(error) = self.done(0, &words(0, &["cluster", "init", "--etcd", "etcd"])) {
            if Instant::now() > deadline {
                return Err(error);
            }
            pause()?;
        }
        self.start_daemon(0)?;
        for number in 1..NAMES.len() {
            let token = self.done(0, &["host", "token", name(number)].map(str::to_owned))?;
            self.done(number, &words(number, &["host", "join", token.trim()]))?;
            self.start_daemon(number)?;
        }
        Ok(())
    }

    /// Starts a host's daemon, and waits until it answers.
    fn start_daemon(&mut self, number: usize) -> Result<()> {
        let log = log_file(&self.path(&format!("{}.log", name(number))))?;
        let mut command = self.twinvm(number)?;
        command.args(["host", "start"]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.of(number)?.push(command.spawn().context("cannot start a host's daemon")?);
        let deadline = Instant::now() + TIMEOUT;
        while let Err(error) = self.done(number, &["host", "list"].map(str::to_owned)) {
            if Instant::now() > deadline {
                return Err(error);
            }
            pause()?;
        }
        Ok(())
    }

    fn create_vm(&mut self) -> Result<()> {
        let path = self.path("demo.toml");
        let spec = format!(
            "name = \"{VM}\"\nmemory = \"256M\"\nimage = \"{IMAGE}\"\n\
             cmdline = \"console=ttyS0 root=/dev/vda cryptomgr.notests twinvm.ip={GUEST}/24\"\n\
             [[disk]]\npath = \"root.qcow2\"\nformat = \"qcow2\"\nbase_image = \"{IMAGE}\"\n\
             [[network]]\nmode = \"bridge\"\nbridge = \"{BRIDGE}\"\n"
        );
        fs::write(&path, spec).context("cannot write the VM spec")?;
        self.done(0, &["vm", "create", "demo.toml", "--start"].map(str::to_owned))?;
        let deadline = Instant::now() + TIMEOUT;
        while Connection::open(self.redis(), TRY_TIMEOUT)
            .and_then(|mut connection| connection.ask(&[b"PING"], TRY_TIMEOUT))
            .is_err()
        {
            if Instant::now() > deadline {
                bail!("the guest's Redis does not answer{}", self.logs());
            }
            pause()?;
        }
        self.done(0, &["ft", "on", VM, "--yes"].map(str::to_owned)).map(drop)
    }

    /// Where the guest's Redis answers.
    pub fn redis(&self) -> SocketAddr {
        (GUEST, PORT).into()
    }

    /// What the VM's replicas say now.
    pub fn view(&self) -> View {
        let folders = (0..NAMES.len()).filter_map(|number| Some(self.host(number).ok()?.vm(VM)));
        View::of(folders)
    }

    /// Waits until the VM is protected; the number of its primary's machine, and of its secondary's.
    pub fn wait_until_protected(&self) -> Result<[usize; 2]> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let view = self.view();
            if view.is_protected()
                && let (Some(primary), Some(secondary)) = (view.primary(), view.secondary())
                && let (Some(primary), Some(secondary)) = (number_of(&primary.host), number_of(&secondary.host))
            {
                return Ok([primary, secondary]);
            }
            if Instant::now() > deadline {
                bail!("the VM does not get protected: {}{}", view.state(), self.logs());
            }
            pause()?;
        }
    }

    /// Hands the VM over to its secondary.
    pub fn switch_over(&self, from: usize) -> Result<()> {
        self.done(from, &["ft", "switchover", VM].map(str::to_owned)).map(drop)
    }

    /// Moves the VM to a machine that holds no replica of it. It is without a secondary on the way.
    pub fn migrate(&self, from: usize, to: usize) -> Result<()> {
        self.done(from, &["vm", "migrate", VM, name(to), "--interrupt-ft"].map(str::to_owned)).map(drop)
    }

    /// The number of the machine whose member of etcd leads: the one that has become the leader of the highest term, by what members log.
    pub fn etcd_leader(&self) -> Result<usize> {
        let term = |number: usize| -> Option<u64> {
            let log = fs::read_to_string(self.member(number).join("log")).ok()?;
            let (_, term) = log.rsplit_once(" became leader at term ")?;
            term.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let leaders = (0..NAMES.len()).filter_map(|number| Some((term(number)?, number)));
        leaders.max().map(|(_, number)| number).context("no member of etcd has become the leader")
    }

    /// Ends everything on a machine, and its link.
    pub fn lose(&mut self, number: usize) -> Result<()> {
        self.namespaces.lose(number)?;
        for mut child in self.of(number)?.drain(..) {
            child.wait().context("cannot wait for what was killed")?;
        }
        Ok(())
    }

    /// Starts a machine again.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        self.namespaces.reconnect(number)?;
        self.start_etcd(number)?;
        self.start_daemon(number)
    }

    /// This program, to be run for a host on its machine.
    fn twinvm(&self, number: usize) -> Result<Command> {
        let mut command = self.namespaces.command(number, &self.exe);
        command.current_dir(self.folder.path()).env("TWINVM_HOST_DIR", self.host(number)?.path());
        command.env("TWINVM_OPERATOR", self.host(0)?.operator());
        Ok(command)
    }

    /// What a command prints that has to succeed.
    fn done(&self, number: usize, words: &[String]) -> Result<String> {
        let output = self.twinvm(number)?.args(words).stdin(Stdio::null()).output().context("cannot start twinvm")?;
        if !output.status.success() {
            // Ctrl-C is for all that was started here.
            if interrupt::is_requested() {
                bail!("interrupted");
            }
            bail!("twinvm {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The ends of the hosts' and the replicas' logs.
    fn logs(&self) -> String {
        let mut text = String::new();
        for (number, name) in NAMES.iter().enumerate() {
            let replica = self.host(number).map(|host| host.vm(VM).join("replica.log"));
            for path in [Some(self.path(&format!("{name}.log"))), replica.ok()].into_iter().flatten() {
                let log = fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
                text += &format!("\n--- the end of {}:\n{tail}", path.display());
            }
        }
        text
    }
}

fn name(number: usize) -> &'static str {
    NAMES.get(number).copied().unwrap_or("none")
}

fn number_of(host: &str) -> Option<usize> {
    NAMES.iter().position(|name| *name == host)
}

fn ip_of(number: usize) -> String {
    format!("10.98.0.{}", 11 + number)
}

fn log_file(path: &Path) -> Result<File> {
    let file = File::options().append(true).create(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}
