//! From a VM spec to everything a VM is made of: files opened, images locked, network ends started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};
use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::block::{BlockBackend, ImageDisk};
use machine::devices::virtio::net::NetConfig;
use machine::devices::virtio::rng::OsEntropy;
use machine::platform::Parts;
use machine::vm::VmConfig;
use network::end::{EndConfig, EndProcess, Lifetime};
use network::{Attach, FrameBackend, Link};
use spec::{DiskSpec, MacAddr, NetworkSpec, VmSpec};
use storage::disk::{Backing, BaseIdentity, DiskImage, DiskOptions, settle};
use storage::image::{Image, ImageStore};
use terminal::error_text::error_text;

use crate::paths;

/// A guest to boot.
pub struct Guest {
    /// Kernel file.
    pub kernel: Vec<u8>,
    /// Initial RAM disk.
    pub initrd: Option<Vec<u8>>,
    /// Kernel command line.
    pub command_line: String,
}

/// The same by its files.
pub struct GuestFiles {
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub command_line: String,
}

/// The hardware that a spec describes.
pub fn config(spec: &VmSpec) -> Result<VmConfig> {
    let memory_bytes = spec.memory.bytes();
    let host_bytes = host_memory_bytes()?;
    if memory_bytes > host_bytes {
        bail!("memory = \"{}\": this host has {} MiB in all", spec.memory, host_bytes >> 20);
    }
    let backing = spec.backing();
    Ok(VmConfig {
        name: spec.name.clone(),
        cpus: spec.cpus,
        memory_bytes,
        cpu: spec.cpu,
        backing,
        translator: spec.translator,
    })
}

/// Memory of this machine, in bytes.
pub fn host_memory_bytes() -> Result<u64> {
    let info = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    info.lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib << 10)
        .ok_or_else(|| anyhow!("/proc/meminfo names no MemTotal"))
}

/// The images of the user's data folder.
pub fn images() -> Result<ImageStore> {
    Ok(ImageStore::new(paths::images_dir()?))
}

fn image(name: &str) -> Result<Image> {
    images()?.get(name).with_context(|| {
        format!("image {name} cannot be used; see `twinvm image list`, or build it with `twinvm image build {name}`")
    })
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {what} {}", path.display()))
}

/// The image of a spec. If a disk is there already that began as the same one, the version that it is based on: the modules of another kernel would not be
/// on it.
fn image_of(spec: &VmSpec, name: &str) -> Result<Image> {
    let disk = spec.disks.iter().find(|disk| disk.base_image.as_deref() == Some(name));
    match disk.and_then(|disk| images().ok()?.image_below(&disk.path)) {
        Some(below) => Ok(below),
        None => image(name),
    }
}

impl GuestFiles {
    /// Finds kernel and initrd.
    pub fn of(spec: &VmSpec) -> Result<Self> {
        let image = spec.image.as_deref().map(|name| image_of(spec, name)).transpose()?;
        let kernel = spec
            .kernel
            .clone()
            .or_else(|| image.as_ref().map(Image::kernel))
            .ok_or_else(|| anyhow!("the spec names no kernel"))?;
        let initrd = spec.initrd.clone().or_else(|| image.as_ref().map(Image::initrd));
        let command_line = spec
            .cmdline
            .clone()
            .or_else(|| image.as_ref().map(|image| image.manifest().cmdline.clone()))
            .unwrap_or_else(|| "console=ttyS0".to_owned());
        Ok(Self { kernel, initrd, command_line: command_line + &spec.identity_parameters() })
    }

    /// Reads them.
    pub fn read(&self) -> Result<Guest> {
        Ok(Guest {
            kernel: read("kernel", &self.kernel)?,
            initrd: self.initrd.as_deref().map(|path| read("initrd", path)).transpose()?,
            command_line: self.command_line.clone(),
        })
    }
}

/// Reads kernel and initrd.
pub fn guest(spec: &VmSpec) -> Result<Guest> {
    GuestFiles::of(spec)?.read()
}

/// The network cards of a VM, as far as they are known before they are connected.
pub fn cards(vm: &str, networks: &[NetworkSpec]) -> Vec<NetConfig> {
    let mac = |(network, number): (&NetworkSpec, u32)| network.mac().unwrap_or_else(|| MacAddr::for_vm(vm, number));
    networks.iter().zip(0..).map(|card| NetConfig { mac: mac(card), mtu: 0 }).collect()
}

/// The processes that stand between a VM's network cards and the world. They end when this is dropped.
pub struct Ends {
    ends: Vec<EndProcess>,
    cards: Vec<NetConfig>,
}

