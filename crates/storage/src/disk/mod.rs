//! Disk images: raw and qcow2 files, and block devices as raw ones.
//!
//! A [`DiskImage`] is what a virtual disk reads and writes. Opening one takes a lock on the file, so that two VMs cannot write
//! to the same disk and no VM writes to what another reads; the files that a qcow2 image is based on are opened read-only and
//! locked too. The locks are those of QEMU (see `lock`), so that its programs keep away from a VM's disk and the other way round.
//!
//! Images that are to be compared with others, such as a replica's copy, tell what they hold themselves
//! ([`DiskImage::extent_at`]) and what they are based on ([`BaseIdentity`]).
//!
//! A snapshot reads a disk while its VM goes on: the image is frozen for it ([`DiskFreezer`]), and each change of the image keeps what it writes over.
//!
//! A [`Replacement`] gives several files new content at once. Whoever opens a disk that may have been in one calls [`settle`] before.
//!
//! The formats are those of the `imago` library; QEMU's `docs/interop/qcow2.txt` is the specification. Not supported:
//! encryption, external data files, extended second-level entries, compression by zstd, images whose backing format is not recorded, and
//! writing to images with internal snapshots. What is not supported, or damaged, is refused before a byte of the file has changed.

mod backing_name;
mod create;
mod error;
mod extent;
mod form;
mod format;
mod freezer;
mod frozen;
mod holder;
mod identity;
mod image;
mod info;
mod kept;
mod lock;
mod open;
mod qcow2_header;
mod qcow2_tables;
mod raw_file;
mod replace;
mod spill;
mod stamp;
mod write_back;

use std::path::Path;

pub(crate) use backing_name::has_backing;
pub use backing_name::{make_backing_absolute, recorded_backing};
pub use create::{Backing, create_qcow2, create_raw};
pub use error::DiskError;
pub use extent::{Allocation, Extent};
pub use form::{ImageForm, ImageShape, RecordedBase};
pub(crate) use format::format_of_content;
pub use freezer::Stretch;
pub use frozen::{DiskFreezer, FrozenDisk, SharedImage};
pub use identity::{BaseIdentity, ContentDigest};
pub use image::{DiskImage, DiskOptions};
pub use info::DiskInfo;
pub(crate) use lock::{Access, ImageLock};
pub use raw_file::RawFile;
pub use replace::{Replacement, settle};
pub use spill::Spill;
pub use stamp::FileStamps;
pub use write_back::WriteBack;

/// Smallest unit of a disk in bytes; sizes are multiples of it.
pub const SECTOR_BYTES: u64 = 512;

/// Largest disk in bytes: what a qcow2 image with 64 KiB clusters can map with the largest first-level table that QEMU takes.
pub const DISK_BYTES_MAX: u64 = 1 << 51;

/// Refuses sizes that no disk has.
fn check_size(path: &Path, size_bytes: u64) -> Result<(), DiskError> {
    let reason = if size_bytes == 0 {
        "empty"
    } else if !size_bytes.is_multiple_of(SECTOR_BYTES) {
        "not a multiple of 512"
    } else if size_bytes > DISK_BYTES_MAX {
        "too big"
    } else {
        return Ok(());
    };
    Err(DiskError::BadSize { path: path.to_path_buf(), size_bytes, reason })
}
