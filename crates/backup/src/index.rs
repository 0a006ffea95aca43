//! Where each chunk is: the directories of all packs. Nothing of it is kept in the repository, so that nothing can disagree with the packs.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::chunk::{ChunkId, Opener};
use super::error::BackupError;
use super::pack::{Entry, Pack, PackName};
use super::repository::{Damage, Repository};
use super::seal::Keys;

/// So many packs are open at a time, by each reader.
const OPEN_MAX: usize = 64;

/// Where a chunk is.
#[derive(Clone, Copy)]
struct Place {
    pack: u32,
    offset: u32,
    length: u32,
}

/// The chunks of a repository.
#[derive(Default)]
pub struct Index {
    packs: Vec<PackName>,
    chunks: HashMap<ChunkId, Place>,
}

impl Index {
    /// Reads the directories of all packs but those in `without`. Packs whose directory cannot be read are left out, and told. A chunk that is in several
    /// packs is taken from one in which verify has found nothing.
    pub fn load(repository: &Repository, without: &HashSet<PackName>) -> Result<(Self, Vec<Damage>), BackupError> {
        let suspects = repository.suspects()?;
        let mut packs: Vec<PackName> = repository.packs()?.into_iter().filter(|name| !without.contains(name)).collect();
        packs.sort_by_key(|name| (!suspects.contains(name), *name));
        let (mut index, mut damaged) = (Self::default(), Vec::new());
        for name in packs {
            let read = Pack::open(&repository.packs_folder(), &name).and_then(|pack| pack.directory(repository.keys()));
            match read {
                Ok(entries) => index.add(name, &entries),
                // A pack that prune has just removed is no loss: no point needs it.
                Err(BackupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error @ (BackupError::Damaged { .. } | BackupError::Io { .. })) => damaged.push(Damage::of(error)),
                Err(error) => return Err(error),
            }
        }
        Ok((index, damaged))
    }

    /// Adds what is in a pack.
    pub fn add(&mut self, name: PackName, entries: &[Entry]) {
        // There are not as many packs in the world.
        let pack = self.packs.len() as u32;
        self.packs.push(name);
        for &Entry { id, offset, length } in entries {
            self.chunks.insert(id, Place { pack, offset, length });
        }
    }

    /// The pack that a chunk is in.
    pub fn pack_of(&self, id: &ChunkId) -> Option<PackName> {
        self.packs.get(self.chunks.get(id)?.pack as usize).copied()
    }
}

/// Reads chunks, for one thread.
pub struct ChunkReader<'a> {
    repository: &'a Repository,
    keys: &'a Keys,
    index: &'a Index,
    opener: Opener,
    open: HashMap<u32, Pack>,
}

impl<'a> ChunkReader<'a> {
    /// One for a thread.
    pub fn new(repository: &'a Repository, index: &'a Index) -> Result<Self, BackupError> {
        let open = HashMap::new();
        Ok(Self { repository, keys: repository.keys(), index, opener: Opener::new()?, open })
    }

    /// Reads a chunk, and checks it.
    pub fn read(&mut self, id: &ChunkId) -> Result<Vec<u8>, BackupError> {
        let missing = || BackupError::MissingChunk(id.to_string());
        let place = self.index.chunks.get(id).ok_or_else(missing)?;
        let name = self.index.packs.get(place.pack as usize).ok_or_else(missing)?;
        if !self.open.contains_key(&place.pack) {
            if self.open.len() >= OPEN_MAX {
                self.open.clear();
            }
            self.open.insert(place.pack, Pack::open(&self.repository.packs_folder(), name)?);
        }
        let pack = self.open.get(&place.pack).ok_or_else(missing)?;
        let sealed = pack.chunk(&Entry { id: *id, offset: place.offset, length: place.length })?;
        let opened = self.opener.open(self.keys, id, &sealed);
        opened.ok_or_else(|| BackupError::damaged(pack.path(), "a chunk is not what was written"))
    }
}

/// Names of packs, in order.
pub type PackNames = BTreeSet<PackName>;
