//! Reading everything, to find what is damaged before somebody needs it.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use storage::durable::{self, Readers};

use super::chunk::{ChunkId, Opener};
use super::error::BackupError;
use super::index::Index;
use super::pack::{Pack, PackName};
use super::point::{PointId, RecoveryPoint};
use super::repository::{Damage, Repository};

/// What verify has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Packs that were read.
    pub packs: u64,
    /// Chunks in them that are good.
    pub chunks: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files that are not what was written, or are gone.
    pub damaged: Vec<Damage>,
    /// The recovery points, the oldest first.
    pub points: Vec<PointVerdict>,
}

/// What verify says of a recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointVerdict {
    /// Its name.
    pub id: PointId,
    /// The VM, if the point can be read.
    pub vm: Option<String>,
    /// All of it is there, as it was written.
    pub whole: bool,
    /// Chunks of it that are nowhere.
    pub missing_chunks: u64,
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.damaged.is_empty() && self.points.iter().all(|point| point.whole)
    }
}

impl Repository {
    /// Reads all packs, decrypts and decompresses each chunk, and checks of each point that all its chunks are there. Packs in which something is wrong
    /// are noted: the next backup does not build upon them, and what it writes anew heals older points as well. `progress` is told of bytes that were
    /// read.
    ///
    /// # Errors
    /// [`BackupError::Io`] if folders cannot be read, or the notes not be written. What is damaged is in the answer.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Result<Verification, BackupError> {
        let mut found = Verification { packs: 0, chunks: 0, bytes: 0, damaged: Vec::new(), points: Vec::new() };
        // Before the packs: what they need was there then.
        let listed = self.points()?;
        let mut good = HashSet::new();
        let packs = self.packs()?;
        for name in &packs {
            match self.verify_pack(name, &mut good, &mut found) {
                Ok(()) => self.note_suspect(name, false)?,
                Err(BackupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error @ (BackupError::Damaged { .. } | BackupError::Io { .. } | BackupError::Newer { .. })) => {
                    self.note_suspect(name, true)?;
                    found.damaged.push(Damage::of(error));
                }
                Err(error) => return Err(error),
            }
            progress(found.bytes);
        }
        let (index, _) = Index::load(self, &Default::default())?;
        let mut gone = HashSet::new();
        for point in &listed.points {
            let verdict = self.verify_point(point, &index, &good)?;
            if !verdict.whole {
                gone.extend(point.packs.iter().filter(|pack| !packs.contains(pack)));
            }
            found.points.push(verdict);
        }
        let mut gone: Vec<&PackName> = gone.into_iter().collect();
        gone.sort();
        let lost = |name: &PackName| Damage {
            file: Some(self.packs_folder().join(name.to_string())),
            why: "it is gone, and a recovery point needs it".to_owned(),
        };
        found.damaged.extend(gone.into_iter().map(lost));
        for (id, damage) in listed.unreadable {
            found.damaged.push(damage);
            found.points.push(PointVerdict { id, vm: None, whole: false, missing_chunks: 0 });
        }
        found.chunks = good.len() as u64;
        Ok(found)
    }

    fn verify_pack(
        &self,
        name: &PackName,
        good: &mut HashSet<ChunkId>,
        found: &mut Verification,
    ) -> Result<(), BackupError> {
        let pack = Pack::open(&self.packs_folder(), name)?;
        found.packs += 1;
        let has_its_name = pack.hash()? == *name;
        let mut opener = Opener::new()?;
        let mut is_whole = has_its_name;
        for entry in pack.directory(self.keys())? {
            found.bytes += u64::from(entry.length);
            // Also of one that is damaged: the rest of its chunks is good.
            match opener.open(self.keys(), &entry.id, &pack.chunk(&entry)?) {
                Some(_) => {
                    good.insert(entry.id);
                }
                None => is_whole = false,
            }
        }
        if is_whole { Ok(()) } else { Err(BackupError::damaged(pack.path(), "it is not what was written")) }
    }

    fn verify_point(
        &self,
        point: &RecoveryPoint,
        index: &Index,
        good: &HashSet<ChunkId>,
    ) -> Result<PointVerdict, BackupError> {
        let mut missing_chunks = 0;
        let unread = self.needs(index, point, |id| missing_chunks += u64::from(!good.contains(&id)))?;
        let whole = missing_chunks == 0 && unread.is_empty();
        Ok(PointVerdict { id: point.id.clone(), vm: Some(point.vm.clone()), whole, missing_chunks })
    }

    /// Notes that a pack is damaged, or that it is not.
    fn note_suspect(&self, name: &PackName, is_suspect: bool) -> Result<(), BackupError> {
        let path = self.suspect_folder().join(name.to_string());
        let noted = if is_suspect {
            durable::write(&path, b"", Readers::Owner)
        } else if path.exists() {
            durable::remove(&path)
        } else {
            Ok(())
        };
        noted.map_err(BackupError::io("write", &path))
    }
}
