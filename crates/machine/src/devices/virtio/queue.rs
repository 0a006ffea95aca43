//! A split virtqueue (virtio 1.2, section 2.7) as devices use it.

use std::num::Wrapping;
use std::ops::ControlFlow;
use std::sync::atomic::{Ordering, fence};

use memory::{DmaMemory, announce_write};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{CHAIN_DESCRIPTORS_MAX, Chain};
use super::device::Progress;

/// Bytes of `flags` and `idx`, with which both rings start.
const RING_HEADER_BYTES: u64 = 4;
/// Bytes of an entry of the available ring.
const AVAIL_ENTRY_BYTES: u64 = 2;
/// Bytes of an entry of the used ring.
const USED_ENTRY_BYTES: u64 = 8;

/// Buffer bytes after which a device interrupts its work on a queue, so that a vCPU does not stay away for long: 8 MiB.
const WORK_BYTES_MAX: u64 = 8 << 20;

/// Why a queue cannot be used, or a buffer cannot be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The size is 0, no power of 2, or larger than the device allows.
    #[error("queue size {0} is not a power of 2 within the device's limit")]
    Size(u16),
    /// A ring is misaligned.
    #[error("queue rings are misaligned")]
    Alignment,
    /// A ring does not lie in RAM.
    #[error("queue rings are not in RAM")]
    RingsOutsideRam,
    /// The available ring holds more new entries than the queue has.
    #[error("available ring holds more entries than the queue")]
    AvailIndex,
    /// A descriptor chain does not end, leaves its table, nests indirect tables or mixes directions.
    #[error("malformed descriptor chain")]
    BrokenChain,
    /// A descriptor chain is longer than [`CHAIN_DESCRIPTORS_MAX`].
    #[error("descriptor chain of more than {CHAIN_DESCRIPTORS_MAX} descriptors")]
    LongChain,
    /// The buffers of a chain are too short for its request.
    #[error("buffers too short for the request")]
    ShortChain,
    /// A buffer does not lie in RAM.
    #[error("buffer not in RAM")]
    NoRam,
    /// The machine's entropy source failed; the guest must not go on as if it had got randomness.
    #[error("no entropy to be had")]
    NoEntropy,
}

/// What the driver writes about a queue before it makes it ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the available ring.
    pub driver_area: u64,
    /// Guest-physical address of the used ring.
    pub device_area: u64,
}

/// How far the device got in the rings of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingPositions {
    /// Next entry of the available ring, modulo 2^16.
    pub next_avail: u16,
    /// Next entry of the used ring, modulo 2^16.
    pub next_used: u16,
}

/// A queue's saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// What the driver wrote.
    pub setup: QueueSetup,
    /// Present when the queue is ready.
    pub positions: Option<RingPositions>,
}

/// A chain that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// [`Chain::head`].
    pub head: u16,
    /// Bytes that the device wrote, from the start of the writable part.
    pub written_bytes: u32,
}

/// A queue that the driver has made ready.
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
    event_idx: bool,
    /// Chains completed since [`VirtQueue::take_interrupt`] last decided: 0 whenever no device is at work.
    unsignalled: Wrapping<u16>,
}

impl VirtQueue {
    /// A queue that lies in RAM as `setup` says. `event_idx`: `VIRTIO_F_EVENT_IDX` was negotiated.
    ///
    /// # Errors
    /// [`QueueError::Size`], [`QueueError::Alignment`], [`QueueError::RingsOutsideRam`].
    pub fn new(
        setup: &QueueSetup,
        positions: RingPositions,
        size_max: u16,
        event_idx: bool,
        memory: &DmaMemory,
    ) -> Result<Self, QueueError> {
        let state = virtio_queue::QueueState {
            max_size: size_max,
            next_avail: positions.next_avail,
            next_used: positions.next_used,
            event_idx_enabled: event_idx,
            size: setup.size,
            ready: true,
            desc_table: setup.descriptor_table,
            avail_ring: setup.driver_area,
            used_ring: setup.device_area,
        };
        let queue = Queue::try_from(state).map_err(|error| match error {
            virtio_queue::Error::InvalidSize | virtio_queue::Error::InvalidMaxSize => QueueError::Size(setup.size),
            _ => QueueError::Alignment,
        })?;
        // The library takes address 0 of the available ring for "not set up".
        if setup.driver_area == 0 || !queue.is_valid(memory) {
            return Err(QueueError::RingsOutsideRam);
        }
        Ok(Self { queue, event_idx, unsignalled: Wrapping(0) })
    }

    /// Number of descriptors, which is also how many chains one notification may cost.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// How far the device got.
    pub fn positions(&self) -> RingPositions {
        RingPositions { next_avail: self.queue.next_avail(), next_used: self.queue.next_used() }
    }

    /// Takes the next available chain into `chain`; false if there is none.
    ///
    /// # Errors
    /// When the ring or the chain is malformed.
    pub fn pop(&mut self, memory: &DmaMemory, chain: &mut Chain) -> Result<bool, QueueError> {
        let mut available = self.queue.iter(memory).map_err(|error| match error {
            virtio_queue::Error::InvalidAvailRingIndex => QueueError::AvailIndex,
            _ => QueueError::RingsOutsideRam,
        })?;
        match available.next() {
            Some(descriptors) => chain.fill(descriptors).map(|()| true),
            None => Ok(false),
        }
    }

