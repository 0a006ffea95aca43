//! [`Replacement`]: new content for several image files, all of them or none.
//!
//! The new content is written to files beside the old ones (`NAME.restoring-*`), which then take their names. One rename is atomic; several are
//! made so by notes: before the first file is renamed, each other one gets a note (`NAME.restore`) that says how to find out whether the first one
//! was. Whoever is about to use a disk settles it before ([`settle`]): a replacement whose first rename has happened is carried through, any
//! other is dropped. So a crash at any instant leaves all old or all new.
//!
//! Links are followed, and a file keeps its permissions, its owner and its access control lists. What cannot be replaced at once is refused: block
//! devices, and files with several names.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::DiskError;
use super::holder;
use super::lock::{Access, ImageLock, open_locked};
use crate::durable::{FileId, is_unique, sync_folder_of, unique};
use crate::file_lock::FileLock;

/// Most links that lead from a name to a file, as in the kernel.
const LINKS_MAX: usize = 40;
/// What the name of new content begins with, after that of the file that it is for.
const NEW: &str = ".restoring-";
/// What follows a file's name in that of its note.
const NOTE: &str = ".restore";
/// What a note begins with.
const NOTE_BEGINS: &[u8] = b"{\"first\":";
/// Who has a file that was just made.
const SETTLING: &str = "another program that is about to use it";
/// Longest note that is read, in bytes.
const NOTE_BYTES_MAX: u64 = 64 << 10;
/// Permission bits, with those of set-user-ID and its kin.
const MODE: u32 = 0o7777;
/// Permissions of a file that only its owner may read.
const PRIVATE: u32 = 0o600;
/// Longest list of a file's extended attributes, and longest value, in bytes: what the kernel allows.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

/// New content for files, on its way. Dropped before [`Replacement::commit`], it leaves everything as it was.
#[derive(Debug, Default)]
pub struct Replacement {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    /// As the user calls it.
    path: PathBuf,
    /// The file that has its name, links followed.
    target: PathBuf,
    /// Where the new content is.
    new: PathBuf,
    /// The file with the new content; nobody else takes it for left behind while it is locked.
    file: File,
    lock: Option<FileLock>,
    /// The old file, if there is one: nobody else may have it meanwhile.
    old: Option<ImageLock>,
}

/// Beside a file that is replaced together with another one.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// The file that is replaced first.
    first: PathBuf,
    /// Its new content: when the file is that one, the replacement has been decided.
    first_new: FileId,
    /// What the file with the new content of this one is called, which lies beside it. By no other file may it be replaced, whatever a note says.
    new: OsString,
}

impl Replacement {
    /// Nothing to be replaced yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prepares new content for `path`: an empty file, which [`Self::file`] and [`Self::new_path`] give. A file that is not there gets
    /// the permissions `mode`.
    ///
    /// # Errors
    /// [`DiskError::InUse`] if somebody has the file; [`DiskError::Unsupported`] if it cannot be replaced at once; [`DiskError::Io`] and
    /// [`DiskError::Open`] from the file system, also if the new file could not be given the old one's owner.
    pub fn add(&mut self, path: &Path, mode: u32) -> Result<(), DiskError> {
        self.add_within(path, mode, MODE)
    }

    /// As [`Self::add`], with no more permissions than `mode_max`.
    fn add_within(&mut self, path: &Path, mode: u32, mode_max: u32) -> Result<(), DiskError> {
        settle(path)?;
        let failed = |action| move |source| DiskError::Io { path: path.to_owned(), action, source };
        let target = resolve(path).map_err(failed("find"))?;
        let old = match fs::metadata(&target) {
            Ok(metadata) => Some(check_old(path, &metadata)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(DiskError::Open { path: path.to_owned(), source }),
        };
        let new = beside(&target, &format!("{NEW}{}", unique()));
        let wanted = old.as_ref().map_or(Ok(mode), |old| old.file().metadata().map(|old| old.mode()));
        let wanted = wanted.map_err(failed("look at"))? & mode_max & MODE;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(wanted & 0o777).open(&new);
        let file = file.map_err(failed("create a file beside it"))?;
        // From here on the file is removed if anything fails.
        let mut part = Part { path: path.to_owned(), target, new, file, lock: None, old };
        part.lock = lock_own(&part.file).map_err(failed("lock"))?;
        let is_locked = part.lock.is_some();
        self.parts.push(part);
        if !is_locked {
            return Err(DiskError::InUse { path: path.to_owned(), holder: SETTLING.to_owned() });
        }
        if let Some(part) = self.parts.last() {
            if let Some(old) = &part.old {
                keep_properties(old.file(), &part.file).map_err(failed("keep the owner of"))?;
            }
            set_mode(&part.file, wanted).map_err(failed("keep the permissions of"))?;
        }
        Ok(())
    }

    /// As [`Self::add`], for a file that only its owner may read, whatever it was before.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_private(&mut self, path: &Path) -> Result<(), DiskError> {
        self.add_within(path, PRIVATE, PRIVATE)
    }

