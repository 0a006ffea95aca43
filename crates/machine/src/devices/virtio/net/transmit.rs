//! The way out: from the guest's buffers to the backend.

use memory::DmaMemory;
use network::{Checksum, FRAME_LEN_MAX, FrameBackend, FrameOffload, Gso, HEADER_LEN, SendOutcome};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6};

use super::frame_queue::FrameQueue;
use super::metrics::NetMetrics;
use super::receive::ETHERNET_HEADER_LEN;
use super::state::FrameState;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::device::Progress;
use crate::devices::virtio::queue::{QueueError, VirtQueue};

/// Takes frames from the guest and sees to it that they reach the backend in order.
pub(super) struct Transmitter {
    waiting: FrameQueue,
    chain: Chain,
    /// [`FRAME_LEN_MAX`] bytes.
    frame: Box<[u8]>,
}

impl Transmitter {
    pub fn new(waiting: FrameQueue) -> Self {
        Self { waiting, chain: Chain::default(), frame: vec![0; FRAME_LEN_MAX].into() }
    }

    pub fn save(&self) -> Vec<FrameState> {
        self.waiting.save()
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn process(
        &mut self,
        queue: &mut VirtQueue,
        memory: &DmaMemory,
        features: u64,
        backend: &mut dyn FrameBackend,
        metrics: &mut NetMetrics,
    ) -> Result<Progress, QueueError> {
        let Self { waiting, chain, frame, .. } = self;
        queue.serve(memory, chain, |chain| {
            match read_frame(chain, memory, features, frame) {
                Some((frame, offload)) => transmit(frame, offload, waiting, backend, metrics),
                None => metrics.tx_dropped_malformed += 1,
            }
            Ok(0)
        })
    }

    pub fn retry(&mut self, backend: &mut dyn FrameBackend, metrics: &mut NetMetrics) {
        while let Some((frame, offload)) = self.waiting.front() {
            if !offer(frame, offload, backend, metrics) {
                break;
            }
            self.waiting.pop();
        }
    }
}

/// The frame that a chain holds (virtio 1.2, 5.1.6.2), if it holds one that this driver may send.
fn read_frame<'a>(
    chain: &Chain,
    memory: &DmaMemory,
    features: u64,
    buffer: &'a mut [u8],
) -> Option<(&'a [u8], FrameOffload)> {
    let len = usize::try_from(chain.readable_bytes()).ok()?.checked_sub(HEADER_LEN)?;
    let frame = buffer.get_mut(..len).filter(|frame| frame.len() >= ETHERNET_HEADER_LEN)?;
    let mut header = [0; HEADER_LEN];
    chain.read(memory, 0, &mut header).ok()?;
    chain.read(memory, HEADER_LEN as u64, frame).ok()?;
    let mut offload = FrameOffload::from_header(&header).ok()?;
    // A guest's word for a checksum is worth nothing to others.
    if offload.checksum == Checksum::Verified {
        offload.checksum = Checksum::Complete;
    }
    offload.check(len).ok()?;
    let has = |bit: u32| features & 1 << bit != 0;
    let checksum_allowed = offload.checksum == Checksum::Complete || has(VIRTIO_NET_F_CSUM);
    let gso_allowed = match offload.gso {
        Gso::None => true,
        Gso::TcpV4(_) => has(VIRTIO_NET_F_HOST_TSO4),
        Gso::TcpV6(_) => has(VIRTIO_NET_F_HOST_TSO6),
    };
    (checksum_allowed && gso_allowed).then_some((&*frame, offload))
}

fn transmit(
    frame: &[u8],
    offload: FrameOffload,
    waiting: &mut FrameQueue,
    backend: &mut dyn FrameBackend,
    metrics: &mut NetMetrics,
) {
    if waiting.is_empty() && offer(frame, offload, backend, metrics) {
        return;
    }
    if waiting.push(frame, offload) {
        metrics.tx_waited += 1;
    } else {
        metrics.tx_dropped_full += 1;
    }
}

/// Offers a frame to the backend; false if it has to wait.
fn offer(frame: &[u8], offload: FrameOffload, backend: &mut dyn FrameBackend, metrics: &mut NetMetrics) -> bool {
    match backend.send(frame, offload) {
        Ok(SendOutcome::Sent) => {
            metrics.tx_frames += 1;
            metrics.tx_bytes += frame.len() as u64;
        }
        Ok(SendOutcome::Full) => return false,
        Err(error) => {
            tracing::debug!(%error, "frame not sent");
            metrics.tx_dropped_refused += 1;
        }
    }
    true
}