    /// Takes chain after chain, lets `handle` do what it asks for (and say how many bytes it wrote to it), and hands it
    /// back, up to the limits of [`Progress::Unfinished`].
    ///
    /// # Errors
    /// When the queue is malformed, or what `handle` returns.
    pub fn serve(
        &mut self,
        memory: &DmaMemory,
        chain: &mut Chain,
        mut handle: impl FnMut(&Chain) -> Result<u32, QueueError>,
    ) -> Result<Progress, QueueError> {
        self.serve_until(memory, chain, |chain| handle(chain).map(ControlFlow::Continue))
    }

    /// As [`VirtQueue::serve`]; `handle` can also ask to leave the rest of the queue for later, by [`ControlFlow::Break`].
    ///
    /// # Errors
    /// When the queue is malformed, or what `handle` returns.
    pub fn serve_until(
        &mut self,
        memory: &DmaMemory,
        chain: &mut Chain,
        mut handle: impl FnMut(&Chain) -> Result<ControlFlow<u32, u32>, QueueError>,
    ) -> Result<Progress, QueueError> {
        let (mut chains, mut bytes, mut is_enough) = (0, 0u64, false);
        loop {
            if is_enough || chains == self.size() || bytes >= WORK_BYTES_MAX {
                return Ok(if self.enable_notification(memory)? { Progress::Unfinished } else { Progress::Done });
            }
            if self.pop(memory, chain)? {
                let handled = handle(chain)?;
                is_enough = handled.is_break();
                let (ControlFlow::Continue(written_bytes) | ControlFlow::Break(written_bytes)) = handled;
                self.complete(memory, &[Used { head: chain.head(), written_bytes }])?;
                chains += 1;
                bytes = bytes.saturating_add(chain.readable_bytes()).saturating_add(chain.writable_bytes());
            } else if !self.enable_notification(memory)? {
                return Ok(Progress::Done);
            }
        }
    }

    /// Makes the last `count` chains popped, none of which was completed, available again.
    pub fn unpop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Hands chains back to the driver, which sees all of them at once.
    ///
    /// # Errors
    /// [`QueueError::BrokenChain`] for a head that is no descriptor, [`QueueError::RingsOutsideRam`].
    pub fn complete(&mut self, memory: &DmaMemory, used: &[Used]) -> Result<(), QueueError> {
        let (ring, size) = (self.queue.used_ring(), self.queue.size());
        let mut next = Wrapping(self.queue.next_used());
        self.announce_used_ring(memory);
        for entry in used {
            if entry.head >= size {
                return Err(QueueError::BrokenChain);
            }
            let slot = u64::from(next.0.checked_rem(size).ok_or(QueueError::Size(size))?);
            // `struct virtq_used_elem`: id, then len.
            let element = u64::from(entry.head) | u64::from(entry.written_bytes) << 32;
            memory
                .write_obj(element.to_le(), offset(ring, RING_HEADER_BYTES + slot * USED_ENTRY_BYTES)?)
                .map_err(|_| QueueError::RingsOutsideRam)?;
            next += 1;
            self.unsignalled += 1;
        }
        self.queue.set_next_used(next.0);
        memory.store(next.0.to_le(), offset(ring, 2)?, Ordering::Release).map_err(|_| QueueError::RingsOutsideRam)
    }

    /// Says that the used ring is about to be written to, with what follows it (virtio 1.2, 2.7.8).
    fn announce_used_ring(&self, memory: &DmaMemory) {
        let length = RING_HEADER_BYTES + u64::from(self.queue.size()) * USED_ENTRY_BYTES + 2;
        announce_write(memory, GuestAddress(self.queue.used_ring()), length);
    }

    /// Asks the driver to notify of what it adds from now on; true if it has already added something.
    ///
    /// # Errors
    /// [`QueueError::RingsOutsideRam`].
    pub fn enable_notification(&mut self, memory: &DmaMemory) -> Result<bool, QueueError> {
        self.announce_used_ring(memory);
        self.queue.enable_notification(memory).map_err(|_| QueueError::RingsOutsideRam)
    }

    /// Whether the driver wants an interrupt for the chains completed since the last call (virtio 1.2, 2.7.7.2).
    ///
    /// # Errors
    /// [`QueueError::RingsOutsideRam`].
    pub(super) fn take_interrupt(&mut self, memory: &DmaMemory) -> Result<bool, QueueError> {
        let completed = std::mem::take(&mut self.unsignalled);
        if completed.0 == 0 {
            return Ok(false);
        }
        // The driver writes what it wants and then reads `idx`; the device wrote `idx` and now reads what is wanted.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        let field = |at| {
            let value = memory.load::<u16>(offset(ring, at)?, Ordering::Relaxed);
            value.map(u16::from_le).map_err(|_| QueueError::RingsOutsideRam)
        };
        if !self.event_idx {
            return Ok(u32::from(field(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let used_event = field(RING_HEADER_BYTES + u64::from(self.queue.size()) * AVAIL_ENTRY_BYTES)?;
        Ok(Wrapping(self.queue.next_used()) - Wrapping(used_event) - Wrapping(1) < completed)
    }
}

fn offset(base: u64, bytes: u64) -> Result<GuestAddress, QueueError> {
    base.checked_add(bytes).map(GuestAddress).ok_or(QueueError::RingsOutsideRam)
}
