//! A repository: what is in its folder.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use storage::durable::{self, Readers};

use super::error::BackupError;
use super::key::{RepositoryKey, from_hex, hex, random};
use super::pack::{PackName, read_file, sync_folder};
use super::point::{PointId, RecoveryPoint};
use super::seal::Keys;

/// Version of repositories that are made, and the newest that is read.
const VERSION: u32 = 1;
/// What the file says that tells a repository.
const FORMAT: &str = "twinvm backup repository";
/// Longest file of that kind, in bytes.
const HEAD_BYTES_MAX: u64 = 4096;
/// Longest recovery point, in bytes.
const POINT_BYTES_MAX: u64 = 64 << 20;
/// First bytes of a recovery point.
const POINT_MAGIC: [u8; 8] = *b"TWINVMRP";
/// Version of points that are written, and the newest that is read.
const POINT_VERSION: u32 = 1;
/// Magic and version.
const POINT_HEADER_BYTES: usize = 12;

/// The file that tells a repository, as JSON.
#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    /// 16 bytes, by lot.
    id: String,
    /// Tells a wrong key.
    proof: String,
}

/// A file of a repository that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The file, if it is known which one.
    pub file: Option<PathBuf>,
    /// What is wrong with the file, or with the repository.
    pub why: String,
}

impl Damage {
    pub(crate) fn of(error: BackupError) -> Self {
        match error {
            BackupError::Damaged { path, why } => Self { file: Some(path), why: why.to_owned() },
            BackupError::Io { path, source, .. } => Self { file: Some(path), why: source.to_string() },
            BackupError::Newer { ref path, .. } => Self { file: Some(path.clone()), why: error.to_string() },
            other => Self { file: None, why: other.to_string() },
        }
    }
}

/// The recovery points of a repository.
#[derive(Debug, Default)]
pub struct Listed {
    /// Those that can be read, the oldest first.
    pub points: Vec<RecoveryPoint>,
    /// Those that cannot, and why not.
    pub unreadable: Vec<(PointId, Damage)>,
}

/// A repository that is open.
pub struct Repository {
    folder: PathBuf,
    keys: Arc<Keys>,
    /// Locked as long as this is used to write: shared by those that add, and alone by whoever removes at once.
    head: File,
}

