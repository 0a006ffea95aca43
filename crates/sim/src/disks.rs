//! [`Disks`]: a host's copy of the VM's disk, the cache in front of it, and what is noted of it.

use std::time::Duration;

use protocol::{DiskCopy, DiskHealth, Generation};

use crate::history::{BLOCKS, Content, DiskOp, StateId};
use crate::random::Random;
use crate::time::Nanoseconds;

/// Whatever a disk holds that nobody has written.
pub(crate) const EMPTY: StateId = StateId::MAX;

/// The disk of a host, and whether it works.
#[derive(Clone, Debug)]
pub(crate) struct Disks {
    pub broken_since: Nanoseconds,
    pub broken_until: Nanoseconds,
    /// Requests do not fail, but do not end.
    pub hang: bool,
    /// What a reader sees: for each block the state in which it was written.
    pub blocks: Content,
    /// What a power failure leaves in any case.
    stable: Content,
    /// Written since the last flush, in order. Any part of it may be on the disk.
    cached: Vec<(u8, StateId)>,
    /// The guest wants a flush, which comes before the next write.
    is_flush_asked: bool,
    /// What is noted of it, on stable storage.
    pub noted: DiskCopy,
}

impl Disks {
    /// The disk of the VM before it has run.
    pub fn whole(first: StateId) -> Self {
        let noted = DiskCopy::Consistent { generation: Generation::NONE };
        Self { blocks: [first; BLOCKS], stable: [first; BLOCKS], noted, ..Self::empty() }
    }

    /// One that was just made, for a copy.
    pub fn empty() -> Self {
        Self {
            broken_since: 0,
            broken_until: 0,
            hang: false,
            blocks: [EMPTY; BLOCKS],
            stable: [EMPTY; BLOCKS],
            cached: Vec::new(),
            is_flush_asked: false,
            noted: DiskCopy::Incomplete { generation: Generation::NONE },
        }
    }

    /// What it holds is deleted.
    pub fn delete(&mut self) {
        let (broken_since, broken_until, hang) = (self.broken_since, self.broken_until, self.hang);
        *self = Self { broken_since, broken_until, hang, ..Self::empty() };
    }

    pub fn are_broken(&self, now: Nanoseconds) -> bool {
        self.broken_until > now
    }

    pub fn health(&self, now: Nanoseconds) -> DiskHealth {
        let (is_broken, waiting) = (self.are_broken(now), Duration::from_nanos(now - self.broken_since.min(now)));
        DiskHealth {
            has_failed: is_broken && !self.hang,
            waiting: if is_broken && self.hang { waiting } else { Duration::ZERO },
        }
    }

    /// Writes a block, with nothing else in mind.
    pub fn write(&mut self, block: u8, state: StateId) {
        self.blocks[usize::from(block)] = state;
        self.cached.push((block, state));
    }

    /// Brings everything to stable storage.
    pub fn flush(&mut self) {
        self.stable = self.blocks;
        self.cached.clear();
        self.is_flush_asked = false;
    }

    /// What the guest does in its own process: its flush is over when it goes on.
    pub fn does(&mut self, state: StateId, op: DiskOp) {
        match op {
            DiskOp::Write(block) => self.write(block, state),
            DiskOp::Flush => self.flush(),
        }
    }

    /// What the guest did elsewhere: as `replication::disk::DiskApplier`, a flush comes before the next write at the latest. `keeps_order`:
    /// that is so.
    pub fn apply(&mut self, state: StateId, op: DiskOp, keeps_order: bool) {
        match op {
            DiskOp::Flush => self.is_flush_asked = true,
            DiskOp::Write(block) => {
                if self.is_flush_asked && keeps_order {
                    self.flush();
                }
                self.write(block, state);
            }
        }
    }

    /// Makes up for a flush that was put off.
    pub fn settle(&mut self) {
        if self.is_flush_asked {
            self.flush();
        }
    }

    /// Power is lost, and with it any part of what was not flushed.
    pub fn lose_power(&mut self, random: &mut Random) {
        for (block, state) in std::mem::take(&mut self.cached) {
            if random.chance(50) {
                self.stable[usize::from(block)] = state;
            }
        }
        self.blocks = self.stable;
        self.is_flush_asked = false;
    }
}
