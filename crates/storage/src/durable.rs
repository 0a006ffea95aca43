//! Small files that a crash leaves as they were or as they are to be, and what tells a file from every other one.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::file_lock::FileLock;

/// So often the file beside is made anew when others have just renamed or replaced it.
const ATTEMPTS_MAX: u32 = 1000;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Its owner, and nobody else.
    Owner,
    /// Whoever may read what this process makes.
    Others,
}

/// Gives a file new content, in one step and on stable storage, or makes it. It is written beside it under a name of its own that begins with a dot: what
/// a crash leaves there the next one overwrites. Of several that write at once, one comes after the other.
///
/// # Errors
/// Those of the file system; the file is then as it was, unless only its folder could not be written any more.
pub fn write(path: &Path, content: &[u8], readers: Readers) -> io::Result<()> {
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(".new");
    let new = path.with_file_name(name);
    let (mut file, _lock) = open_new(&new, readers)?;
    let written = file
        .set_len(0)
        .and_then(|()| file.write_all(content))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The error that is returned says more than one about this.
        let _ = fs::remove_file(&new);
    }
    written?;
    sync_folder_of(path)
}

/// Removes a file, on stable storage when this returns. Not being there is no error.
///
/// # Errors
/// Those of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_folder_of(path)),
    }
}

/// Opens the file beside, for this writer alone. Whoever else may write in the folder, such as a VM's own user, may have put there what leads to another file,
/// or what this process would wait for: that is removed.
fn open_new(new: &Path, readers: Readers) -> io::Result<(File, FileLock)> {
    let mode = if readers == Readers::Owner { 0o600 } else { 0o666 };
    for _ in 0..ATTEMPTS_MAX {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let opened =
            OpenOptions::new().write(true).create(true).truncate(false).mode(mode).custom_flags(flags).open(new);
        let file = match opened {
            Ok(file) if is_plain_and_own(&file.metadata()?) => file,
            // The latter is said of a pipe that nobody reads.
            Err(error)
                if ![Errno::LOOP, Errno::NXIO].iter().any(|it| Some(it.raw_os_error()) == error.raw_os_error()) =>
            {
                return Err(error);
            }
            Ok(_) | Err(_) => match fs::remove_file(new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => continue,
            },
        };
        let lock = FileLock::wait(&file)?;
        // Whoever had it before has renamed it, and it is what must not be written to.
        let (own, found) = (file.metadata()?, fs::symlink_metadata(new));
        if found.is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino())) {
            return Ok((file, lock));
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("others keep writing {}", new.display())))
}

/// Whether a file is this process's user's, and has no other name through which it would be another file as well.
fn is_plain_and_own(file: &Metadata) -> bool {
    file.is_file() && file.nlink() <= 1 && file.uid() == rustix::process::geteuid().as_raw()
}

/// Brings the name of a file to stable storage.
pub(crate) fn sync_folder_of(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// A part of a name that no other file has, now or from an earlier boot.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{now:x}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Whether [`unique`] can have made this.
pub(crate) fn is_unique(part: &str) -> bool {
    let is = |part: &str, digit: fn(char) -> bool| !part.is_empty() && part.chars().all(digit);
    let hex = |digit: char| matches!(digit, '0'..='9' | 'a'..='f');
    let decimal = |digit: char| digit.is_ascii_digit();
    let parts: Vec<&str> = part.split('-').collect();
    matches!(parts.as_slice(), [now, process, count] if is(now, hex) && is(process, decimal) && is(count, decimal))
}

/// What tells a file, or a folder, from every other one, also after a reboot: a device's number may be another one then (btrfs, device mapper).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct FileId {
    inode: u64,
    /// When it was made, in nanoseconds, where the file system knows.
    born_ns: Option<u64>,
    /// Where it does not, one of these is to be the same.
    device: u64,
    /// Not of a folder, where it changes with everything that is made or removed in it.
    modified: Option<(i64, i64)>,
}

