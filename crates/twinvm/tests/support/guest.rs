//! A Debian guest with a service, and the network it is on.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::block::ImageDisk;
use machine::devices::virtio::net::NetConfig;
use machine::devices::virtio::rng::SeededEntropy;
use machine::engine::soft::InputMode;
use machine::platform::Parts;
use machine::vm::{Boot, Vm, VmConfig};
use network::end::{EndConfig, EndProcess, Lifetime};
use network::{Attach, FrameBackend, Link};
use spec::{DiskFormat, EngineKind, MacAddr, NetworkSpec, PortForward, UserSpec};
use storage::disk::{Backing, DiskImage, DiskOptions, create_qcow2};
use storage::image::{BuildOptions, Image, ImageSpec, ImageStore, NoProgress};
use tempfile::TempDir;

use super::{images, place};

/// The folder of the images that tests share, so that each is built once.
pub fn images_dir() -> PathBuf {
    let home = std::env::var_os("TWINVM_HOME")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.twinvm"), PathBuf::from);
    home.join("images")
}

/// Builds an image, or finds it built. What it is to hold is resolved once in a process, as that takes its time.
pub fn image(spec: &ImageSpec) -> Image {
    static BUILT: Mutex<Vec<ImageSpec>> = Mutex::new(Vec::new());
    let store = ImageStore::new(images_dir());
    let is_built = BUILT.lock().unwrap().contains(spec);
    if !place::images_are_built() && !is_built {
        // Whoever needs another image does not wait for it.
        store.build(spec, BuildOptions::default(), &mut NoProgress).unwrap();
        let mut built = BUILT.lock().unwrap();
        built.retain(|other| other.name != spec.name);
        built.push(spec.clone());
    }
    store.get(&spec.name).unwrap()
}

/// What a guest has written on its console.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl ConsoleSink for Console {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

/// A guest's image, its folder for disks, and its hardware.
pub struct Guest {
    image: Image,
    folder: TempDir,
    cpus: u32,
    memory_bytes: u64,
    console: Console,
}

impl Guest {
    /// Debian with Redis.
    pub fn redis(cpus: u32) -> Self {
        Self::of(image(&images::redis()), cpus, 256 << 20)
    }

    /// A guest of this image.
    pub fn of(image: Image, cpus: u32, memory_bytes: u64) -> Self {
        Self { image, folder: tempfile::tempdir().unwrap(), cpus, memory_bytes, console: Console::default() }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn config(&self) -> VmConfig {
        VmConfig {
            name: "test".into(),
            cpus: self.cpus,
            memory_bytes: self.memory_bytes,
            cpu: spec::CpuLevel::Portable,
            backing: spec::MemoryBacking::default(),
            translator: spec::Translator::On,
        }
    }

    /// A fresh disk over the image's root disk.
    pub fn disk(&self, name: &str) -> PathBuf {
        let path = self.folder().join(name);
        let root = std::fs::canonicalize(self.image.root_disk().unwrap()).unwrap();
        let size_bytes = std::fs::metadata(&root).unwrap().len();
        create_qcow2(&path, size_bytes, Some(&Backing { path: root, format: DiskFormat::Raw })).unwrap();
        path
    }

    /// The ends of the guest's devices; it has taken `entropy_bytes` of its entropy so far.
    pub fn parts(&self, disk: &Path, link: Box<dyn FrameBackend>, entropy_bytes: u64) -> Parts {
        let options = DiskOptions { format: Some(DiskFormat::Qcow2), ..DiskOptions::default() };
        Parts {
            disks: vec![Box::new(ImageDisk::new(DiskImage::open(disk, options).unwrap()))],
            cards: vec![(NetConfig { mac: MacAddr::for_vm("test", 0), mtu: 1500 }, link)],
            console: Box::new(self.console.clone()),
            entropy: Box::new(SeededEntropy::new(7, entropy_bytes)),
        }
    }

    /// The guest at power-on, on the soft engine.
    pub fn boot(&self, disk: &Path, link: Box<dyn FrameBackend>) -> Vm {
        let kernel = std::fs::read(self.image.kernel()).unwrap();
        let initrd = std::fs::read(self.image.initrd()).unwrap();
        let boot = Boot::Linux { kernel: &kernel, initrd: Some(&initrd), command_line: &self.image.manifest().cmdline };
        Vm::boot(self.config(), &boot, self.parts(disk, link, 0), EngineKind::Soft, InputMode::Live).unwrap()
    }

    pub fn console(&self) -> String {
        self.console.text()
    }
}

/// A user-mode network in a process of its own.
pub struct Network {
    end: EndProcess,
    ports: Vec<(u16, u16)>,
    _folder: TempDir,
}

impl Network {
    /// A network that forwards free ports of 127.0.0.1 to these ports of the guest.
    pub fn user(guest_ports: &[u16]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports: Vec<_> = guest_ports.iter().map(|&port| (port, free_port())).collect();
        let forward = ports
            .iter()
            .map(|(guest, host)| format!("tcp:127.0.0.1:{host}-:{guest}").parse::<PortForward>().unwrap())
            .collect();
        let config = EndConfig {
            network: NetworkSpec::User(UserSpec { forward, ..UserSpec::default() }),
            lifetime: Lifetime::WithParent,
        };
        let exe = Path::new(env!("CARGO_BIN_EXE_twinvm"));
        let end =
            EndProcess::spawn(exe, &config, &folder.path().join("end.sock"), std::process::Stdio::inherit()).unwrap();
        Self { end, ports, _folder: folder }
    }

    /// A new connection for a VM, which takes the place of the one before.
    pub fn link(&self) -> Box<dyn FrameBackend> {
        Box::new(Link::connect(self.end.socket(), &Attach::default()).unwrap())
    }

    /// The port of 127.0.0.1 that leads to `guest_port`.
    pub fn port(&self, guest_port: u16) -> u16 {
        self.ports.iter().find(|(guest, _)| *guest == guest_port).unwrap().1
    }

    /// A connection to the guest's Redis that has answered.
    pub fn redis(&self, guest_port: u16) -> redis::RedisResult<redis::Connection> {
        let client = redis::Client::open(("127.0.0.1", self.port(guest_port)))?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
        connection.set_read_timeout(Some(Duration::from_secs(60)))?;
        let _: String = redis::cmd("PING").query(&mut connection)?;
        Ok(connection)
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
