//! A checkpoint that is being received, and the one that is held.

use std::collections::VecDeque;

use machine::vm::VmState;
use memory::encoding;
use memory::{GuestRam, PAGE_BYTES};
use network::InputPosition;
use protocol::Epoch;

use super::message::{CheckpointEnd, Inbound};
use crate::disk::{DiskSet, DiskSyncError, DiskWrite, decode_writes};
use crate::gate::{GATE_FRAMES_MAX, GatedFrame, InboundFrame};

/// Most bytes of serialized state, far beyond what any VM has.
const STATE_BYTES_MAX: usize = 256 << 20;
/// Most bytes of waiting output in one checkpoint: what a gate holds at most, and its headers.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Most bytes of disk writes in one checkpoint.
const WRITES_BYTES_MAX: u64 = 1 << 30;
/// Longest header of a page record, in bytes, generously.
const RECORD_HEADER_BYTES_MAX: u64 = 64;
/// Most memory that inbound frames take which are kept, in bytes.
const INBOUND_BYTES_MAX: usize = 16 << 20;
/// Frames that are fed to a card at takeover, and their bytes. A card of a guest that does not take them yet holds 256 frames and 1 MiB,
/// some of which may be taken; what does not fit there is lost, and what is not fed can be had from the network end.
const FED_FRAMES_MAX: usize = 128;
const FED_BYTES_MAX: usize = 512 << 10;

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

/// Inbound frames that the primary has passed on and that no checkpoint has consumed yet.
#[derive(Default)]
pub(super) struct InboundStore {
    frames: VecDeque<Inbound>,
    bytes: usize,
}

impl InboundStore {
    /// Keeps a frame if there is room; one that is missing ends what can be fed at takeover, and the network end is asked for the rest.
    pub fn push(&mut self, inbound: Inbound) {
        if self.bytes + memory_bytes(&inbound) <= INBOUND_BYTES_MAX {
            self.bytes += memory_bytes(&inbound);
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
        self.bytes = self.frames.iter().map(memory_bytes).sum();
    }

    /// The frames that follow `positions` without a gap, in the order they came in, as many as a card surely takes; `positions` are moved
    /// along.
    pub fn take_following(&mut self, positions: &mut [InputPosition]) -> Vec<(usize, InboundFrame)> {
        let mut following = Vec::new();
        let mut fed = vec![(0, 0); positions.len()];
        for inbound in std::mem::take(&mut self.frames) {
            let card = inbound.card as usize;
            let (Some(position), Some((frames, bytes))) = (positions.get_mut(card), fed.get_mut(card)) else {
                continue;
            };
            let (next, len) = (inbound.frame.position, inbound.frame.bytes.len());
            let follows = next.end == position.end && position.frames.checked_add(1) == Some(next.frames);
            if follows && *frames < FED_FRAMES_MAX && *bytes + len <= FED_BYTES_MAX {
                *position = next;
                (*frames, *bytes) = (*frames + 1, *bytes + len);
                following.push((card, inbound.frame));
            }
        }
        self.bytes = 0;
        following
    }
}

fn memory_bytes(inbound: &Inbound) -> usize {
    size_of::<Inbound>() + inbound.frame.bytes.len()
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
    fn no_more_is_fed_than_a_card_takes() {
        let mut store = InboundStore::default();
        (1..=1000).for_each(|frames| store.push(inbound(0, 7, frames)));
        let mut positions = [InputPosition { end: 7, frames: 0 }];
        assert_eq!(store.take_following(&mut positions).len(), FED_FRAMES_MAX);
        // The network end is asked for the rest.
        assert_eq!(positions, [InputPosition { end: 7, frames: FED_FRAMES_MAX as u64 }]);
    }

    #[test]
    fn frames_without_content_cost_bounded_memory_too() {
        let mut store = InboundStore::default();
        for frames in 0..2_000_000 {
            let mut empty = inbound(0, 7, frames);
            empty.frame.bytes = Vec::new();
            store.push(empty);
        }
        assert!(store.frames.len() * size_of::<Inbound>() <= INBOUND_BYTES_MAX);
    }

    #[test]
    fn page_records_without_content_cost_bounded_memory_too() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let mut staging = Staging::new(Epoch::new(1));
        let end = (0..1_000_000).find_map(|_| staging.pages(&[], &ram).err());
        assert!(matches!(end, Some(StagingError::TooLong)), "{} pieces were staged", staging.records.len());
    }

    #[test]
    fn positions_that_cannot_go_on_do_no_harm() {
        let mut store = InboundStore::default();
        store.push(inbound(0, 7, u64::MAX));
        store.push(inbound(0, 7, 0));
        let mut positions = [InputPosition { end: 7, frames: u64::MAX }];
        assert!(store.take_following(&mut positions).is_empty());
    }

    #[test]
    fn frames_of_another_network_end_are_not_fed() {
        let mut store = InboundStore::default();
        store.push(inbound(0, 8, 1));
        store.push(inbound(9, 7, 1));
        assert!(store.take_following(&mut [InputPosition { end: 7, frames: 0 }]).is_empty());
    }
}