impl FileId {
    pub fn of(metadata: &Metadata) -> Self {
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Self {
            inode: metadata.ino(),
            born_ns: born.and_then(|born| u64::try_from(born.as_nanos()).ok()),
            device: metadata.dev(),
            modified: metadata.is_file().then(|| (metadata.mtime(), metadata.mtime_nsec())),
        }
    }

    /// Whether this is of the same file as `other`.
    pub fn is(&self, other: &Self) -> bool {
        self.inode == other.inode
            && match (self.born_ns, other.born_ns) {
                (Some(own), Some(others)) => own == others,
                _ => self.device == other.device || (self.modified.is_some() && self.modified == other.modified),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_again_whatever_number_its_device_has() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let id = |name: &str| FileId::of(&fs::metadata(at(name)).unwrap());
        fs::write(at("one"), "1").unwrap();
        fs::write(at("other"), "2").unwrap();
        let noted = FileId { device: !id("one").device, ..id("one") };
        fs::rename(at("one"), at("renamed")).unwrap();
        assert!(noted.is(&id("renamed")) && !noted.is(&id("other")));
        // A file that has got the number of another one.
        assert!(!FileId { born_ns: Some(1), ..noted }.is(&FileId { born_ns: Some(2), ..noted }));
        // Where nobody knows when a file was made.
        let unborn = FileId { born_ns: None, ..noted };
        assert!(unborn.is(&id("renamed")));
        assert!(!FileId { modified: Some((0, 0)), ..unborn }.is(&id("renamed")));
        assert!(FileId { modified: None, device: id("renamed").device, ..unborn }.is(&id("renamed")));
    }

    #[test]
    fn what_somebody_else_has_put_beside_a_file_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("precious"), "precious").unwrap();
        let links: [&dyn Fn(&Path); 3] = [
            &|new| std::os::unix::fs::symlink(at("precious"), new).unwrap(),
            &|new| fs::hard_link(at("precious"), new).unwrap(),
            &|new| rustix::fs::mknodat(rustix::fs::CWD, new, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap(),
        ];
        for link in links {
            link(&at(".file.new"));
            write(&at("file"), b"content", Readers::Owner).unwrap();
            assert_eq!(fs::read_to_string(at("precious")).unwrap(), "precious");
            assert_eq!(fs::read_to_string(at("file")).unwrap(), "content");
            assert!(fs::symlink_metadata(at("file")).unwrap().is_file() && !at(".file.new").exists());
        }
    }

    #[test]
    fn content_is_replaced_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for content in ["one that is long", "other"] {
            // What a crash has left.
            fs::write(folder.path().join(".file.new"), "and something that is longer").unwrap();
            write(&path, content.as_bytes(), Readers::Others).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert!(write(&folder.path().join("folder"), b"", Readers::Owner).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_for_its_owner_nobody_else_reads() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str, readers| {
            write(&folder.path().join(name), b"x", readers).unwrap();
            fs::metadata(folder.path().join(name)).unwrap().mode() & 0o777
        };
        assert_eq!(mode("own", Readers::Owner), 0o600);
        fs::write(folder.path().join("made"), "").unwrap();
        let made = fs::metadata(folder.path().join("made")).unwrap().mode() & 0o777;
        assert_eq!(mode("others", Readers::Others), made);
    }

    #[test]
    fn of_many_that_write_at_once_each_writes_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content = |writer: u8| vec![writer; 10_000 + usize::from(writer)];
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || (0..25).for_each(|_| write(path, &content(writer), Readers::Owner).unwrap()));
            }
        });
        let found = fs::read(&path).unwrap();
        assert_eq!(found, content(found[0]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_its_own_names_are_taken_for_unique_ones() {
        assert!(is_unique(&unique()));
        for other in ["", "notes", "1", "1-2", "1-2-", "x-1-2", "1-2-3-4", "1-a-3", "A-1-2"] {
            assert!(!is_unique(other), "{other}");
        }
    }
}
