//! A descriptor chain taken from a queue, and access to the memory it names.

use memory::{DmaMemory, announce_write};
use serde::{Deserialize, Serialize};
use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress};

use super::queue::QueueError;

/// Longest chain accepted, in descriptors. Virtio 1.2, 2.7.5.3.1 allows no more than the queue's size; drivers that
/// chose a small queue overdo it with indirect tables, so the limit is fixed.
pub const CHAIN_DESCRIPTORS_MAX: usize = 1024;

/// Guest memory that one descriptor names. Whether there is RAM shows when it is accessed.
#[derive(Clone, Copy, Debug)]
struct Segment {
    address: GuestAddress,
    len_bytes: u32,
}

/// A chain that the device has taken and not handed back, as it is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainState {
    /// Index of the first descriptor.
    pub head: u16,
    /// Guest-physical address and length in bytes of what the device may read, piece by piece.
    pub readable: Vec<(u64, u32)>,
    /// The same of what it may write.
    pub writable: Vec<(u64, u32)>,
}

/// A run of segments that is read or written as if it were contiguous.
#[derive(Debug, Default)]
struct Segments {
    list: Vec<Segment>,
    len_bytes: u64,
}

impl Segments {
    fn clear(&mut self) {
        self.list.clear();
        self.len_bytes = 0;
    }

    fn push(&mut self, segment: Segment) {
        self.len_bytes += u64::from(segment.len_bytes);
        self.list.push(segment);
    }

    fn save(&self) -> Vec<(u64, u32)> {
        self.list.iter().map(|segment| (segment.address.raw_value(), segment.len_bytes)).collect()
    }

    fn restore(saved: &[(u64, u32)]) -> Self {
        let mut segments = Self::default();
        for &(address, len_bytes) in saved {
            segments.push(Segment { address: GuestAddress(address), len_bytes });
        }
        segments
    }

    /// Calls `access` with address and length of each piece of the `len` bytes from `offset` on.
    fn for_each_piece(
        &self,
        offset: u64,
        len: usize,
        mut access: impl FnMut(GuestAddress, usize) -> Result<(), QueueError>,
    ) -> Result<(), QueueError> {
        let (mut skip, mut rest) = (offset, len);
        for segment in &self.list {
            if rest == 0 {
                break;
            }
            let segment_len = u64::from(segment.len_bytes);
            if skip >= segment_len {
                skip -= segment_len;
                continue;
            }
            let take = rest.min((segment_len - skip) as usize);
            let address = segment.address.checked_add(skip).ok_or(QueueError::NoRam)?;
            access(address, take)?;
            (skip, rest) = (0, rest - take);
        }
        if rest == 0 { Ok(()) } else { Err(QueueError::ShortChain) }
    }
}

/// A descriptor chain: first what the driver wrote for the device, then what the device may write. Kept between
/// requests for its allocations.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Segments,
    writable: Segments,
}

impl Chain {
    /// Reads the descriptors of a chain. All of them are read before any buffer is written, so a chain that lies in
    /// its own buffers cannot change under the device.
    pub(super) fn fill(&mut self, descriptors: DescriptorChain<&DmaMemory>) -> Result<(), QueueError> {
        self.head = descriptors.head_index();
        self.readable.clear();
        self.writable.clear();
        // The iterator ends early at what it cannot follow: a table or index out of bounds, a nested indirect table, a
        // loop, more than 4 GiB. Then the last descriptor it gave, if any, promised another.
        let mut promised_more = true;
        for (count, descriptor) in descriptors.enumerate() {
            if count == CHAIN_DESCRIPTORS_MAX {
                return Err(QueueError::LongChain);
            }
            let segment = Segment { address: descriptor.addr(), len_bytes: descriptor.len() };
            if descriptor.is_write_only() {
                self.writable.push(segment);
            } else if self.writable.list.is_empty() {
                self.readable.push(segment);
            } else {
                // Virtio 1.2, 2.7.4.2: device-writable descriptors come last.
                return Err(QueueError::BrokenChain);
            }
            promised_more = descriptor.has_next();
        }
        if promised_more { Err(QueueError::BrokenChain) } else { Ok(()) }
    }

    /// A chain as it was saved.
    ///
    /// # Errors
    /// [`QueueError::LongChain`].
    pub fn restore(state: &ChainState) -> Result<Self, QueueError> {
        if state.readable.len().saturating_add(state.writable.len()) > CHAIN_DESCRIPTORS_MAX {
            return Err(QueueError::LongChain);
        }
        let (readable, writable) = (Segments::restore(&state.readable), Segments::restore(&state.writable));
        Ok(Self { head: state.head, readable, writable })
    }

    /// What there is to save of a chain that the device has not handed back.
    pub fn save(&self) -> ChainState {
        ChainState { head: self.head, readable: self.readable.save(), writable: self.writable.save() }
    }

    /// Index of the first descriptor: the chain's name in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read.
    pub fn readable_bytes(&self) -> u64 {
        self.readable.len_bytes
    }

    /// Bytes that the device may write.
    pub fn writable_bytes(&self) -> u64 {
        self.writable.len_bytes
    }

    /// Fills `buf` from the readable part, from byte `offset` of it on.
    ///
    /// # Errors
    /// [`QueueError::ShortChain`] if the part is too short, [`QueueError::NoRam`].
    pub fn read(&self, memory: &DmaMemory, offset: u64, buf: &mut [u8]) -> Result<(), QueueError> {
        let mut rest = &mut *buf;
        self.readable.for_each_piece(offset, rest.len(), |address, len| {
            let (piece, later) = std::mem::take(&mut rest).split_at_mut(len);
            rest = later;
            memory.read_slice(piece, address).map_err(|_| QueueError::NoRam)
        })
    }

    /// Writes `bytes` to the writable part, from byte `offset` of it on. The pages become dirty.
    ///
    /// # Errors
    /// [`QueueError::ShortChain`] if the part is too short, [`QueueError::NoRam`]; some bytes may be written then.
    pub fn write(&self, memory: &DmaMemory, offset: u64, bytes: &[u8]) -> Result<(), QueueError> {
        let mut rest = bytes;
        self.writable.for_each_piece(offset, rest.len(), |address, len| {
            let (piece, later) = rest.split_at(len);
            rest = later;
            announce_write(memory, address, len as u64);
            memory.write_slice(piece, address).map_err(|_| QueueError::NoRam)
        })
    }
}
