//! A mirrored VM without daemons: replica processes on hosts that are no more than names, one network, one cluster store.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster::records::{Cluster, FtSettings, HostRecord, Lease, VmRecord};
use cluster::store::{EtcdAddress, StoreLocation, Stores, vms_folder};
use network::end::{EndConfig, EndProcess, Lifetime};
use serde_json::{Value, json};
use spec::DiskFormat;
use spec::{NetworkSpec, PortForward, UserSpec};
use storage::disk::{Backing, create_qcow2};
use storage::image::{Image, ImageSpec};
use tempfile::TempDir;

use crate::client::wait_for_service;
use crate::support::HUNG;
use crate::support::booted::{self, Booted};
use crate::support::guest::{free_port, image};
use crate::support::{images, place};

const VM: &str = "vm";
const MEMORY: &str = "256M";

/// What can be set.
#[derive(Clone)]
pub struct Setup {
    pub image: ImageSpec,
    pub guest_port: u16,
    /// Long, so that a loaded test machine does not look like a dead host, where silence is not what is tested.
    pub suspicion_ms: u32,
}

impl Setup {
    pub fn redis() -> Self {
        Self { image: images::redis(), guest_port: 6379, suspicion_ms: 2000 }
    }

    pub fn redis_append_only() -> Self {
        Self { image: images::redis_append_only(), ..Self::redis() }
    }
}

