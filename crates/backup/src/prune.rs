//! Giving back the space of what no recovery point needs.
//!
//! A pack that nothing needs is first noted as doomed. New backups do not use it from then on. One that was under way already may have: its point is there
//! before [`GRACE`] has passed, or it fails. So a pack that is still not needed when that time has passed is removed, without a backup ever having
//! to wait.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use storage::durable::{self, Readers};

use super::chunk::ChunkId;
use super::error::BackupError;
use super::index::Index;
use super::pack::{Pack, PackName, UNFINISHED, read_file, sync_folder};
use super::repository::{Damage, Repository};

/// How long what nothing needs is kept. Backups take at most half of it after prune has noted what they use.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// Longest note, in bytes.
const NOTE_BYTES_MAX: u64 = 64;

/// When space is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// After [`GRACE`]: backups go on meanwhile.
    Later,
    /// At once, which is refused while there is a backup.
    Now,
}

/// What prune has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Packs that were removed.
    pub removed_packs: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Packs that nothing needs, and that are to be removed.
    pub doomed_packs: u64,
    /// Their bytes.
    pub doomed_bytes: u64,
    /// Packs that are needed.
    pub kept_packs: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Bytes in those that nothing needs: they are given back with the rest of their pack.
    pub unneeded_bytes: u64,
    /// Packs that cannot be read, which stay.
    pub damaged: Vec<Damage>,
}

impl Repository {
    /// Removes what no point needs. `now` is the time of the day.
    ///
    /// # Errors
    /// [`BackupError::UnknownNeeds`] if a point, or what it consists of, cannot be read; [`BackupError::InUse`] with [`When::Now`];
    /// [`BackupError::Io`].
    pub fn prune(&self, when: When, now: SystemTime) -> Result<Pruned, BackupError> {
        if when == When::Now && self.head().try_lock().is_err() {
            return Err(BackupError::InUse(self.folder().to_owned()));
        }
        let pruned = self.prune_packs(when, now);
        if when == When::Now {
            let _ = self.head().unlock();
        }
        pruned
    }

    fn prune_packs(&self, when: When, now: SystemTime) -> Result<Pruned, BackupError> {
        self.remove_unfinished()?;
        // In this order: a point that comes later uses what is not doomed, or was not for long.
        let packs = self.packs()?;
        let doomed = self.doomed()?;
        let needed = self.needed()?;
        let mut pruned = Pruned::default();
        for name in &packs {
            let pack = match Pack::open(&self.packs_folder(), name) {
                Ok(pack) => pack,
                // Another one has removed it.
                Err(BackupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let bytes = fs::metadata(pack.path()).map_or(0, |file| file.len());
            let entries = match pack.directory(self.keys()) {
                Ok(entries) => entries,
                Err(error) => {
                    pruned.damaged.push(Damage::of(error));
                    continue;
                }
            };
            let unneeded: u64 =
                entries.iter().filter(|entry| !needed.contains(&entry.id)).map(|entry| u64::from(entry.length)).sum();
            if entries.iter().any(|entry| needed.contains(&entry.id)) {
                pruned.kept_packs += 1;
                pruned.kept_bytes += bytes;
                pruned.unneeded_bytes += unneeded;
                self.spare(name)?;
                continue;
            }
            let since = doomed_since(self, name, now).filter(|_| doomed.contains(name));
            if when == When::Now || since.is_some_and(|since| since >= GRACE) {
                remove(pack.path())?;
                self.spare(name)?;
                pruned.removed_packs += 1;
                pruned.removed_bytes += bytes;
            } else {
                if since.is_none() {
                    self.doom(name, now)?;
                }
                pruned.doomed_packs += 1;
                pruned.doomed_bytes += bytes;
            }
        }
        sync_folder(&self.packs_folder())?;
        self.forget_notes()?;
        Ok(pruned)
    }

    /// All chunks that points need.
    fn needed(&self) -> Result<HashSet<ChunkId>, BackupError> {
        let listed = self.points()?;
        if let Some((id, _)) = listed.unreadable.into_iter().next() {
            return Err(BackupError::UnknownNeeds(id));
        }
        let (index, _) = Index::load(self, &HashSet::new())?;
        let mut needed = HashSet::new();
        for point in &listed.points {
            let unread = self.needs(&index, point, |id| {
                needed.insert(id);
            })?;
            if !unread.is_empty() {
                return Err(BackupError::UnknownNeeds(point.id.clone()));
            }
        }
        Ok(needed)
    }

    /// Notes that a pack is to be removed.
    fn doom(&self, name: &PackName, now: SystemTime) -> Result<(), BackupError> {
        let path = self.doomed_folder().join(name.to_string());
        let note = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
        durable::write(&path, note.as_bytes(), Readers::Owner).map_err(BackupError::io("write", &path))
    }

    /// Takes that back.
    fn spare(&self, name: &PackName) -> Result<(), BackupError> {
        let path = self.doomed_folder().join(name.to_string());
        if path.exists() { remove(&path) } else { Ok(()) }
    }

    /// Removes notes of packs that are not there.
    fn forget_notes(&self) -> Result<(), BackupError> {
        let there: HashSet<PackName> = self.packs()?.into_iter().collect();
        for (folder, noted) in [(self.doomed_folder(), self.doomed()?), (self.suspect_folder(), self.suspects()?)] {
            noted.difference(&there).try_for_each(|name| remove(&folder.join(name.to_string())))?;
        }
        Ok(())
    }

    /// Removes packs that were being written when their process ended.
    fn remove_unfinished(&self) -> Result<(), BackupError> {
        let folder = self.packs_folder();
        let entries = fs::read_dir(&folder).map_err(BackupError::io("read", &folder))?;
        for entry in entries.flatten() {
            let is_unfinished = entry.file_name().to_str().is_some_and(|name| name.starts_with(UNFINISHED));
            // One that is being written is locked.
            let is_left = || File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
            if is_unfinished && is_left() {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// How long a pack has been noted as doomed; none if there is no note that can be read.
pub fn doomed_since(repository: &Repository, name: &PackName, now: SystemTime) -> Option<Duration> {
    let note = read_file(&repository.doomed_folder().join(name.to_string()), NOTE_BYTES_MAX).ok()?;
    let seconds = std::str::from_utf8(&note).ok()?.trim().parse().ok()?;
    // A note from the future, by a clock that was wrong, begins now.
    Some(now.duration_since(UNIX_EPOCH).ok()?.saturating_sub(Duration::from_secs(seconds)))
}

/// Removes a file. Not being there is no error.
fn remove(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(BackupError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
