//! What both sides run: the guest's image, and the disks.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use spec::DiskFormat;
use storage::disk::{Backing, create_qcow2};
use storage::image::{ExtraFile, Image, ImageSpec};
use tempfile::TempDir;

use super::agent;
use crate::image::ready;

/// Name of the image.
const IMAGE: &str = "bench-kvm";
/// Memory of the guest, in bytes.
pub const MEMORY_BYTES: u64 = 512 << 20;
/// Size of the disk that fio works on, in bytes.
pub const DATA_BYTES: u64 = 256 << 20;
/// So much of it is written at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// The guest, ready to boot.
pub struct Scene {
    /// File of the kernel.
    pub kernel: PathBuf,
    /// File of the initial RAM disk.
    pub initrd: PathBuf,
    /// Kernel command line.
    pub command_line: String,
    /// Release of the kernel.
    pub release: String,
    /// vCPUs.
    pub cpus: u32,
    /// Raw image on which root disks are based.
    root: PathBuf,
    /// Raw image that fio works on. One side at a time uses it.
    pub data: PathBuf,
    /// Where everything lies that is made for this.
    folder: TempDir,
}

impl Scene {
    /// Builds the image if need be, and makes the disk that fio works on. The guest's kernel command line ends with `append`.
    pub fn prepare(cpus: u32, append: &str) -> Result<Self> {
        let image = image()?;
        let folder =
            tempfile::Builder::new().prefix("twinvm-bench-").tempdir().context("cannot make a temporary folder")?;
        let data = folder.path().join("data.img");
        fill(&data).with_context(|| format!("cannot write {}", data.display()))?;
        let root = image.root_disk().context("the guest image has no root disk")?;
        Ok(Self {
            kernel: image.kernel(),
            initrd: image.initrd(),
            command_line: format!("{} {append}", image.manifest().cmdline).trim_end().to_owned(),
            release: image.manifest().kernel.release.clone(),
            cpus,
            root: std::fs::canonicalize(&root).with_context(|| format!("cannot find {}", root.display()))?,
            data,
            folder,
        })
    }

    /// A path for a file that is made for one run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new root disk: the image's, with nothing written to it yet.
    pub fn new_root(&self) -> Result<PathBuf> {
        let path = self.path("root.qcow2");
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
        let base = Backing { path: self.root.clone(), format: DiskFormat::Raw };
        create_qcow2(&path, std::fs::metadata(&self.root)?.len(), Some(&base))?;
        Ok(path)
    }
}

/// The guest's image, built if need be.
pub fn image() -> Result<Image> {
    let agent =
        ExtraFile { path: agent::SERVICE_PATH.to_owned(), contents: agent::service().into_bytes(), mode: 0o755 };
    let packages = ["redis-server", "fio"].map(str::to_owned).to_vec();
    ready(&ImageSpec { packages, recommends: false, files: vec![agent], ..ImageSpec::new(IMAGE) })
}

/// Writes the disk in full: holes would be read without reading anything.
fn fill(path: &PathBuf) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for number in 0..DATA_BYTES / CHUNK_BYTES {
        let bytes: Vec<u8> = (0..CHUNK_BYTES).map(|byte| (byte ^ number) as u8).collect();
        file.write_all(&bytes)?;
    }
    file.sync_all()
}
