//! Who needs a version of an image: disks that are based on its root disk, and snapshots of such disks. Each is noted in a file of the version's `users`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ImageError;
use super::store::{Image, hex};
use super::versions::{ID_CHARACTERS, entries};
use crate::disk::{DiskError, recorded_backing};
use crate::durable::{self, FileId, Readers};

/// Folder of a version with a note for each user.
pub(super) const USERS: &str = "users";

/// What a user is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum UserKind {
    /// A disk: a user for as long as it is based on the version.
    Disk,
    /// A snapshot, which is restored over the version: a user for as long as it is there.
    Snapshot,
}

/// What is noted of a user. Notes of earlier versions of twinvm hold the path of a disk, and nothing else.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    kind: UserKind,
    path: OsString,
    /// Its folder, and those above it in the same file system. A file is gone only if the lowest of its folders that is there is one of these:
    /// otherwise its file system may just not be mounted.
    folders: Vec<Folder>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Folder {
    path: OsString,
    id: FileId,
}

/// Whether a user is there.
enum Presence {
    There,
    Gone,
    /// Nobody can tell.
    Unknown,
}

/// Notes that a version has a user, whose path is absolute. Who cannot write to the version notes nothing, and cannot remove anything either.
pub(super) fn note_user(version: &Path, kind: UserKind, path: &Path) -> Result<(), ImageError> {
    let users = version.join(USERS);
    let mut name = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()));
    name.truncate(ID_CHARACTERS);
    let file = users.join(name);
    let write = || -> io::Result<()> {
        let text = serde_json::to_vec(&Note { kind, path: path.into(), folders: folders_of(path)? })?;
        if fs::read(&file).is_ok_and(|noted| noted == text) {
            return Ok(());
        }
        if !users.is_dir() {
            fs::create_dir_all(&users)?;
            durable::sync_folder_of(&users)?;
        }
        durable::write(&file, &text, Readers::Others)
    };
    match write() {
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            Ok(())
        }
        other => other.map_err(ImageError::at(&file)),
    }
}

fn folders_of(path: &Path) -> io::Result<Vec<Folder>> {
    let mut folders = Vec::new();
    let mut device = None;
    for folder in path.ancestors().skip(1) {
        let metadata = fs::metadata(folder)?;
        if *device.get_or_insert(metadata.dev()) != metadata.dev() {
            break;
        }
        folders.push(Folder { path: folder.into(), id: FileId::of(&metadata) });
    }
    Ok(folders)
}

/// Who is noted for a version and may need it still, in words. Notes of others are removed.
pub(super) fn users(version: &Path) -> Result<Vec<String>, ImageError> {
    let folder = version.join(USERS);
    let root = fs::canonicalize(version.join(Image::ROOT_DISK)).ok();
    let mut users = Vec::new();
    for name in entries(&folder)? {
        let file = folder.join(name);
        let Some(note) = fs::read(&file).ok().and_then(Note::parse) else {
            // Whom it was of nobody knows.
            users.push(format!(
                "what {} was to say (it is damaged; remove it if no disk is based on this)",
                file.display()
            ));
            continue;
        };
        let path = Path::new(&note.path);
        match note.presence(root.as_deref()) {
            Presence::There => users.push(path.display().to_string()),
            Presence::Gone => fs::remove_file(&file).map_err(ImageError::at(&file))?,
            Presence::Unknown => users.push(format!(
                "{} (which is not there, but its file system may just not be mounted; remove {} if it is gone for good)",
                path.display(),
                file.display()
            )),
        }
    }
    Ok(users)
}

impl Note {
    fn parse(text: Vec<u8>) -> Option<Self> {
        if text.starts_with(b"/") {
            return Some(Self { kind: UserKind::Disk, path: OsString::from_vec(text), folders: Vec::new() });
        }
        serde_json::from_slice(&text).ok().filter(|note: &Self| note.path.as_bytes().starts_with(b"/"))
    }

    /// Whether the user is there, and needs the root disk `root`.
    fn presence(&self, root: Option<&Path>) -> Presence {
        let path = Path::new(&self.path);
        match fs::symlink_metadata(path) {
            Ok(_) => {}
            Err(error) if is_missing(&error) => return self.whether_gone(),
            // What cannot be told is taken for a user.
            Err(_) => return Presence::There,
        }
        if self.kind == UserKind::Snapshot {
            return Presence::There;
        }
        match recorded_backing(path) {
            Ok(Some(base)) if fs::canonicalize(&base.path).ok().as_deref() == root => Presence::There,
            Ok(_) => Presence::Gone,
            // A link that leads to nothing.
            Err(DiskError::Open { source, .. }) if is_missing(&source) => Presence::Unknown,
            Err(_) => Presence::There,
        }
    }

    /// Whether a file that is not there is gone.
    fn whether_gone(&self) -> Presence {
        let lowest =
            Path::new(&self.path).ancestors().skip(1).find_map(|folder| Some((folder, fs::metadata(folder).ok()?)));
        let is_noted = lowest.is_some_and(|(path, found)| {
            let noted = self.folders.iter().find(|folder| folder.path == path.as_os_str());
            noted.is_some_and(|noted| noted.id.is(&FileId::of(&found)))
        });
        if is_noted { Presence::Gone } else { Presence::Unknown }
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
