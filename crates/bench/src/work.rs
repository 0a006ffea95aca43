//! The guest work that is measured.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use storage::image::ImageSpec;

use crate::image;

/// Name of the image that the work runs in.
const IMAGE: &str = "bench";

/// Memory of the guest, in bytes.
pub const MEMORY_BYTES: u64 = 512 << 20;

/// How long one run may take: a bound that only a hung guest meets.
pub const RUN_TIMEOUT: Duration = Duration::from_secs(600);

/// Runs in the initial RAM disk; the guest powers off when it is done. It keeps the kernel from printing between the marks.
const SCRIPT: &str = "dmesg -n 1; echo bench: ready; \
    i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo bench: $i; \
    dd if=/dev/zero bs=1M count=64 2>/dev/null | md5sum";

/// What the console says when the guest has booted, has counted, and has the digest of 64 MiB of zeros.
pub const MARKS: [&str; 3] = ["bench: ready", "bench: 100000", "7f614da9329cd3aebf59b91aadc30bf0"];

/// The guest, ready to boot.
pub struct Work {
    /// File of the kernel.
    pub kernel_path: PathBuf,
    /// File of the initial RAM disk.
    pub initrd_path: PathBuf,
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The initial RAM disk.
    pub initrd: Vec<u8>,
    /// Kernel command line.
    pub command_line: String,
    /// Release of the kernel.
    pub release: String,
}

impl Work {
    /// Builds the image if need be and reads it.
    pub fn prepare() -> Result<Self> {
        let spec = ImageSpec { root_disk_bytes: None, ..ImageSpec::new(IMAGE) };
        let image = image::ready(&spec)?;
        let read = |path: PathBuf| fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Self {
            kernel: read(image.kernel())?,
            initrd: read(image.initrd())?,
            kernel_path: image.kernel(),
            initrd_path: image.initrd(),
            command_line: format!("{} twinvm.run=\"{SCRIPT}\"", image.manifest().cmdline),
            release: image.manifest().kernel.release.clone(),
        })
    }
}
