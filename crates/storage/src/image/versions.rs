//! The versions of images, and how long they are kept.
//!
//! A build makes a new version in `.versions/<digest of its manifest>`, and the image's name in `.names` becomes a link to it. A version stays as it is and
//! where it is as long as a name leads to it, or somebody needs its root disk: a disk that is based on it, or a snapshot of such a disk ([`super::users`]). Images of twinvm before that were folders by name; disks that are based on them are noted nowhere, so a folder of those stays
//! until somebody says that it is not needed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use spec::DiskFormat;

use super::ImageError;
use super::manifest::Manifest;
use super::store::{Image, hex};
use super::users::{USERS, UserKind, note_user, users};
use crate::disk::{Access, DiskError, ImageLock, recorded_backing};
use crate::durable::sync_folder_of;
use crate::file_lock::FileLock;

/// Folder of the versions.
const VERSIONS: &str = ".versions";
/// Folder of the names.
const NAMES: &str = ".names";
/// What the manifest of a folder by name is called once a version has its name.
const SUPERSEDED: &str = "superseded.json";
/// Characters of a digest that name a version.
pub(super) const ID_CHARACTERS: usize = 16;
/// Longest chain of disks, each based on the next.
const CHAIN_LENGTH_MAX: usize = 32;

/// What is known of who needs a folder.
#[derive(Debug)]
pub(super) enum Need {
    /// Nobody.
    None,
    /// These disks and snapshots, in words.
    Users(Vec<String>),
    /// Somebody has it open.
    Open(ImageError),
}

/// The versions in an images directory.
#[derive(Clone, Debug)]
pub(super) struct Versions {
    dir: PathBuf,
}

impl Versions {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Keeps everyone else from changing names, versions and their users. Held for moments only.
    pub fn lock(&self) -> Result<FileLock, ImageError> {
        for name in [VERSIONS, NAMES] {
            let path = self.dir.join(name);
            fs::create_dir_all(&path).map_err(ImageError::at(&path))?;
        }
        let path = self.dir.join(VERSIONS).join("lock");
        let file = File::create(&path).map_err(ImageError::at(&path))?;
        FileLock::wait(&file).map_err(ImageError::at(&path))
    }

    /// The version that a name leads to.
    pub fn named(&self, name: &str) -> Option<PathBuf> {
        fs::canonicalize(self.dir.join(NAMES).join(name)).ok()
    }

    /// All names.
    pub fn names(&self) -> Result<Vec<String>, ImageError> {
        entries(&self.dir.join(NAMES))
    }

    /// All versions.
    pub fn all(&self) -> Result<Vec<PathBuf>, ImageError> {
        let dir = self.dir.join(VERSIONS);
        let paths = entries(&dir)?.into_iter().map(|name| dir.join(name));
        Ok(paths.filter(|path| path.is_dir()).collect())
    }

    /// Folders by name whose name leads to a version by now.
    pub fn superseded(&self) -> Result<Vec<PathBuf>, ImageError> {
        let paths = entries(&self.dir)?.into_iter().map(|name| self.dir.join(name));
        Ok(paths.filter(|path| path.join(SUPERSEDED).is_file()).collect())
    }

    /// Makes the finished image in `new` a version, which `name` leads to from then on; where it is. A version with the same content, if it is whole and
    /// `is_forced` does not say that it may be damaged, is taken instead.
    pub fn publish(&self, new: &Path, name: &str, is_forced: bool) -> Result<PathBuf, ImageError> {
        let manifest = new.join(Manifest::FILE_NAME);
        let text = fs::read(&manifest).map_err(ImageError::at(&manifest))?;
        sync_files(new)?;
        let mut id = hex(&Sha256::digest(&text));
        id.truncate(ID_CHARACTERS);
        let _lock = self.lock()?;
        let mut version = self.dir.join(VERSIONS).join(&id);
        let mut number = 1;
        while version.exists() && (is_forced || !Image::load(version.clone()).is_ok_and(|image| image.is_complete())) {
            number += 1;
            version = self.dir.join(VERSIONS).join(format!("{id}-{number}"));
        }
        if !version.exists() {
            fs::rename(new, &version).map_err(ImageError::at(&version))?;
            sync_folder_of(&version).map_err(ImageError::at(&version))?;
        }
        self.point(name, &version)?;
        self.supersede(name)?;
        Ok(version)
    }

