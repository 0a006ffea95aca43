//! Recovery points: a state to which a VM can be brought back.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::chunk::{CHUNK_BYTES, ChunkId};
use super::error::BackupError;
use super::key::{hex, random};
use super::pack::PackName;

/// Chunks in a segment of a volume: 1 GiB.
pub const SEGMENT_CHUNKS: usize = 4096;
/// Bytes of a segment.
pub const SEGMENT_BYTES: u64 = (SEGMENT_CHUNKS * CHUNK_BYTES) as u64;
/// Largest volume, in bytes: 64 TiB.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// Most volumes of a point.
pub const VOLUMES_MAX: usize = 64;

/// The name of a recovery point: 16 hexadecimal digits, drawn by lot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PointId(String);

impl PointId {
    /// A new one.
    pub(crate) fn random() -> Result<Self, BackupError> {
        Ok(Self(hex(&random::<8>()?)))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PointId({self})")
    }
}

impl From<PointId> for String {
    fn from(id: PointId) -> Self {
        id.0
    }
}

impl TryFrom<String> for PointId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 16 && text.bytes().all(is_digit) {
            Ok(Self(text))
        } else {
            Err("the name of a recovery point has 16 hexadecimal digits")
        }
    }
}

/// A recovery point, as its file holds it. Fields that a newer version adds are left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// Its name.
    pub id: PointId,
    /// The name of the VM that it is of.
    pub vm: String,
    /// The host that wrote it.
    pub host: String,
    /// When the disks were as they are in it, by the clock of that host, in ms since 1970.
    pub taken_unix_ms: u64,
    /// When it was finished, by the same clock.
    pub finished_unix_ms: u64,
    /// The spec of the VM, as TOML.
    pub spec: String,
    /// What it holds: kernel, initial RAM disk and disks.
    pub volumes: Vec<Volume>,
    /// Bytes that are not zero in all volumes.
    pub data_bytes: u64,
    /// Bytes that this backup has added to the repository.
    pub added_bytes: u64,
    /// The packs that hold its chunks, as of when it was written: what of it is lost with a file that is gone.
    pub packs: Vec<PackName>,
}

/// A disk or a file of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// `kernel`, `initrd`, or `disk` with its number in the spec.
    pub name: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// For each GiB of it the name of the chunk with the names of its chunks.
    pub segments: Vec<ChunkId>,
}

impl Volume {
    /// Chunks of a segment, by its number.
    pub(crate) fn chunks_of(&self, segment: usize) -> usize {
        let left = self.bytes.saturating_sub(segment as u64 * SEGMENT_BYTES);
        left.div_ceil(CHUNK_BYTES as u64).min(SEGMENT_CHUNKS as u64) as usize
    }

    /// Bytes of a chunk, by its number in the volume.
    pub(crate) fn bytes_of(&self, chunk: u64) -> usize {
        self.bytes.saturating_sub(chunk * CHUNK_BYTES as u64).min(CHUNK_BYTES as u64) as usize
    }
}

impl RecoveryPoint {
    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// Whether it makes sense: what reads it then relies on these.
    pub(crate) fn is_sound(&self) -> bool {
        let sound = |volume: &Volume| {
            volume.bytes <= VOLUME_BYTES_MAX
                && volume.segments.len() as u64 == volume.bytes.div_ceil(SEGMENT_BYTES)
                && self.volumes.iter().filter(|other| other.name == volume.name).count() == 1
        };
        self.volumes.len() <= VOLUMES_MAX && self.volumes.iter().all(sound)
    }
}

/// The names in a segment; none if it is not one of so many chunks.
pub(crate) fn segment_ids(plain: &[u8], chunks: usize) -> Option<Vec<ChunkId>> {
    if plain.len() != chunks * 32 {
        return None;
    }
    Some(plain.chunks_exact(32).filter_map(|id| Some(ChunkId(id.try_into().ok()?))).collect())
}