/// The world around the replicas: whatever outlives a host.
pub struct World {
    folder: TempDir,
    setup: Setup,
    image: Image,
    end: Option<EndProcess>,
    port: u16,
    hosts: Vec<String>,
    /// Hosts that are in a network namespace: its name and their address.
    places: BTreeMap<String, (String, String)>,
    /// Network ends of hosts that have their own.
    ends: BTreeMap<String, PathBuf>,
    /// The guest's own address, if it is not on the user network.
    guest_address: Option<Ipv4Addr>,
    store: StoreLocation,
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = StoreLocation::File(folder.path().join("store.db"));
        Self::with_store(setup, folder, store)
    }

    /// The same with a store in etcd.
    #[allow(dead_code, reason = "lockstep makes no difference to it")]
    pub fn on_etcd(setup: Setup, address: EtcdAddress) -> Self {
        Self::with_store(setup, tempfile::tempdir().unwrap(), StoreLocation::Etcd(address))
    }

    fn with_store(setup: Setup, folder: TempDir, store: StoreLocation) -> Self {
        let image = image(&setup.image);
        let authority = folder.path().join("authority");
        replication::channel::create_authority(&authority).unwrap();
        let port = free_port();
        Stores::create(&store, None).unwrap();
        let mut world = Self {
            folder,
            setup,
            image,
            end: None,
            port,
            hosts: Vec::new(),
            places: BTreeMap::new(),
            ends: BTreeMap::new(),
            guest_address: None,
            store,
        };
        world.start_end();
        let spec = world.spec(&world.path("nowhere"));
        let record = VmRecord::new(VM.parse().unwrap(), spec, FtSettings::disabled(world.suspicion_ms(), 50), 0);
        world.cluster().create_vm(&record, &"a".parse().unwrap()).unwrap();
        world
    }

    /// Starts the network end that hosts share, in place of one that has died.
    pub fn start_end(&mut self) {
        self.end = Some(self.user_end("end", Some(self.port)));
    }

    /// Kills it.
    pub fn kill_end(&mut self) {
        Self::kill_process(self.end.take().unwrap().pid());
    }

    /// Gives a host a user-mode network end of its own, which forwards a port to the guest's service.
    pub fn own_end(&mut self, host: &str, port: Option<u16>) -> EndProcess {
        let end = self.user_end(&format!("end-{host}"), port);
        self.set_end(host, end.socket());
        end
    }

    fn user_end(&self, name: &str, port: Option<u16>) -> EndProcess {
        let forward = |port| format!("tcp:127.0.0.1:{port}-:{}", self.setup.guest_port).parse::<PortForward>().unwrap();
        let config = EndConfig {
            network: NetworkSpec::User(UserSpec {
                forward: port.into_iter().map(forward).collect(),
                ..UserSpec::default()
            }),
            lifetime: Lifetime::WithParent,
        };
        let exe = Path::new(env!("CARGO_BIN_EXE_twinvm"));
        EndProcess::spawn(exe, &config, &self.path(&format!("{name}.sock")), Stdio::inherit()).unwrap()
    }

    /// Kills a process at once.
    pub fn kill_process(pid: u32) {
        let done = Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
        assert!(done.success());
    }

    fn end_socket(&self) -> PathBuf {
        self.path("end.sock")
    }

    fn suspicion_ms(&self) -> u32 {
        self.setup.suspicion_ms * place::slowness()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where a host keeps its copies of the disks.
    pub fn folder_of(&self, host: &str) -> PathBuf {
        self.path(host)
    }

    pub fn store(&self) -> StoreLocation {
        self.store.clone()
    }

    fn cluster(&self) -> Cluster {
        Cluster::new(Stores::open(&self.store(), None).unwrap())
    }

    /// Where the guest's service answers.
    pub fn address(&self) -> SocketAddr {
        match self.guest_address {
            None => (Ipv4Addr::LOCALHOST, self.port).into(),
            Some(address) => (address, self.setup.guest_port).into(),
        }
    }

    /// Gives the guest a network address of its own.
    pub fn set_guest_address(&mut self, address: Ipv4Addr) {
        self.guest_address = Some(address);
    }

    /// Lets a host use its own network end.
    pub fn set_end(&mut self, host: &str, socket: &Path) {
        self.ends.insert(host.to_owned(), socket.to_owned());
    }

    fn spec(&self, folder: &Path) -> String {
        let address = self.guest_address.map_or_else(String::new, |address| format!(" twinvm.ip={address}/24"));
        format!(
            "name = \"{VM}\"\nmemory = \"{MEMORY}\"\nkernel = \"{}\"\ninitrd = \"{}\"\ncmdline = '{}{address}'\n\
             [[disk]]\npath = \"{}\"\nformat = \"qcow2\"\n[[network]]\nmode = \"user\"\n",
            self.image.kernel().display(),
            self.image.initrd().display(),
            self.image.manifest().cmdline,
            folder.join("disk0.qcow2").display(),
        )
    }

    /// A replica process on a host, which is made if need be; its disk is what an earlier replica left there, or fresh.
    pub fn start(&mut self, host: &str, role: &str) -> Replica {
        self.start_from(host, role, None)
    }

    /// The same, from a snapshot in its folder.
    fn start_from(&mut self, host: &str, role: &str, snapshot: Option<&str>) -> Replica {
        let identity = self.path(&format!("identity-{host}"));
        if !self.hosts.iter().any(|known| known == host) {
            replication::channel::issue(&self.path("authority"), host, &identity).unwrap();
            self.register(host);
            self.hosts.push(host.to_owned());
        }
        let folder = self.path(host);
        std::fs::create_dir_all(&folder).unwrap();
        let disk = folder.join("disk0.qcow2");
        if !disk.exists() {
            let root = std::fs::canonicalize(self.image.root_disk().unwrap()).unwrap();
            let size_bytes = std::fs::metadata(&root).unwrap().len();
            create_qcow2(&disk, size_bytes, Some(&Backing { path: root, format: DiskFormat::Raw })).unwrap();
        }
        let place = self.places.get(host);
        let config = json!({
            "vm": VM, "host": host, "spec": self.spec(&folder), "role": role, "engine": place::engine(), "snapshot": snapshot,
            "store": self.store(), "identity": identity, "folder": folder,
            "network_ends": [self.ends.get(host).cloned().unwrap_or_else(|| self.end_socket())], "suspicion_ms": self.suspicion_ms(), "suspicion_ms_min": self.suspicion_ms(), "epoch_ms_max": 50, "mode": crate::MODE,
            "listen": (role == "secondary").then(|| format!("{}:0", place.map_or("127.0.0.1", |(_, address)| address))),
        });
        let file = folder.join("replica.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let log = std::fs::File::create(folder.join("replica.log")).unwrap();
        let program = env!("CARGO_BIN_EXE_twinvm");
        let mut command = match place {
            None => Command::new(program),
            Some((namespace, _)) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, program]);
                command
            }
        };
        let process = command
            .args(["replica", "--config"])
            .arg(&file)
            .env("RUST_LOG", "info,replication::driver::follower=debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Replica { host: host.to_owned(), folder, process }
    }

    /// Replicas connect to hosts of the cluster only.
    fn register(&self, host: &str) {
        let address = self.places.get(host).map_or("127.0.0.1", |(_, address)| address);
        let address: IpAddr = address.parse().unwrap();
        let record = HostRecord {
            name: host.parse().unwrap(),
            api_address: (address, 1).into(),
            replication_ip: address,
            boot_id: String::new(),
            domain: None,
            cpus: 1,
            memory_bytes: 0,
            engines: Vec::new(),
            kvm_processor: None,
            networks: Vec::new(),
            reached: Default::default(),
            maintenance: Default::default(),
            lease: Lease::default(),
            version: String::new(),
            instance: String::new(),
            folder: PathBuf::new(),
            unknown: Default::default(),
        };
        self.cluster().register_host(&record, None, HUNG).unwrap();
    }

    /// Puts a host into a network namespace, at an address.
    pub fn place(&mut self, host: &str, namespace: &str, address: &str) {
        self.places.insert(host.to_owned(), (namespace.to_owned(), address.to_owned()));
    }

    /// A primary on `a`, running.
    pub fn boot(&mut self) -> Replica {
        let primary = self.start("a", "primary");
        primary.wait("the guest to be started", |status| status["role"] == "primary");
        primary
    }

    /// A primary on `a` whose guest has booted, here or for another test, and whose Redis answers.
    pub fn booted(&mut self) -> Replica {
        let booted = Booted::of(&self.image, &self.spec(Path::new("/")));
        let (folder, file) = (self.folder_of("a"), self.path("booted.snapshot"));
        let snapshots = folder.join("snapshots");
        std::fs::create_dir_all(&snapshots).unwrap();
        let own = snapshots.join(format!("{}.snapshot", booted::NAME));
        if let Some(booted) = &booted
            && booted.put(&folder, &file).is_some()
        {
            // The folder may be on a file system that is too small for it.
            symlink(&file, &own).unwrap();
            let started = self.start_from("a", "primary", Some(booted::NAME)).wait_for_start();
            std::fs::remove_file(&own).unwrap();
            std::fs::remove_file(&file).unwrap();
            match started {
                Ok(primary) => {
                    wait_for_service(self.address());
                    return primary;
                }
                Err(why) => booted.forget(&why),
            }
        }
        let primary = self.boot();
        wait_for_service(self.address());
        Booted::settle(self.address());
        if let Some(booted) = booted
            && primary.ask(&json!({ "request": "snapshot", "name": booted::NAME, "memory": true })).is_ok()
        {
            booted.keep(&own);
            std::fs::remove_file(&own).unwrap();
        }
        primary
    }

    /// A secondary on `host` for `primary`, protected. As a daemon would, it tries again when the two lose each other: on a busy machine a
    /// replica may be silent for too long.
    pub fn protect(&mut self, primary: &Replica, host: &str) -> Replica {
        loop {
            let secondary = self.start_secondary(host);
            primary.protect_by(&secondary);
            let status = primary.wait("protection", |status| status["peer"].is_null() || is_protected(status));
            if is_protected(&status) {
                return secondary;
            }
            primary.wait_until_alone();
        }
    }

    /// A secondary that listens.
    pub fn start_secondary(&mut self, host: &str) -> Replica {
        let secondary = self.start(host, "secondary");
        secondary.wait("the secondary to listen", |status| status["listen"].is_string());
        secondary
    }
}

