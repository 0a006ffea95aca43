//! Locks on files.

use std::fs::File;
use std::io;

use rustix::fs::{FlockOperation, flock};

/// Whom a lock keeps out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockKind {
    /// Everyone.
    Exclusive,
    /// Those who want it exclusively.
    Shared,
}

/// A `flock(2)` on an open file, released when this is dropped or the process ends.
///
/// Released explicitly, because closing the file may not do it: a process that another thread is just forking off has the file
/// open too until it executes its program.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Locks `file`, or returns `None` if someone else's lock forbids it.
    pub fn try_new(file: &File, kind: LockKind) -> io::Result<Option<Self>> {
        let operation = match kind {
            LockKind::Exclusive => FlockOperation::NonBlockingLockExclusive,
            LockKind::Shared => FlockOperation::NonBlockingLockShared,
        };
        match flock(file, operation) {
            Ok(()) => Ok(Some(Self(file.try_clone()?))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // It cannot fail on a file that is open; closing it would release it as well, if later.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