    /// The file for the new content of the `number`th that was added.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there are not so many.
    pub fn file(&self, number: usize) -> io::Result<File> {
        self.parts.get(number).ok_or(io::ErrorKind::NotFound)?.file.try_clone()
    }

    /// Where the new content of the `number`th lies until the commit. It can be opened as an image.
    pub fn new_path(&self, number: usize) -> Option<&Path> {
        Some(&self.parts.get(number)?.new)
    }

    /// Puts the new content in place of the old, on stable storage.
    ///
    /// # Errors
    /// [`DiskError::Io`]. Before the first file was replaced nothing has changed; after it, the others are replaced when they are next
    /// used.
    pub fn commit(mut self) -> Result<(), DiskError> {
        for part in &self.parts {
            part.file.sync_all().map_err(part.failed("write"))?;
        }
        self.sync_folders()?;
        let mut notes = Vec::new();
        let noted = self.write_notes(&mut notes).and_then(|()| self.sync_folders());
        let decided = noted.and_then(|()| self.parts.first().map_or(Ok(()), Part::rename));
        if let Err(error) = decided {
            for (_, note) in notes {
                // One that stays is dropped when the disk is next used.
                let _ = fs::remove_file(note);
            }
            return Err(error);
        }
        // What is not in its place yet is no garbage any more.
        let parts = std::mem::take(&mut self.parts);
        sync_folders(parts.iter().take(1))?;
        parts.iter().skip(1).try_for_each(Part::rename)?;
        sync_folders(parts.iter())?;
        for (part, (_, note)) in parts.iter().skip(1).zip(notes) {
            fs::remove_file(note).map_err(part.failed("replace"))?;
        }
        Ok(())
    }

    fn sync_folders(&self) -> Result<(), DiskError> {
        sync_folders(self.parts.iter())
    }

    fn write_notes(&self, notes: &mut Vec<(FileLock, PathBuf)>) -> Result<(), DiskError> {
        let Some((first, others)) = self.parts.split_first() else { return Ok(()) };
        if others.is_empty() {
            return Ok(());
        }
        let metadata = first.file.metadata().map_err(first.failed("look at"))?;
        for part in others {
            let note = Note {
                first: first.target.clone(),
                first_new: FileId::of(&metadata),
                new: part.new.file_name().unwrap_or_default().to_owned(),
            };
            let path = beside(&part.target, NOTE);
            let failed = || part.failed("write a note beside it");
            let made = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&path);
            let mut file = made.map_err(failed())?;
            let Some(lock) = lock_own(&file).map_err(failed())? else {
                return Err(DiskError::InUse { path: part.path.clone(), holder: SETTLING.to_owned() });
            };
            notes.push((lock, path));
            let text = serde_json::to_vec(&note).map_err(io::Error::from);
            text.and_then(|text| file.write_all(&text)).and_then(|()| file.sync_all()).map_err(failed())?;
        }
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        for part in &self.parts {
            // What cannot be removed now is removed when the disk is next used.
            let _ = fs::remove_file(&part.new);
        }
    }
}

impl Part {
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> DiskError + use<> {
        let path = self.path.clone();
        move |source| DiskError::Io { path, action, source }
    }

    fn rename(&self) -> Result<(), DiskError> {
        fs::rename(&self.new, &self.target).map_err(self.failed("replace"))
    }
}

/// Carries a replacement of the file `path` through that was decided and then cut short, drops what is left of one that was not, and removes new
/// content that nobody writes any more. To be called by whoever is about to use the file.
///
/// # Errors
/// [`DiskError::InUse`] if the replacement is under way; [`DiskError::Io`].
pub fn settle(path: &Path) -> Result<(), DiskError> {
    let failed = |source| DiskError::Io { path: path.to_owned(), action: "settle an interrupted restore of", source };
    let Ok(target) = resolve(path) else { return Ok(()) };
    let note_path = beside(&target, NOTE);
    if let Some(file) = open_regular(&note_path).map_err(failed)? {
        // Whoever replaces the file has it.
        let lock = FileLock::try_new(&file).map_err(failed)?;
        let _lock = lock.ok_or_else(|| DiskError::InUse { path: path.to_owned(), holder: holder::describe(&file) })?;
        // Unless somebody else has settled it since, and there may be another one by now.
        let is_there = file.metadata().map_err(failed)?.nlink() > 0;
        if is_there && settle_by(&file, &target).map_err(failed)? {
            fs::remove_file(&note_path).map_err(failed)?;
        }
    }
    remove_left_behind(&target);
    Ok(())
}

