//! Encryption: AES-256 in Galois/counter mode (NIST SP 800-38D) with a random nonce for each thing that is sealed.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::chunk::ChunkId;
use super::error::BackupError;
use super::key::{RepositoryKey, random};

/// By how much what is sealed is longer: the nonce before it, and the tag after it, in bytes.
pub const SEALED_MORE_BYTES: usize = NONCE_LEN + 16;

/// The keys of a repository, each for one purpose.
pub struct Keys {
    ids: [u8; 32],
    chunks: [u8; 32],
    directories: [u8; 32],
    points: [u8; 32],
    proofs: [u8; 32],
}

impl Keys {
    /// Derives them.
    pub fn of(key: &RepositoryKey) -> Self {
        Self {
            ids: key.derive("twinvm backup 1: names of chunks"),
            chunks: key.derive("twinvm backup 1: chunks"),
            directories: key.derive("twinvm backup 1: directories of packs"),
            points: key.derive("twinvm backup 1: recovery points"),
            proofs: key.derive("twinvm backup 1: proof of the key"),
        }
    }

    /// The name of a chunk. Nobody without the key can tell whether a chunk that he knows is there.
    pub fn id(&self, plain: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.ids, plain).as_bytes())
    }

    /// What shows that the key is that of a repository.
    pub fn proof(&self, repository: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.proofs, repository).as_bytes()
    }

    /// Seals what a chunk holds. Each chunk has a key of its own, so that no nonce has to be told from all others ever made.
    pub fn seal_chunk(&self, id: &ChunkId, plain: Vec<u8>) -> Result<Vec<u8>, BackupError> {
        seal(&self.chunk_key(id), &id.0, plain)
    }

    /// Opens it.
    pub fn open_chunk(&self, id: &ChunkId, sealed: &[u8]) -> Option<Vec<u8>> {
        open(&self.chunk_key(id), &id.0, sealed)
    }

    fn chunk_key(&self, id: &ChunkId) -> [u8; 32] {
        *blake3::keyed_hash(&self.chunks, &id.0).as_bytes()
    }

    /// Seals the directory of a pack.
    pub fn seal_directory(&self, plain: Vec<u8>) -> Result<Vec<u8>, BackupError> {
        seal(&self.directories, &[], plain)
    }

    /// Opens it.
    pub fn open_directory(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        open(&self.directories, &[], sealed)
    }

    /// Seals a recovery point, bound to its name.
    pub fn seal_point(&self, name: &str, plain: Vec<u8>) -> Result<Vec<u8>, BackupError> {
        seal(&self.points, name.as_bytes(), plain)
    }

    /// Opens it.
    pub fn open_point(&self, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        open(&self.points, name.as_bytes(), sealed)
    }
}

fn key(bytes: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, bytes).ok().map(LessSafeKey::new)
}

fn seal(bytes: &[u8; 32], bound: &[u8], mut plain: Vec<u8>) -> Result<Vec<u8>, BackupError> {
    let nonce: [u8; NONCE_LEN] = random()?;
    let key = key(bytes).ok_or(BackupError::Worker)?;
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound), &mut plain);
    let tag = tag.map_err(|_| BackupError::Worker)?;
    Ok([&nonce[..], &plain, tag.as_ref()].concat())
}

fn open(bytes: &[u8; 32], bound: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut content = rest.to_vec();
    let length = key(bytes)?
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(bound), &mut content)
        .map(|plain| plain.len())
        .ok()?;
    content.truncate(length);
    Some(content)
}
