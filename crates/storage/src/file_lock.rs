//! Locks on files that keep everyone else out.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// The byte that is locked: the last that can be. On an image it must not be one of those that [`crate::disk`] locks.
const BYTE: i64 = i64::MAX - 1;

/// An open file description lock (`fcntl(2)`) on a file that is open for writing, released when this is dropped or the process ends.
///
/// Not a `flock(2)`, which NFS turns into a lock on all bytes of the file: the new content of a disk that a restore writes is locked by one of these, and
/// opened as an image with locks on some bytes, and would be in its own way there.
///
/// Released explicitly, because closing the file may not do it: a process that another thread is just forking off has the file
/// open too until it executes its program.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Locks `file`, or returns `None` if someone else has it.
    pub fn try_new(file: &File) -> io::Result<Option<Self>> {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&byte(libc::F_WRLCK))) {
            Ok(_) => Ok(Some(Self(file.try_clone()?))),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Locks `file` as soon as nobody else has it.
    pub fn wait(file: &File) -> io::Result<Self> {
        loop {
            match fcntl(file, FcntlArg::F_OFD_SETLKW(&byte(libc::F_WRLCK))) {
                Ok(_) => return Ok(Self(file.try_clone()?)),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // It cannot fail on a file that is open; closing it would release it as well, if later.
        let _ = fcntl(&self.0, FcntlArg::F_OFD_SETLK(&byte(libc::F_UNLCK)));
    }
}

fn byte(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: BYTE, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use spec::DiskFormat;

    use super::*;
    use crate::disk::{DiskImage, DiskOptions};

    #[test]
    fn one_at_a_time_has_a_file_also_within_a_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (one, other) = (File::create(&path).unwrap(), File::create(&path).unwrap());
        let lock = FileLock::try_new(&one).unwrap().unwrap();
        assert!(FileLock::try_new(&other).unwrap().is_none());
        drop(lock);
        drop(FileLock::wait(&other).unwrap());
        assert!(FileLock::try_new(&one).unwrap().is_some());
    }

    /// On NFS it was, which has no other locks than those on bytes.
    #[test]
    fn it_is_not_in_the_way_of_the_locks_of_an_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        let _lock = FileLock::try_new(&file).unwrap().unwrap();
        let options = DiskOptions { format: Some(DiskFormat::Raw), ..DiskOptions::default() };
        DiskImage::open(&path, options).unwrap();
        let locks = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
        assert!(!locks.contains("FLOCK") && locks.contains("OFDLCK"), "{locks}");
    }
}
