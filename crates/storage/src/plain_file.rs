//! Small files in folders that somebody else may write to, such as a VM's own user to that of its replica.
//!
//! Whoever may write there can put anything in a file's place: a link to a file that only the reader may read, a pipe that keeps whoever opens it
//! waiting, or more than fits into memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a file to be read. It does not wait for anybody.
///
/// # Errors
/// Those of the file system, and [`ErrorKind::InvalidInput`] for what is no file, such as a pipe, a device or a folder. The last part of `path` may not be a
/// link.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(flags()).open(path)?;
    refuse_others(file)
}

/// Opens a file that is there to have its attributes changed, or to be written to, under the same conditions.
///
/// # Errors
/// As [`open`].
pub fn open_to_write(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).custom_flags(flags()).open(path)?;
    refuse_others(file)
}

/// Reads a file that holds at most `bytes_max` bytes.
///
/// # Errors
/// Those of [`open`], and [`ErrorKind::FileTooLarge`] if it holds more.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_open(&open(path)?, bytes_max)
}

/// Reads a file that was opened by [`open`], as [`read`] does.
///
/// # Errors
/// Those of the file system, and [`ErrorKind::FileTooLarge`] if it holds more.
pub fn read_open(file: &File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // One more tells whether there is more: its length may be changed at any time.
    let read = file.take(bytes_max.saturating_add(1)).read_to_end(&mut content)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > bytes_max {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it holds more than {bytes_max} bytes")));
    }
    Ok(content)
}

/// Writes a file anew, in place of whatever has its name, so that nothing is written through a link. For its owner only. It waits for no disk to say that
/// it is there for good, and a crash may leave a part of it: [`durable::write`](crate::durable::write) is for what has to last.
///
/// # Errors
/// Those of the file system.
pub fn write_anew(path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}

fn flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed()
}

fn refuse_others(file: File) -> io::Result<File> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a plain file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_plain_file_is_read_up_to_its_bound_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "12345678").unwrap();
        assert_eq!(read(&at("file"), 8).unwrap(), b"12345678");
        assert_eq!(read(&at("file"), 7).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read(&at("nothing"), 8).unwrap_err().kind(), ErrorKind::NotFound);
        symlink(at("file"), at("link")).unwrap();
        // Nobody is at the other end of it: who waited for one would hang here.
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        for other in ["link", "pipe", "socket", "folder"] {
            assert!(read(&at(other), 8).is_err(), "{other}");
            assert!(open_to_write(&at(other)).is_err(), "{other}");
        }
        // A file that has no end is no larger than another one when it is looked at.
        File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(&at("sparse"), 8).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("precious"), "precious").unwrap();
        symlink(at("precious"), at("link")).unwrap();
        fs::hard_link(at("precious"), at("other name")).unwrap();
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for name in ["link", "other name", "pipe", "new"] {
            write_anew(&at(name), name.as_bytes()).unwrap();
            assert_eq!(read(&at(name), 100).unwrap(), name.as_bytes());
        }
        assert_eq!(fs::read(at("precious")).unwrap(), b"precious");
    }
}
