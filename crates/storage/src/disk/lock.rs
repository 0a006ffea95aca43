//! Opening image files so that VMs do not get in each other's way.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::DiskError;
use crate::file_lock::{FileLock, LockKind};

/// Opens an image: exclusively to write it, shared with other readers to read it.
///
/// # Errors
/// [`DiskError::InUse`] if someone has it in a way that excludes this.
pub(super) fn open_locked(path: &Path, writable: bool, direct: bool) -> Result<(File, FileLock), DiskError> {
    let open_error = |source| DiskError::Open { path: path.to_path_buf(), source };
    // Looked at before it is opened: opening a FIFO would wait, opening some devices does something.
    let kind = fs::metadata(path).map_err(open_error)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::NotADisk { path: path.to_path_buf() });
    }
    let mut options = OpenOptions::new();
    options.read(true).write(writable);
    if direct {
        // O_DIRECT has the same bits for every flags type; the sign of none of them is used.
        options.custom_flags(OFlags::DIRECT.bits() as i32);
    }
    let file = options.open(path).map_err(open_error)?;
    let lock = lock(path, &file, if writable { LockKind::Exclusive } else { LockKind::Shared })?;
    Ok((file, lock))
}

/// Locks an image that is open.
pub(super) fn lock(path: &Path, file: &File, kind: LockKind) -> Result<FileLock, DiskError> {
    match FileLock::try_new(file, kind) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(DiskError::InUse { path: path.to_path_buf() }),
        Err(source) => Err(DiskError::Io { path: path.to_path_buf(), action: "lock", source }),
    }
}
