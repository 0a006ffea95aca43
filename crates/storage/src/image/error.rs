//! What can go wrong with images.

use std::io;
use std::path::{Path, PathBuf};

use crate::disk::DiskError;

/// Why an image could not be built, listed, shown or removed. Every message is one line that says what to do about it where
/// that is known.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The spec cannot be built as it stands.
    #[error("image {name:?}: {reason}")]
    InvalidSpec {
        /// Name of the image.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no image of that name.
    #[error("no image named {name:?} in {}", dir.display())]
    NotFound {
        /// Name asked for.
        name: String,
        /// Directory looked in.
        dir: PathBuf,
    },
    /// An image's manifest is damaged, or was written by a newer twinvm.
    #[error("{}: not a manifest this version can read: {reason}", path.display())]
    BadManifest {
        /// Path of the manifest.
        path: PathBuf,
        /// Why the manifest is not used.
        reason: String,
    },
    /// A disk that cannot be pulled, or is none.
    #[error("{from}: {reason}")]
    NotPulled {
        /// Where it comes from.
        from: String,
        /// Why the image was not pulled.
        reason: String,
    },
    /// A VM, or a program of QEMU's, has the image's root disk.
    #[error("{}: in use by {holder}: stop that, or wait until it has ended", path.display())]
    InUse {
        /// The root disk.
        path: PathBuf,
        /// Who, as far as this process can see.
        holder: String,
    },
    /// A program that the builder needs is not installed.
    #[error("{program} not found; install the Debian package {package}")]
    MissingProgram {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The package lists or packages could not be fetched, and no earlier copy exists.
    #[error("cannot fetch from the Debian mirror: {reason}")]
    Fetch {
        /// The last error line of apt.
        reason: String,
    },
    /// A package does not exist in the suites that are configured.
    #[error("no package named {package:?} in Debian {suites}")]
    UnknownPackage {
        /// Package asked for.
        package: String,
        /// Suites looked in.
        suites: String,
    },
    /// apt could not find a set of packages that fits together.
    #[error("packages cannot be installed together: {reason}")]
    Unsatisfiable {
        /// apt's explanation.
        reason: String,
    },
    /// A file that was fetched is not the one that was promised, by the signed package list or by who pulls it.
    #[error("{}: sha256 {found} instead of {expected}", path.display())]
    DigestMismatch {
        /// The file.
        path: PathBuf,
        /// Digest promised.
        expected: String,
        /// Digest found.
        found: String,
    },
    /// A package holds something that cannot be unpacked.
    #[error("{package}: {reason}")]
    BadPackage {
        /// File name of the package.
        package: String,
        /// Why the package is not used.
        reason: String,
    },
    /// The files do not fit on the root disk.
    #[error("the packages need about {needed_bytes} bytes but the root disk has {disk_bytes}; use a bigger disk")]
    DiskTooSmall {
        /// Rough need, file system overhead included.
        needed_bytes: u64,
        /// Size of the disk.
        disk_bytes: u64,
    },
    /// The host's file system is full.
    #[error("no space left on the file system of {}", path.display())]
    HostDiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// The host does not let this user make the namespaces in which packages are installed.
    #[error(
        "packages cannot be installed, as this host refuses namespaces: {reason}; {remedy}, or build the image on another machine and take its files with \
         `twinvm image pull NAME root.img --sha256 HEX --kernel vmlinuz --initrd initrd.img`"
    )]
    Namespaces {
        /// What the kernel or `unshare` said.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A package could not be installed.
    #[error("{}: {reason}", package.as_ref().map_or_else(|| "packages cannot be installed".to_owned(), |name| format!("package {name}")))]
    Script {
        /// The package, if it is known.
        package: Option<String>,
        /// What dpkg or apt said.
        reason: String,
    },
    /// A program failed for a reason not covered above.
    #[error("{program} failed: {reason}")]
    Program {
        /// The program.
        program: String,
        /// Its last error line, or its exit status.
        reason: String,
    },
    /// Only an initial RAM disk.
    #[error("image {name} has no root disk")]
    NoRootDisk {
        /// Name of the image.
        name: String,
    },
    /// A disk that is to be based on the image cannot be made.
    #[error(transparent)]
    Disk(DiskError),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// Another input or output error.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl ImageError {
    /// An [`io::Error`] about `path`; a full disk is recognised.
    pub(crate) fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::HostDiskFull { path },
            _ => Self::Io { path, source },
        }
    }

    /// For `map_err`: an [`io::Error`] about `path`.
    pub(crate) fn at<P: AsRef<Path>>(path: P) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::io(path, source)
    }
}