impl Ends {
    /// Starts an end for each network of a VM.
    pub fn start(vm: &str, networks: &[NetworkSpec]) -> Result<Self> {
        let exe = std::env::current_exe().context("cannot find the twinvm program")?;
        let cards = cards(vm, networks);
        let mut ends = Vec::new();
        for (number, network) in networks.iter().enumerate() {
            let config = EndConfig { network: network.clone(), lifetime: Lifetime::WithParent };
            let socket = paths::runtime_dir()?.join(format!("net-{vm}-{number}-{}.sock", std::process::id()));
            let end = EndProcess::spawn(&exe, &config, &socket, Stdio::inherit())
                .with_context(|| format!("network {number}"))?;
            ends.push(end);
        }
        Ok(Self { ends, cards })
    }

    /// Where one of them listens.
    pub fn socket(&self, number: usize) -> Option<&Path> {
        self.ends.get(number).map(EndProcess::socket)
    }

    /// Connects a VM to them, in place of the one before, if any.
    pub fn connect(&self) -> Result<Cards> {
        self.ends
            .iter()
            .zip(&self.cards)
            .map(|(end, card)| {
                let link = Link::connect(end.socket(), &Attach::default())?;
                Ok((NetConfig { mtu: link.mtu(), ..*card }, Box::new(link) as Box<dyn FrameBackend>))
            })
            .collect()
    }
}

/// Network cards that are connected.
pub type Cards = Vec<(NetConfig, Box<dyn FrameBackend>)>;

/// The parts of a VM with these disks and cards.
pub fn parts(disks: Vec<DiskImage>, cards: Cards, console: Box<dyn ConsoleSink>) -> Result<Parts> {
    Ok(Parts {
        disks: disks.into_iter().map(|disk| Box::new(ImageDisk::new(disk)) as Box<dyn BlockBackend>).collect(),
        cards,
        console,
        entropy: Box::new(OsEntropy::open().context("cannot open /dev/urandom")?),
    })
}

/// The files that something is based on, and where their digests are kept.
pub fn base_files(mut next: Option<Backing>) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    while let Some(backing) = next {
        files.push(BaseIdentity::kept_at(&backing.path).unwrap_or_default());
        files.push(backing.path.clone());
        let options = DiskOptions { format: Some(backing.format), read_only: true, direct: false };
        next = DiskImage::open(&backing.path, options)?.backing().cloned();
    }
    Ok(files)
}

/// Opens the disks, and creates those that begin as an image.
pub fn disks(spec: &VmSpec) -> Result<Vec<DiskImage>> {
    spec.disks.iter().map(open_disk).collect()
}

/// What a disk shows where a snapshot of its VM has nothing of it: of a writable one, whose file is in the snapshot, what that is based on;
/// all of another one.
pub fn base(disk: &DiskImage) -> Result<BaseIdentity> {
    let whole = Backing { path: disk.path().to_owned(), format: disk.format() };
    Ok(BaseIdentity::of(if disk.is_read_only() { Some(&whole) } else { disk.backing() })?)
}

fn open_disk(spec: &DiskSpec) -> Result<DiskImage> {
    settle(&spec.path)?;
    if let Some(base) = &spec.base_image
        && !spec.path.exists()
    {
        create_overlay(spec, base).with_context(|| format!("cannot create disk {}", spec.path.display()))?;
    }
    require_file(&spec.path).with_context(|| format!("disk {}", spec.path.display()))?;
    let options = DiskOptions { format: spec.format, read_only: spec.readonly, direct: false };
    let disk = DiskImage::open(&spec.path, options)?;
    if disk.backing().is_some() {
        note_image(&spec.path);
    }
    Ok(disk)
}

/// Notes which image a qcow2 disk is based on, if it is on one.
pub fn note_image(disk: &Path) {
    if let Err(error) = images().and_then(|images| Ok(images.note_disk(disk)?)) {
        tracing::warn!("nobody will know that {} is based on an image: {}", disk.display(), error_text(&error));
    }
}

/// Says what to do about a disk that is not there.
pub fn require_file(disk: &Path) -> Result<()> {
    if disk.exists() {
        return Ok(());
    }
    bail!(
        "there is no such file; `twinvm disk create {} 10G` makes one, and base_image = \"NAME\" in the spec lets it begin as an image of `twinvm image list`",
        disk.display()
    )
}

fn create_overlay(spec: &DiskSpec, base: &str) -> Result<()> {
    // Says what to do if there is none.
    image(base)?;
    images()?.create_disk(base, &spec.path)?;
    Ok(())
}

/// The spec with absolute paths, so that it means the same from any folder.
pub fn absolute(mut spec: VmSpec) -> Result<VmSpec> {
    let disks = spec.disks.iter_mut().map(|disk| &mut disk.path);
    let others = [&mut spec.kernel, &mut spec.initrd, &mut spec.record];
    for path in disks.chain(others.into_iter().flatten()) {
        *path = std::path::absolute(&*path).with_context(|| format!("cannot resolve {}", path.display()))?;
    }
    Ok(spec)
}
