//! Bootable Debian guests, built from Debian's own packages without root.
//!
//! An image is a name that leads to a version: a directory in `<images dir>/.versions/` that holds
//!
//! | file | what |
//! | --- | --- |
//! | `vmlinuz` | the kernel package's bzImage, unchanged |
//! | `initrd.img` | an uncompressed cpio archive: static busybox, the virtio modules of that kernel and an `/init` |
//! | `root.img` | a raw ext4 disk without partitions with the packages' files; absent in an image that is only an initial RAM disk |
//! | `manifest.json` | [`Manifest`]: what went in (package versions and digests) and what came out (file digests, command line) |
//!
//! How an image comes to be:
//!
//! 1. `apt` with private state resolves the packages against an empty system, so that the whole closure comes, and downloads
//!    and verifies them. The Debian mirror is the one that the host is configured with.
//! 2. dpkg and apt of the new system install them, maintainer scripts included, in namespaces of their own and without root (`install`). First comes the base
//!    system, which is kept for the next image, then the packages that were asked for.
//! 3. What came out is taken into a staging tree. Owners and modes are kept in memory (the tree), so no step needs
//!    root. The kernel is unpacked there, since a guest of ours gets it from its host, and the builder adds what is ours: the light init, and settings of a few
//!    services (`guest`).
//! 4. `mke2fs` and `debugfs` make the ext4 disk from it with fixed identifiers and times, so that the same packages give the
//!    same bytes, as far as their maintainer scripts do.
//!
//! An image may also be *pulled* (`pull`): its root disk is one that somebody else has made, with partitions or without, and its kernel and initial RAM disk
//! are those on that disk (`boot_files`), or files that its user names.
//!
//! The initial RAM disk is not compressed because the guest would have to decompress it, which costs an interpreted
//! processor more than the host's page cache costs the host.
//!
//! A build happens in a temporary directory next to the images and is renamed into place at its end; whatever an interrupted
//! build left is removed by the next one. Versions never change: disks are based on them, and `versions` says which and for how long.

mod apt;
mod boot_files;
mod build;
mod capabilities;
mod command;
mod error;
mod ext4;
mod guest;
mod initrd;
mod install;
mod manifest;
mod progress;
mod pull;
mod spec;
mod store;
mod systemd;
mod tree;
mod users;
mod versions;

pub use error::ImageError;
pub use manifest::{BuiltFile, KernelInfo, Manifest, PackageInfo};
pub use progress::{NoProgress, Progress, Stage};
pub use pull::{BootFiles, Incoming, PULL_BYTES_MAX_DEFAULT, PullSpec, Pulled};
pub use spec::{ExtraFile, ImageSpec, Init, KERNEL_DEFAULT, Suite};
pub use store::{BuildOptions, BuiltImage, Image, ImageStore, Removal};
