//! A checkpoint that is being received, and the one that is held.

use std::collections::VecDeque;

use machine::vm::VmState;
use memory::encoding;
use memory::{GuestRam, PAGE_BYTES};
use network::InputPosition;

use super::message::{CheckpointEnd, Inbound};
use crate::disk::{DiskSet, DiskSyncError, DiskWrite, decode_writes};
use crate::gate::{GatedFrame, InboundFrame};
use crate::protocol::Epoch;

/// Most bytes of serialized state, far beyond what any VM has.
const STATE_BYTES_MAX: usize = 256 << 20;
/// Most bytes of waiting output in one checkpoint: what a gate holds at most, and its headers.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Most bytes of disk writes in one checkpoint.
const WRITES_BYTES_MAX: u64 = 1 << 30;
/// Longest header of a page record, in bytes, generously.
const RECORD_HEADER_BYTES_MAX: u64 = 64;
/// Most bytes of inbound frames that are kept.
const INBOUND_BYTES_MAX: usize = 16 << 20;

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
        self.records_bytes += records.len() as u64;
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
        Ok(Complete {
            records: self.records,
            writes: self.writes,
            state: postcard::from_bytes(&self.state)?,
            output: postcard::from_bytes(&self.output)?,
            end,
        })
    }
}

fn append(to: &mut Vec<u8>, piece: &[u8], bytes_max: usize) -> Result<(), StagingError> {
    if to.len() + piece.len() > bytes_max {
        return Err(StagingError::TooLong);
    }
    to.extend_from_slice(piece);
    Ok(())
}

/// Inbound frames that the primary has passed on and that no checkpoint has consumed yet.
#[derive(Default)]
pub(super) struct InboundStore {
    frames: VecDeque<Inbound>,
    bytes: usize,
}

impl InboundStore {
    /// Keeps a frame if there is room; one that is missing ends what can be fed at takeover, and the network end is asked for the rest.
    pub fn push(&mut self, inbound: Inbound) {
        if self.bytes + inbound.frame.bytes.len() <= INBOUND_BYTES_MAX {
            self.bytes += inbound.frame.bytes.len();
            self.frames.push_back(inbound);
        }
    }

    /// Forgets what a checkpoint has consumed.
    pub fn consumed(&mut self, positions: &[InputPosition]) {
        let is_consumed = |inbound: &Inbound| {
            positions.get(inbound.card as usize).is_some_and(|position| {
                inbound.frame.position.end == position.end && inbound.frame.position.frames <= position.frames
            })
        };
        self.frames.retain(|inbound| !is_consumed(inbound));
        self.bytes = self.frames.iter().map(|inbound| inbound.frame.bytes.len()).sum();
    }

    /// The frames that follow `positions` without a gap, in the order they came in; `positions` are moved along.
    pub fn take_following(&mut self, positions: &mut [InputPosition]) -> Vec<(usize, InboundFrame)> {
        let mut following = Vec::new();
        for inbound in std::mem::take(&mut self.frames) {
            let card = inbound.card as usize;
            let Some(position) = positions.get_mut(card) else { continue };
            let next = inbound.frame.position;
            if next.end == position.end && next.frames == position.frames + 1 {
                *position = next;
                following.push((card, inbound.frame));
            }
        }
        self.bytes = 0;
        following
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbound(card: u32, end: u64, frames: u64) -> Inbound {
        let position = InputPosition { end, frames };
        Inbound { card, frame: InboundFrame { position, header: [0; network::HEADER_LEN], bytes: vec![0; 60] } }
    }

    #[test]
    fn frames_that_a_checkpoint_consumed_are_not_fed_again() {
        let mut store = InboundStore::default();
        (1..=5).for_each(|frames| store.push(inbound(0, 7, frames)));
        let mut positions = [InputPosition { end: 7, frames: 3 }];
        store.consumed(&positions);
        let fed = store.take_following(&mut positions);
        assert_eq!(fed.iter().map(|(_, frame)| frame.position.frames).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(positions, [InputPosition { end: 7, frames: 5 }]);
    }

    #[test]
    fn a_gap_ends_what_can_be_fed() {
        let mut store = InboundStore::default();
        [1, 2, 4].into_iter().for_each(|frames| store.push(inbound(0, 7, frames)));
        let mut positions = [InputPosition { end: 7, frames: 0 }];
        assert_eq!(store.take_following(&mut positions).len(), 2);
        assert_eq!(positions, [InputPosition { end: 7, frames: 2 }]);
    }

    #[test]
    fn frames_of_another_network_end_are_not_fed() {
        let mut store = InboundStore::default();
        store.push(inbound(0, 8, 1));
        store.push(inbound(9, 7, 1));
        assert!(store.take_following(&mut [InputPosition { end: 7, frames: 0 }]).is_empty());
    }
}