fn is_protected(status: &Value) -> bool {
    status["protection"]["state"] == "protected"
}

/// Asks the replica whose folder this is.
pub fn ask_in(folder: &Path, request: &Value) -> Result<Value, String> {
    let socket = UnixStream::connect(folder.join("replica.sock")).map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(HUNG)).unwrap();
    (&socket).write_all(format!("{request}\n").as_bytes()).map_err(|error| error.to_string())?;
    let mut line = String::new();
    BufReader::new(&socket).read_line(&mut line).map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line:?}"))?;
    match answer["answer"].as_str() {
        Some("done") => Ok(answer["status"].clone()),
        _ => Err(answer["message"].as_str().unwrap_or("no message").to_owned()),
    }
}

/// A replica process; killed when dropped.
pub struct Replica {
    pub host: String,
    pub folder: PathBuf,
    process: Child,
}

impl Replica {
    pub fn ask(&self, request: &Value) -> Result<Value, String> {
        ask_in(&self.folder, request)
    }

    pub fn status(&self) -> Result<Value, String> {
        self.ask(&json!({ "request": "status" }))
    }

    /// Waits for a status that `fits`.
    pub fn wait(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + HUNG;
        let mut last = Err(String::new());
        while Instant::now() < deadline {
            last = self.status();
            if let Ok(status) = &last
                && fits(status)
            {
                return status.clone();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("waited for {what} on {}: {last:?}\n{}", self.host, self.log());
    }

    /// Waits until this primary runs the VM; says why if it ends before.
    fn wait_for_start(mut self) -> Result<Self, String> {
        let deadline = Instant::now() + HUNG;
        while !self.status().is_ok_and(|status| status["role"] == "primary" && status["generation"] != 0) {
            if self.has_ended() {
                return Err(self.log());
            }
            assert!(Instant::now() < deadline, "it does not start\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(self)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("replica.log")).unwrap_or_default()
    }

    /// Waits until its log holds this, and returns it.
    #[allow(dead_code, reason = "lockstep makes no difference to who waits for it")]
    pub fn wait_for_log(&self, text: &str) -> String {
        let deadline = Instant::now() + HUNG;
        loop {
            let log = self.log();
            if log.contains(text) {
                return log;
            }
            assert!(Instant::now() < deadline, "waited for {text:?}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn protect_by(&self, secondary: &Replica) {
        let address = secondary.status().unwrap()["listen"].clone();
        let request = json!({ "request": "protect", "secondary": secondary.host, "address": address });
        self.ask(&request).unwrap_or_else(|error| panic!("{error}\n{}\n{}", self.log(), secondary.log()));
    }

    pub fn wait_until_protected(&self) {
        self.wait("protection", is_protected);
    }

    /// Waits until this primary has seen the loss of its secondary, and runs the VM alone.
    pub fn wait_until_alone(&self) -> Value {
        self.wait("the loss to be seen", |status| status["protection"]["state"] == "need-secondary")
    }

    /// Waits until this secondary runs the VM.
    pub fn wait_for_takeover(&self) -> Value {
        self.wait("a takeover", |status| status["role"] == "primary")
    }

    pub fn pid(&self) -> i32 {
        self.process.id().try_into().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// As when its host loses power.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Waits for the process to end by itself; returns what it left, and nothing where there was no room for that.
    pub fn wait_for_end(mut self) -> Value {
        let deadline = Instant::now() + HUNG;
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{} does not end\n{}", self.host, self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = std::fs::read_to_string(self.folder.join("ended.json")).unwrap_or_else(|_| "null".to_owned());
        serde_json::from_str(&left).unwrap_or_default()
    }
}

impl Replica {
    /// The guest's console, and whoever types on it.
    pub fn console(&self) -> Result<UnixStream, String> {
        let mut console = UnixStream::connect(self.folder.join("replica.sock")).map_err(|error| error.to_string())?;
        console.set_read_timeout(Some(HUNG)).unwrap();
        writeln!(console, "{}", json!({ "request": "console" })).map_err(|error| error.to_string())?;
        let mut answer = String::new();
        // Byte by byte: what follows the line is the console's.
        while !answer.ends_with('\n') {
            let mut byte = [0];
            console.read_exact(&mut byte).map_err(|error| error.to_string())?;
            answer.push(byte[0].into());
        }
        if answer.contains("done") { Ok(console) } else { Err(answer) }
    }

    /// What the guest has written on its console last.
    fn shown(&self) -> Result<String, String> {
        let mut console = self.console()?;
        console.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut shown = Vec::new();
        // It ends when nothing more comes.
        let _ = console.read_to_end(&mut shown);
        Ok(String::from_utf8_lossy(&shown).into_owned())
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (host, status) = (&self.host, self.status());
            eprintln!("replica on {host}: {status:?}\nits console: {:?}\nits log:\n{}", self.shown(), self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Keeps everybody from the cluster store, as long as it lives.
pub struct StoreAway {
    vms: PathBuf,
    away: PathBuf,
}

impl World {
    /// Makes the store unreachable.
    pub fn take_store_away(&self) -> StoreAway {
        let (vms, away) = (vms_folder(&self.path("store.db")), self.path("away"));
        std::fs::rename(&vms, &away).unwrap();
        StoreAway { vms, away }
    }

    /// What the network has seen.
    pub fn network(&self) -> network::end::EndStatus {
        network::end::status(&self.end_socket()).unwrap()
    }

    /// An identity of this cluster, or with another `authority` of another one.
    #[allow(dead_code, reason = "lockstep makes no difference to peers that nobody has asked")]
    pub fn identity(&self, authority: &str, host: &str) -> replication::channel::Identity {
        let authority = self.path(authority);
        if !authority.exists() {
            replication::channel::create_authority(&authority).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("identity");
        replication::channel::issue(&authority, host, &folder).unwrap();
        replication::channel::Identity::load(&folder).unwrap()
    }
}

impl Drop for StoreAway {
    fn drop(&mut self) {
        // The folder of the whole test may be gone already.
        let _ = std::fs::rename(&self.away, &self.vms);
    }
}
