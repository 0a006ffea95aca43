//! The log of what was done to disks.

use std::collections::VecDeque;
use std::mem;

use protocol::WRITES_KEPT_MAX;

/// Most bytes of a disk that one [`DiskOp::Write`] holds.
pub const WRITE_BYTES_MAX: usize = 128 << 10;

/// One change of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskWrite {
    /// Which disk, from 0.
    pub disk: u32,
    /// What was done to it.
    pub op: DiskOp,
}

impl DiskWrite {
    /// About how many bytes of memory it takes.
    pub fn memory_bytes(&self) -> u64 {
        let data = if let DiskOp::Write { data, .. } = &self.op { data.capacity() } else { 0 };
        (mem::size_of::<Self>() + data) as u64
    }
}

/// What was done to a disk. Offsets and lengths are in bytes. Each leaves its range with a content that depends on nothing but the
/// operation itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// The range holds `data`, 1 to [`WRITE_BYTES_MAX`] bytes.
    Write {
        /// Where it begins.
        offset: u64,
        /// The content.
        data: Vec<u8>,
    },
    /// The range is not needed any more: it reads as zeros.
    Discard {
        /// Where it begins.
        offset: u64,
        /// Its length, at least 1.
        length: u64,
    },
    /// The range reads as zeros.
    WriteZeroes {
        /// Where it begins.
        offset: u64,
        /// Its length, at least 1.
        length: u64,
        /// It need not keep its space.
        may_unmap: bool,
    },
    /// Everything before is on stable storage.
    Flush,
    /// The log has a gap here: what was done to the disk is not known. A replica that meets this is to be given up.
    Lost,
}

/// What was done since the log was last taken, in order.
#[derive(Debug, Default)]
pub(super) struct Log {
    writes: Vec<DiskWrite>,
    bytes: u64,
    /// Nothing after a gap is worth its memory.
    has_gap: bool,
}

impl Log {
    pub fn push(&mut self, write: DiskWrite) {
        if self.has_gap {
            return;
        }
        if write.op == DiskOp::Flush && self.writes.last() == Some(&write) {
            return;
        }
        let bytes = write.memory_bytes();
        if self.bytes + bytes > WRITES_KEPT_MAX {
            self.writes = Vec::new();
            self.bytes = 0;
            self.lose(write.disk);
            return;
        }
        self.bytes += bytes;
        self.writes.push(write);
    }

    pub fn lose(&mut self, disk: u32) {
        if !self.has_gap {
            self.has_gap = true;
            self.writes.push(DiskWrite { disk, op: DiskOp::Lost });
        }
    }

    pub fn take(&mut self) -> Vec<DiskWrite> {
        self.bytes = 0;
        mem::take(&mut self.writes)
    }

    /// Puts what was taken back before what came since.
    pub fn put_back(&mut self, taken: VecDeque<DiskWrite>) {
        self.bytes += taken.iter().map(DiskWrite::memory_bytes).sum::<u64>();
        self.writes.splice(..0, taken);
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn len(&self) -> usize {
        self.writes.len()
    }
}