/// Does what a note says. False if it is none, but a file of somebody else's that is called so.
fn settle_by(note: &File, target: &Path) -> io::Result<bool> {
    let mut text = Vec::new();
    note.take(NOTE_BYTES_MAX).read_to_end(&mut text)?;
    let Ok(note) = serde_json::from_slice::<Note>(&text) else {
        // One that is not complete was cut short before anything was decided. Of one that never reached the medium there are zeros, at most.
        let is_note = text.starts_with(NOTE_BEGINS) || NOTE_BEGINS.starts_with(&text);
        return Ok(is_note || text.iter().all(|&byte| byte == 0));
    };
    let is_decided = fs::metadata(&note.first).is_ok_and(|first| note.first_new.is(&FileId::of(&first)));
    // It has taken its name already, or is removed as left behind.
    if is_decided && is_new_content(&note.new, target) {
        let new = target.with_file_name(&note.new);
        if fs::symlink_metadata(&new).is_ok_and(|new| new.is_file()) {
            fs::rename(&new, target)?;
            sync_folder_of(target)?;
        }
    }
    Ok(true)
}

/// Opens a file that may be somebody else's; `None` if it is not there, or no regular one. Waits for nobody, as opening a FIFO would.
fn open_regular(path: &Path) -> io::Result<Option<File>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    // For writing, without which some file systems lock nothing exclusively.
    match OpenOptions::new().read(true).write(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Locks a file that was just made. `None` if somebody has taken it for left behind before: then it is gone, or about to be.
fn lock_own(file: &File) -> io::Result<Option<FileLock>> {
    let lock = FileLock::try_new(file)?;
    Ok(lock.filter(|_| file.metadata().is_ok_and(|metadata| metadata.nlink() == 1)))
}

/// Removes new content for `target` that nobody holds. What cannot be removed costs space, and nothing else.
fn remove_left_behind(target: &Path) {
    let Some(folder) = target.parent() else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_new_content(&entry.file_name(), target)
            && let Ok(Some(file)) = open_regular(&entry.path())
            && let Ok(Some(_lock)) = FileLock::try_new(&file)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether new content for `target` may be called so: exactly as [`Replacement::add`] calls it.
fn is_new_content(name: &OsStr, target: &Path) -> bool {
    let Some(own) = target.file_name() else { return false };
    let rest = name.as_encoded_bytes().strip_prefix(own.as_encoded_bytes());
    let rest = rest.and_then(|rest| rest.strip_prefix(NEW.as_bytes()));
    rest.and_then(|rest| std::str::from_utf8(rest).ok()).is_some_and(is_unique)
}

/// The file behind a name: of links, what they lead to, also if that is not there.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            Ok(link) => path = path.parent().unwrap_or(Path::new("")).join(link),
            // Not a link, or nothing at all.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Locks a file that is to be replaced, and refuses it if it cannot be.
fn check_old(path: &Path, metadata: &fs::Metadata) -> Result<ImageLock, DiskError> {
    let unsupported = |reason: String| DiskError::Unsupported { path: path.to_owned(), reason };
    if metadata.file_type().is_block_device() {
        return Err(unsupported("a block device, whose content cannot be replaced at once".to_owned()));
    }
    if !metadata.is_file() {
        return Err(DiskError::NotADisk { path: path.to_owned() });
    }
    if metadata.nlink() > 1 {
        return Err(unsupported(format!(
            "the file has {} names (hard links), of which a replacement would get only this one; remove the others",
            metadata.nlink()
        )));
    }
    open_locked(path, Access::Write, false).map(|(_, lock)| lock)
}

/// Gives a new file the owner and the extended attributes of an old one.
fn keep_properties(old: &File, new: &File) -> io::Result<()> {
    let (wanted, given) = (old.metadata()?, new.metadata()?);
    if (wanted.uid(), wanted.gid()) != (given.uid(), given.gid()) {
        fchown(new, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    keep_attributes(old, new)
}

/// A process that is confined may not do this, and need not where the file was made with these permissions.
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    if file.metadata()?.mode() & MODE == mode {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(mode))
}

/// Access control lists, security labels and what users have noted. A file system that has none is no reason to stop, nor is a label that the
/// system sets by itself.
fn keep_attributes(old: &File, new: &File) -> io::Result<()> {
    let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
    let Ok(len) = rustix::fs::flistxattr(old, names.as_mut_slice()) else { return Ok(()) };
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    for name in names.get(..len).unwrap_or_default().split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let len = rustix::fs::fgetxattr(old, name, value.as_mut_slice())?;
        let value = value.get(..len).unwrap_or_default();
        let set = rustix::fs::fsetxattr(new, name, value, rustix::fs::XattrFlags::empty());
        if !name.starts_with(b"security.") {
            set?;
        }
    }
    Ok(())
}

fn sync_folders<'a>(parts: impl Iterator<Item = &'a Part>) -> Result<(), DiskError> {
    let mut done = BTreeSet::new();
    for part in parts {
        if done.insert(part.target.parent().map(Path::to_owned)) {
            sync_folder_of(&part.target).map_err(part.failed("write the folder of"))?;
        }
    }
    Ok(())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests;