impl Repository {
    /// Makes one in a folder that is empty, or not there.
    ///
    /// # Errors
    /// [`BackupError::NotEmpty`], [`BackupError::Io`].
    pub fn create(folder: &Path, key: &RepositoryKey) -> Result<Self, BackupError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(BackupError::io("make", folder))?;
        let mut entries = fs::read_dir(folder).map_err(BackupError::io("read", folder))?;
        if entries.next().is_some() {
            return Err(BackupError::NotEmpty(folder.to_owned()));
        }
        for name in ["packs", "points", "doomed", "suspect"] {
            let path = folder.join(name);
            DirBuilder::new().mode(0o700).create(&path).map_err(BackupError::io("make", &path))?;
        }
        let id = random::<16>()?;
        let head =
            Head { format: FORMAT.to_owned(), version: VERSION, id: hex(&id), proof: hex(&Keys::of(key).proof(&id)) };
        let path = folder.join("repository");
        let text = serde_json::to_string_pretty(&head).map_err(|_| BackupError::Worker)? + "\n";
        // The last: what has it is a repository.
        durable::write(&path, text.as_bytes(), Readers::Owner).map_err(BackupError::io("write", &path))?;
        if let Some(parent) = folder.parent() {
            sync_folder(parent)?;
        }
        Self::open(folder, key)
    }

    /// Opens one.
    ///
    /// # Errors
    /// [`BackupError::NotARepository`], [`BackupError::Newer`], [`BackupError::WrongKey`], [`BackupError::Io`].
    pub fn open(folder: &Path, key: &RepositoryKey) -> Result<Self, BackupError> {
        let path = folder.join("repository");
        let not = |why: &str| BackupError::NotARepository { path: folder.to_owned(), why: why.to_owned() };
        let text = match read_file(&path, HEAD_BYTES_MAX) {
            Err(BackupError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(not("there is no file `repository` in it"));
            }
            read => read?,
        };
        // The version first: what a newer one holds besides is not known.
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|_| not("its file `repository` is damaged"))?;
        if value.get("format").and_then(|format| format.as_str()) != Some(FORMAT) {
            return Err(not("its file `repository` is another program's"));
        }
        let found = value.get("version").and_then(|version| u32::try_from(version.as_u64()?).ok());
        match found {
            Some(found) if found > VERSION => return Err(BackupError::Newer { path, found, known: VERSION }),
            Some(VERSION) => {}
            _ => return Err(not("its file `repository` says no version that there was")),
        }
        let head: Head = serde_json::from_value(value).map_err(|_| not("its file `repository` is damaged"))?;
        let id = from_hex::<16>(&head.id).ok_or_else(|| not("its file `repository` is damaged"))?;
        let keys = Arc::new(Keys::of(key));
        if from_hex(&head.proof) != Some(keys.proof(&id)) {
            return Err(BackupError::WrongKey(folder.to_owned()));
        }
        let head = storage::plain_file::open(&path).map_err(BackupError::io("read", &path))?;
        Ok(Self { folder: folder.to_owned(), keys, head })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The same, for threads.
    pub(crate) fn shared_keys(&self) -> Arc<Keys> {
        self.keys.clone()
    }

    pub(crate) fn head(&self) -> &File {
        &self.head
    }

    pub(crate) fn packs_folder(&self) -> PathBuf {
        self.folder.join("packs")
    }

    pub(crate) fn points_folder(&self) -> PathBuf {
        self.folder.join("points")
    }

    /// Notes of packs that are to be removed.
    pub(crate) fn doomed_folder(&self) -> PathBuf {
        self.folder.join("doomed")
    }

    /// Notes of packs in which verify has found damage.
    pub(crate) fn suspect_folder(&self) -> PathBuf {
        self.folder.join("suspect")
    }

    /// The packs that are there.
    pub(crate) fn packs(&self) -> Result<Vec<PackName>, BackupError> {
        names(&self.packs_folder())
    }

    /// Those that are to be removed.
    pub(crate) fn doomed(&self) -> Result<HashSet<PackName>, BackupError> {
        Ok(names(&self.doomed_folder())?.into_iter().collect())
    }

    /// Those in which damage was found.
    pub(crate) fn suspects(&self) -> Result<HashSet<PackName>, BackupError> {
        Ok(names(&self.suspect_folder())?.into_iter().collect())
    }

    /// The recovery points.
    ///
    /// # Errors
    /// [`BackupError::Io`] if the folder cannot be read. Points that cannot be are no error.
    pub fn points(&self) -> Result<Listed, BackupError> {
        let mut listed = Listed::default();
        for id in names::<PointId>(&self.points_folder())? {
            match self.point(&id) {
                Ok(point) => listed.points.push(point),
                // Forgotten meanwhile.
                Err(BackupError::NoPoint(_)) => {}
                Err(error) => listed.unreadable.push((id, Damage::of(error))),
            }
        }
        listed.points.sort_by(|a, b| (a.taken_unix_ms, &a.id).cmp(&(b.taken_unix_ms, &b.id)));
        listed.unreadable.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listed)
    }

    /// The point whose name begins so. `latest:VM` is the newest of a VM.
    ///
    /// # Errors
    /// [`BackupError::NoPoint`], [`BackupError::Ambiguous`], and those of reading it.
    pub fn find(&self, wanted: &str) -> Result<RecoveryPoint, BackupError> {
        let none = || BackupError::NoPoint(wanted.to_owned());
        if let Some(vm) = wanted.strip_prefix("latest:") {
            return self.points()?.points.into_iter().rfind(|point| point.vm == vm).ok_or_else(none);
        }
        let mut found = names::<PointId>(&self.points_folder())?;
        found.retain(|id| !wanted.is_empty() && id.as_str().starts_with(wanted));
        match &found[..] {
            [] => Err(none()),
            [id] => self.point(id),
            _ => Err(BackupError::Ambiguous(wanted.to_owned())),
        }
    }

    fn point(&self, id: &PointId) -> Result<RecoveryPoint, BackupError> {
        let path = self.points_folder().join(id.as_str());
        let content = match read_file(&path, POINT_BYTES_MAX) {
            Err(BackupError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(BackupError::NoPoint(id.to_string()));
            }
            read => read?,
        };
        let damaged = |why| BackupError::damaged(&path, why);
        let Some((header, sealed)) = content.split_first_chunk::<POINT_HEADER_BYTES>() else {
            return Err(damaged("it is too short"));
        };
        let [magic @ .., v0, v1, v2, v3] = header;
        if magic != &POINT_MAGIC {
            return Err(damaged("it does not begin as a recovery point does"));
        }
        let found = u32::from_le_bytes([*v0, *v1, *v2, *v3]);
        if found > POINT_VERSION {
            return Err(BackupError::Newer { path, found, known: POINT_VERSION });
        }
        let plain = self.keys.open_point(id.as_str(), sealed).ok_or_else(|| damaged("it is not what was written"))?;
        let point: RecoveryPoint =
            serde_json::from_slice(&plain).map_err(|_| damaged("it does not say what a recovery point says"))?;
        if point.id != *id || !point.is_sound() {
            return Err(damaged("what it says does not fit"));
        }
        Ok(point)
    }

    /// Keeps a point whose chunks are on stable storage all. It is there, on stable storage, when this returns.
    pub(crate) fn add_point(&self, point: &RecoveryPoint) -> Result<(), BackupError> {
        let plain = serde_json::to_vec(point).map_err(|_| BackupError::Worker)?;
        let mut content = POINT_MAGIC.to_vec();
        content.extend(POINT_VERSION.to_le_bytes());
        content.extend(self.keys.seal_point(point.id.as_str(), plain)?);
        if content.len() as u64 > POINT_BYTES_MAX {
            return Err(BackupError::Source("its disks are too many and too big for one recovery point".to_owned()));
        }
        let path = self.points_folder().join(point.id.as_str());
        durable::write(&path, &content, Readers::Owner).map_err(BackupError::io("write", &path))
    }

    /// Removes a point. The space of what only it needs is given back by [`Self::prune`].
    ///
    /// # Errors
    /// [`BackupError::NoPoint`], [`BackupError::Io`].
    pub fn forget(&self, id: &PointId) -> Result<(), BackupError> {
        let path = self.points_folder().join(id.as_str());
        if !path.exists() {
            return Err(BackupError::NoPoint(id.to_string()));
        }
        durable::remove(&path).map_err(BackupError::io("remove", &path))
    }
}

/// What files of a folder are names of. Others, such as what is being written, are left out.
fn names<T: TryFrom<String>>(folder: &Path) -> Result<Vec<T>, BackupError> {
    let failed = |error| BackupError::io("read", folder)(error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        found.extend(name.into_string().ok().and_then(|name| T::try_from(name).ok()));
    }
    Ok(found)
}
