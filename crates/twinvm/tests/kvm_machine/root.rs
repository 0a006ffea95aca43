//! The system that the nested machine runs: Debian 12 with its full kernel, which has KVM for both makers' processors. The product's own
//! image builder makes it, so it needs no root and is built once.

use storage::image::{ExtraFile, Image, ImageSpec};

use crate::support::guest::image;

/// What the tests call in it, and what `twinvm` is linked with.
const PACKAGES: [&str; 5] = ["curl", "libglib2.0-0", "libslirp0", "postgresql-client", "redis-tools"];
/// Path of the first process.
pub const INIT: &str = "/usr/local/sbin/machine-init";

/// What benchmarks call in it beside.
const PEER: &str = "qemu-system-x86";

/// Builds the machine's system, or finds it built.
pub fn root() -> Image {
    build("test-kvm-machine", &PACKAGES)
}

/// The same with QEMU in it.
pub fn with_peer() -> Image {
    build("bench-kvm-machine", &[&PACKAGES[..], &[PEER]].concat())
}

fn build(name: &str, packages: &[&str]) -> Image {
    image(&ImageSpec {
        packages: packages.iter().copied().map(str::to_owned).collect(),
        recommends: false,
        kernel: "linux-image-amd64".to_owned(),
        // Bochs' disks.
        modules: ["ata_piix", "sd_mod"].map(str::to_owned).to_vec(),
        files: vec![ExtraFile { path: INIT.to_owned(), contents: include_bytes!("init").to_vec(), mode: 0o755 }],
        ..ImageSpec::new(name)
    })
}
