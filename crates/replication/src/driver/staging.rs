//! A checkpoint that is being received, and the one that is held.

use machine::vm::VmState;
use memory::encoding;
use memory::{GuestRam, PAGE_BYTES};
use protocol::Epoch;

use super::message::CheckpointEnd;
use crate::disk::{DiskSet, DiskSyncError, DiskWrite, decode_writes};
use crate::gate::{GATE_FRAMES_MAX, GatedFrame};

/// Most bytes of serialized state, far beyond what any VM has.
const STATE_BYTES_MAX: usize = 256 << 20;
/// Most bytes of waiting output in one checkpoint: what a gate holds at most, and its headers.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Most bytes of disk writes in one checkpoint.
const WRITES_BYTES_MAX: u64 = 1 << 30;
/// Longest header of a page record, in bytes, generously.
const RECORD_HEADER_BYTES_MAX: u64 = 64;
/// Why what the primary sent cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StagingError {
    #[error("a checkpoint is longer than the VM")]
    TooLong,
    #[error("a checkpoint is not complete: {0}")]
    Incomplete(&'static str),
    #[error("page records: {0}")]
    Pages(#[from] encoding::EncodingError),
    #[error("disk writes: {0}")]
    Disk(#[from] DiskSyncError),
    #[error("serialized content: {0}")]
    Serialized(#[from] postcard::Error),
}

/// A checkpoint on its way.
#[derive(Default)]
pub(super) struct Staging {
    epoch: Epoch,
    records: Vec<Vec<u8>>,
    records_bytes: u64,
    pages: u64,
    writes: Vec<DiskWrite>,
    writes_bytes: u64,
    state: Vec<u8>,
    output: Vec<u8>,
}

/// A checkpoint that is complete and checked, and not applied yet.
pub(super) struct Complete {
    pub end: CheckpointEnd,
    pub records: Vec<Vec<u8>>,
    pub writes: Vec<DiskWrite>,
    pub state: VmState,
    pub output: Vec<GatedFrame>,
}

impl Staging {
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, ..Self::default() }
    }

    /// Page records; checked here, so that applying them cannot fail half-way.
    pub fn pages(&mut self, records: &[u8], ram: &GuestRam) -> Result<(), StagingError> {
        self.records_bytes += records.len() as u64 + size_of::<Vec<u8>>() as u64;
        if self.records_bytes > ram.pages() * (PAGE_BYTES + RECORD_HEADER_BYTES_MAX) {
            return Err(StagingError::TooLong);
        }
        self.pages += encoding::check(records, ram.pages())? as u64;
        self.records.push(records.to_vec());
        Ok(())
    }

    pub fn writes(&mut self, piece: &[u8], disks: &DiskSet) -> Result<(), StagingError> {
        let writes = decode_writes(piece, disks)?;
        self.writes_bytes += writes.iter().map(DiskWrite::memory_bytes).sum::<u64>();
        if self.writes_bytes > WRITES_BYTES_MAX {
            return Err(StagingError::TooLong);
        }
        self.writes.extend(writes);
        Ok(())
    }

    pub fn state(&mut self, piece: &[u8]) -> Result<(), StagingError> {
        append(&mut self.state, piece, STATE_BYTES_MAX)
    }

    pub fn output(&mut self, piece: &[u8]) -> Result<(), StagingError> {
        append(&mut self.output, piece, OUTPUT_BYTES_MAX)
    }

    /// All of it is there, says the primary.
    pub fn finish(self, end: CheckpointEnd) -> Result<Complete, StagingError> {
        let incomplete = |what| Err(StagingError::Incomplete(what));
        if end.epoch != self.epoch {
            return incomplete("its epoch");
        }
        if end.pages != self.pages {
            return incomplete("its pages");
        }
        if end.writes != self.writes.len() as u64 {
            return incomplete("its disk writes");
        }
        if end.state_bytes != self.state.len() as u64 || end.output_bytes != self.output.len() as u64 {
            return incomplete("its state");
        }
        let output: Vec<GatedFrame> = postcard::from_bytes(&self.output)?;
        if output.len() > GATE_FRAMES_MAX {
            return Err(StagingError::TooLong);
        }
        let state = postcard::from_bytes(&self.state)?;
        Ok(Complete { records: self.records, writes: self.writes, state, output, end })
    }
}

fn append(to: &mut Vec<u8>, piece: &[u8], bytes_max: usize) -> Result<(), StagingError> {
    if to.len() + piece.len() > bytes_max {
        return Err(StagingError::TooLong);
    }
    to.extend_from_slice(piece);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_records_without_content_cost_bounded_memory_too() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let mut staging = Staging::new(Epoch::new(1));
        let end = (0..1_000_000).find_map(|_| staging.pages(&[], &ram).err());
        assert!(matches!(end, Some(StagingError::TooLong)), "{} pieces were staged", staging.records.len());
    }
}
