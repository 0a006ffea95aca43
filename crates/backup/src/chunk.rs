//! Chunks: what disks are split into, each kept once however often it occurs.

use std::fmt;

use serde::{Deserialize, Serialize};
use zstd::bulk::{Compressor, Decompressor};

use super::error::BackupError;
use super::key::{from_hex, hex};
use super::seal::{Keys, SEALED_MORE_BYTES};

/// Bytes of a disk in one chunk; the last one of a disk may have less. A smaller chunk makes less of a change of 4 KiB, and more names to keep: those of
/// 64 GiB take 8 MiB.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Longest chunk in a pack, sealed, in bytes: what does not get shorter by compression is kept as it is.
pub const RECORD_BYTES_MAX: usize = 1 + CHUNK_BYTES + SEALED_MORE_BYTES;
/// How hard zstd tries: beyond this level, its speed halves for a few percent of space.
const LEVEL: i32 = 3;

/// The content follows as it is.
const PLAIN: u8 = 0;
/// The content follows as a frame of zstd.
const ZSTD: u8 = 1;

/// The name of a chunk, made from its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChunkId(pub(crate) [u8; 32]);

impl ChunkId {
    /// Stands for zeros, of which nothing is kept.
    pub const ZEROS: Self = Self([0; 32]);
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

impl From<ChunkId> for String {
    fn from(id: ChunkId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ChunkId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        from_hex(&text).map(Self).ok_or("the name of a chunk has 64 hexadecimal digits")
    }
}

/// Compresses and encrypts chunks.
pub struct Sealer(Compressor<'static>);

impl Sealer {
    /// One for a thread.
    pub fn new() -> Result<Self, BackupError> {
        Compressor::new(LEVEL).map(Self).map_err(|_| BackupError::Worker)
    }

    /// A chunk as it is kept.
    pub fn seal(&mut self, keys: &Keys, id: &ChunkId, plain: &[u8]) -> Result<Vec<u8>, BackupError> {
        let mut content = vec![0; plain.len() + 1];
        let room = content.get_mut(1..).unwrap_or_default();
        // Less than what it is, or it does not fit.
        match self.0.compress_to_buffer(plain, room) {
            Ok(length) if length < plain.len() => {
                content.truncate(1 + length);
                content.splice(..1, [ZSTD]);
            }
            _ => {
                room.copy_from_slice(plain);
                content.splice(..1, [PLAIN]);
            }
        }
        keys.seal_chunk(id, content)
    }
}

/// Decrypts and decompresses chunks.
pub struct Opener(Decompressor<'static>);

impl Opener {
    /// One for a thread.
    pub fn new() -> Result<Self, BackupError> {
        Decompressor::new().map(Self).map_err(|_| BackupError::Worker)
    }

    /// What a chunk holds; none if that is not what was kept under this name.
    pub fn open(&mut self, keys: &Keys, id: &ChunkId, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut content = keys.open_chunk(id, sealed)?;
        let plain = match *content.first()? {
            PLAIN => {
                content.remove(0);
                content
            }
            ZSTD => self.0.decompress(content.get(1..)?, CHUNK_BYTES).ok()?,
            _ => return None,
        };
        (keys.id(&plain) == *id).then_some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::RepositoryKey;

    #[test]
    fn chunks_come_back_and_damage_is_noticed() {
        let keys = Keys::of(&RepositoryKey::random().unwrap());
        let (mut sealer, mut opener) = (Sealer::new().unwrap(), Opener::new().unwrap());
        let noise: Vec<u8> =
            (0..CHUNK_BYTES as u64).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..1].to_vec()).collect();
        for plain in [vec![], vec![7], vec![7; CHUNK_BYTES], noise] {
            let id = keys.id(&plain);
            let sealed = sealer.seal(&keys, &id, &plain).unwrap();
            assert!(sealed.len() <= RECORD_BYTES_MAX);
            assert_eq!(opener.open(&keys, &id, &sealed).unwrap(), plain);
            for at in [0, SEALED_MORE_BYTES / 2, sealed.len() - 1] {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1;
                assert!(opener.open(&keys, &id, &damaged).is_none());
            }
            assert!(opener.open(&keys, &keys.id(b"other"), &sealed).is_none());
            assert!(opener.open(&keys, &id, &sealed[..sealed.len() - 1]).is_none());
        }
    }

    /// Whoever has the key could have written it: it is refused without memory for it.
    #[test]
    fn what_would_be_longer_than_a_chunk_is_refused() {
        let keys = Keys::of(&RepositoryKey::random().unwrap());
        let plain = vec![0; 64 * CHUNK_BYTES];
        let mut content = vec![ZSTD];
        content.extend(zstd::bulk::compress(&plain, 1).unwrap());
        let id = keys.id(&plain);
        let sealed = keys.seal_chunk(&id, content).unwrap();
        assert!(Opener::new().unwrap().open(&keys, &id, &sealed).is_none());
    }
}