    /// Lets a name lead to a version, in one step, and after a power failure as well.
    fn point(&self, name: &str, version: &Path) -> Result<(), ImageError> {
        let path = self.dir.join(NAMES).join(name);
        let new = self.dir.join(NAMES).join(format!(".{name}"));
        let target = Path::new("..").join(VERSIONS).join(version.file_name().unwrap_or_default());
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ImageError::io(&new, error)),
            _ => {}
        }
        symlink(target, &new).map_err(ImageError::at(&new))?;
        fs::rename(&new, &path).and_then(|()| sync_folder_of(&path)).map_err(ImageError::at(&path))
    }

    /// Takes its name from a folder by name. Its files stay, for the disks that are based on it.
    pub fn supersede(&self, name: &str) -> Result<(), ImageError> {
        let dir = self.dir.join(name);
        let (from, to) = (dir.join(Manifest::FILE_NAME), dir.join(SUPERSEDED));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(ImageError::at(&from)),
        }
    }

    /// Takes a name away.
    pub fn forget(&self, name: &str) -> Result<(), ImageError> {
        let path = self.dir.join(NAMES).join(name);
        fs::remove_file(&path).map_err(ImageError::at(&path))
    }

    /// Whether a name leads to a version.
    pub fn is_named(&self, version: &Path) -> Result<bool, ImageError> {
        let version = fs::canonicalize(version).map_err(ImageError::at(version))?;
        Ok(self.names()?.iter().any(|name| self.named(name).is_some_and(|named| named == version)))
    }

    /// Notes for each disk in the chain of images that begins with `disk` that it is based on a version of this store, if it is.
    pub fn note_users(&self, disk: &Path) -> Result<(), ImageError> {
        let Ok(dir) = fs::canonicalize(&self.dir) else { return Ok(()) };
        let mut disk = std::path::absolute(disk).map_err(ImageError::at(disk))?;
        for _ in 0..CHAIN_LENGTH_MAX {
            let Ok(Some(base)) = recorded_backing(&disk) else { break };
            let Ok(path) = fs::canonicalize(&base.path) else { break };
            if let Some(version) = folder_of_root_disk(&dir, &path) {
                note_user(version, UserKind::Disk, &disk)?;
            }
            if base.format != DiskFormat::Qcow2 {
                break;
            }
            disk = path;
        }
        Ok(())
    }

    /// Notes that a snapshot needs what its disks are based on, as far as that is of this store.
    pub fn note_snapshot(&self, snapshot: &Path, bases: &[&Path]) -> Result<(), ImageError> {
        bases.iter().try_for_each(|base| self.note_user_of(UserKind::Snapshot, snapshot, base))
    }

    /// The folder of notes of the version that a file is the root disk of.
    pub fn notes_of(&self, base: &Path) -> Option<PathBuf> {
        let (dir, path) = (fs::canonicalize(&self.dir).ok()?, fs::canonicalize(base).ok()?);
        Some(folder_of_root_disk(&dir, &path)?.join(USERS)).filter(|notes| notes.is_dir())
    }

    /// Notes that something needs a file, as far as that is of this store.
    pub fn note_user_of(&self, kind: UserKind, user: &Path, base: &Path) -> Result<(), ImageError> {
        let Ok(dir) = fs::canonicalize(&self.dir) else { return Ok(()) };
        let user = std::path::absolute(user).map_err(ImageError::at(user))?;
        let Ok(path) = fs::canonicalize(base) else { return Ok(()) };
        match folder_of_root_disk(&dir, &path) {
            Some(version) => note_user(version, kind, &user),
            // A disk of its own, which may be based on an image.
            None => self.note_users(&path),
        }
    }

    /// The image that a disk in qcow2 format is based on, itself or by others in between, if it is of this store: also one that has no name any more.
    pub fn image_below(&self, disk: &Path) -> Option<Image> {
        let dir = fs::canonicalize(&self.dir).ok()?;
        let mut disk = disk.to_owned();
        for _ in 0..CHAIN_LENGTH_MAX {
            let base = recorded_backing(&disk).ok()??;
            let path = fs::canonicalize(&base.path).ok()?;
            if let Some(folder) = folder_of_root_disk(&dir, &path) {
                let folder = folder.to_owned();
                return Image::load(folder.clone()).or_else(|_| Image::load_as(folder, SUPERSEDED)).ok();
            }
            disk = Some(path).filter(|_| base.format == DiskFormat::Qcow2)?;
        }
        None
    }

    /// Who needs the root disk in a folder. The lock is held.
    pub fn need(folder: &Path) -> Result<Need, ImageError> {
        let users = users(folder)?;
        if !users.is_empty() {
            return Ok(Need::Users(users));
        }
        match lock_root_disk(folder) {
            Err(error @ ImageError::InUse { .. }) => Ok(Need::Open(error)),
            Err(error) => Err(error),
            Ok(_) => Ok(Need::None),
        }
    }
}

/// Brings the files of a finished image to stable storage: before a name leads to it.
fn sync_files(folder: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(folder).map_err(ImageError::at(folder))? {
        let path = entry.map_err(ImageError::at(folder))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(ImageError::at(&path))?;
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(ImageError::at(folder))
}

/// Names in a folder, sorted; none if it is not there. Those that begin with a dot are not listed.
pub(super) fn entries(folder: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(ImageError::at(folder))?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string()));
    let mut names: Vec<String> =
        names.collect::<Result<Vec<_>, _>>().map_err(ImageError::at(folder))?.into_iter().flatten().collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    Ok(names)
}

/// The folder of an image's root disk in `dir`. Both paths are without links.
fn folder_of_root_disk<'a>(dir: &Path, file: &'a Path) -> Option<&'a Path> {
    file.parent().filter(|folder| folder.starts_with(dir) && file.ends_with(Image::ROOT_DISK))
}

/// Locks the root disk in a folder, if there is one, so that no VM has it or gets it.
pub(super) fn lock_root_disk(folder: &Path) -> Result<Option<ImageLock>, ImageError> {
    let path = folder.join(Image::ROOT_DISK);
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(ImageError::at(&path))?,
    };
    match ImageLock::new(&path, &file, Access::Write) {
        Ok(lock) => Ok(Some(lock)),
        Err(DiskError::InUse { path, holder }) => Err(ImageError::InUse { path, holder }),
        Err(error) => Err(ImageError::io(&path, error.into())),
    }
}
