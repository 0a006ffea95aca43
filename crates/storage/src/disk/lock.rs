//! Opening image files so that VMs do not get in each other's way.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};

use super::DiskError;

/// Opens an image: exclusively to write it, shared with other readers to read it.
///
/// # Errors
/// [`DiskError::InUse`] if someone has it in a way that excludes this.
pub(super) fn open_locked(path: &Path, writable: bool, direct: bool) -> Result<File, DiskError> {
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
    lock(path, &file, writable)?;
    Ok(file)
}

/// Locks an image that is open. The lock goes with the open file.
pub(super) fn lock(path: &Path, file: &File, exclusive: bool) -> Result<(), DiskError> {
    let operation =
        if exclusive { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
    match flock(file, operation) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DiskError::InUse { path: path.to_path_buf() }),
        Err(e) => Err(DiskError::Io { path: path.to_path_buf(), action: "lock", source: e.into() }),
    }
}
