//! Locks on files that are no images.

use std::fs::File;
use std::io;

use rustix::fs::{FlockOperation, flock};

/// A `flock(2)` on an open file that keeps everyone else out, released when this is dropped or the process ends.
///
/// Released explicitly, because closing the file may not do it: a process that another thread is just forking off has the file
/// open too until it executes its program.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Locks `file`, or returns `None` if someone else has it.
    pub fn try_new(file: &File) -> io::Result<Option<Self>> {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file.try_clone()?))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Locks `file` as soon as nobody else has it.
    pub fn wait(file: &File) -> io::Result<Self> {
        loop {
            match flock(file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(file.try_clone()?)),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // It cannot fail on a file that is open; closing it would release it as well, if later.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
