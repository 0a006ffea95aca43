//! What can go wrong with disk images.

use std::io;
use std::path::PathBuf;

use spec::DiskFormat;

/// Why a disk image could not be opened, created, read or written. Each message is one line that names the image.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened or created.
    #[error("{}: {source}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Something else than a regular file or a block device.
    #[error("{}: neither a regular file nor a block device", path.display())]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
    /// Another VM, a program of QEMU's, or another disk of the same VM has the image.
    #[error("{}: in use by {holder}: stop that, or wait until it has ended", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who, as far as this process can see.
        holder: String,
    },
    /// No format was given and the file's name and content do not agree on one.
    #[error("{}: {reason}; say which with format = \"raw\" or format = \"qcow2\"", path.display())]
    UnclearFormat {
        /// The image.
        path: PathBuf,
        /// What speaks against guessing.
        reason: String,
    },
    /// The content is not that of the format.
    #[error("{}: not a valid {format} image: {reason}", path.display())]
    Corrupt {
        /// The image.
        path: PathBuf,
        /// Format it was opened as.
        format: DiskFormat,
        /// What is wrong with the image.
        reason: String,
    },
    /// A feature of the format that is not supported.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// Which feature.
        reason: String,
    },
    /// What an image is based on cannot be opened.
    #[error("{}: its backing file: {source}", path.display())]
    Backing {
        /// The image.
        path: PathBuf,
        /// What is wrong with the backing file.
        source: Box<DiskError>,
    },
    /// A size that a disk cannot have.
    #[error("{}: a disk of {size_bytes} bytes is impossible: {reason}", path.display())]
    BadSize {
        /// The image.
        path: PathBuf,
        /// The size.
        size_bytes: u64,
        /// Why no disk can have that size.
        reason: &'static str,
    },
    /// Access beyond the end of the disk.
    #[error("{}: {length} bytes at {offset} are beyond its {size_bytes} bytes", path.display())]
    OutOfRange {
        /// The image.
        path: PathBuf,
        /// First byte of the access.
        offset: u64,
        /// Its length in bytes.
        length: u64,
        /// Size of the disk in bytes.
        size_bytes: u64,
    },
    /// A write to an image that was opened read-only.
    #[error("{}: opened read-only", path.display())]
    ReadOnly {
        /// The image.
        path: PathBuf,
    },
    /// What was written could not be brought to stable storage. What had been written since the last successful flush may be lost, also if
    /// a later flush succeeds: hosts say it once.
    #[error("{}: flush: {source}", path.display())]
    Flush {
        /// The image.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// What is written over while a snapshot is taken cannot be kept for it.
    #[error("what the guest writes over while the snapshot is taken cannot be kept: {0}")]
    Spill(io::Error),
    /// Another input or output error.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The error.
        source: io::Error,
    },
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> Self {
        let kind = match &error {
            DiskError::Open { source, .. } | DiskError::Flush { source, .. } | DiskError::Io { source, .. } => {
                source.kind()
            }
            DiskError::Spill(source) => source.kind(),
            DiskError::Backing { .. } => io::ErrorKind::Other,
            DiskError::InUse { .. } => io::ErrorKind::ResourceBusy,
            DiskError::Corrupt { .. } => io::ErrorKind::InvalidData,
            DiskError::Unsupported { .. } => io::ErrorKind::Unsupported,
            DiskError::ReadOnly { .. } => io::ErrorKind::ReadOnlyFilesystem,
            DiskError::NotADisk { .. }
            | DiskError::UnclearFormat { .. }
            | DiskError::BadSize { .. }
            | DiskError::OutOfRange { .. } => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
