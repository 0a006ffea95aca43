//! Opening image files so that VMs and the programs of QEMU do not get in each other's way.
//!
//! The locks are QEMU's (`raw_apply_lock_bytes` and `raw_check_lock_bytes` in its `block/file-posix.c`), so that its programs and VMs
//! see twinvm's, and the other way round. A shared lock on the byte at 100 + n says "I do n", one on the byte at 200 + n "nobody else
//! may do n", where n is the number of a permission (`BLK_PERM_*` in `block/block-common.h`). Whoever opens an image takes its
//! locks first and then looks at the opposite bytes, so of two that open it at the same time at least one gives up.
//!
//! They are *open file description locks* (`fcntl(2)`): they belong to the open file, not to the process, and go with it, however
//! that ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::OFlags;

use super::DiskError;
use super::holder;

/// First of the bytes that say what is done.
const DONE_AT: u64 = 100;
/// First of the bytes that say what others must not do.
const REFUSED_AT: u64 = 200;
/// Number of permissions in QEMU's scheme that any of its versions ever had.
const PERMISSIONS: u64 = 8;

/// Numbers of QEMU's permissions.
const CONSISTENT_READ: u64 = 0;
const WRITE: u64 = 1;
const WRITE_UNCHANGED: u64 = 2;
const RESIZE: u64 = 3;

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To be written: nobody else writes to it, or reads it as something that does not change.
    Write,
    /// Only to be read: others may do the same.
    Read,
}

impl Access {
    /// What is done, and what others must not do.
    fn permissions(self) -> (&'static [u64], &'static [u64]) {
        match self {
            Self::Write => (&[CONSISTENT_READ, WRITE, RESIZE], &[WRITE, WRITE_UNCHANGED, RESIZE]),
            Self::Read => (&[CONSISTENT_READ], &[WRITE, RESIZE]),
        }
    }
}

/// The locks on an open image, released when this is dropped or the process ends.
///
/// Released explicitly, because closing the file may not do it: a process that another thread is just forking off has the file
/// open too until it executes its program.
#[derive(Debug)]
pub(crate) struct ImageLock(File);

impl ImageLock {
    /// Locks an image that is open.
    ///
    /// # Errors
    /// [`DiskError::InUse`] if someone has it in a way that excludes this; [`DiskError::Io`] where its file system has no locks.
    pub fn new(path: &Path, file: &File, access: Access) -> Result<Self, DiskError> {
        match Self::try_new(file, access) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(DiskError::InUse { path: path.to_path_buf(), holder: holder::describe(file) }),
            Err(source) => Err(DiskError::Io { path: path.to_path_buf(), action: "lock", source }),
        }
    }

    /// `None` if someone else's locks forbid it.
    fn try_new(file: &File, access: Access) -> io::Result<Option<Self>> {
        // From here on, whatever is taken is released again.
        let lock = Self(file.try_clone()?);
        let (done, refused) = access.permissions();
        for byte in done.iter().map(|n| DONE_AT + n).chain(refused.iter().map(|n| REFUSED_AT + n)) {
            match fcntl(&lock.0, FcntlArg::F_OFD_SETLK(&bytes(libc::F_RDLCK, byte, 1))) {
                Ok(_) => {}
                // Somebody has locked it exclusively, which QEMU never does.
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(if is_refused(&lock.0, access)? { None } else { Some(lock) })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        for first in [DONE_AT, REFUSED_AT] {
            // It cannot fail on a file that is open; closing it would release it as well, if later.
            let _ = fcntl(&self.0, FcntlArg::F_OFD_SETLK(&bytes(libc::F_UNLCK, first, PERMISSIONS)));
        }
    }
}

/// Whether somebody else's locks on an open image forbid something. Takes none.
pub(super) fn is_refused(file: &File, access: Access) -> io::Result<bool> {
    let (done, refused) = access.permissions();
    for byte in refused.iter().map(|n| DONE_AT + n).chain(done.iter().map(|n| REFUSED_AT + n)) {
        // The lock asked about is one that any other excludes; it is not taken.
        let mut other = bytes(libc::F_WRLCK, byte, 1);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut other))?;
        if libc::c_int::from(other.l_type) != libc::F_UNLCK {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A lock on `length` bytes from `first` on. Both fit: they are constants of this module.
fn bytes(kind: libc::c_int, first: u64, length: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: first as libc::off_t,
        l_len: length as libc::off_t,
        // What the kernel demands of locks that belong to no process.
        l_pid: 0,
    }
}

/// Refuses what is neither a file nor a block device, before it is opened: opening a FIFO would wait, opening some devices does something.
pub(super) fn require_disk(path: &Path) -> Result<(), DiskError> {
    let metadata = fs::metadata(path).map_err(|source| DiskError::Open { path: path.to_path_buf(), source })?;
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok(())
    } else {
        Err(DiskError::NotADisk { path: path.to_path_buf() })
    }
}

/// Opens an image: exclusively to write it, shared with other readers to read it.
///
/// # Errors
/// [`DiskError::InUse`] if someone has it in a way that excludes this.
pub(crate) fn open_locked(path: &Path, access: Access, direct: bool) -> Result<(File, ImageLock), DiskError> {
    let open_error = |source| DiskError::Open { path: path.to_path_buf(), source };
    require_disk(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Write);
    if direct {
        // O_DIRECT has the same bits for every flags type; the sign of none of them is used.
        options.custom_flags(OFlags::DIRECT.bits() as i32);
    }
    let file = options.open(path).map_err(open_error)?;
    let lock = ImageLock::new(path, &file, access)?;
    Ok((file, lock))
}
