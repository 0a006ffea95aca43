//! The way in: from the machine's run loop to the guest's buffers.

use memory::DmaMemory;
use network::{FRAME_LEN_MAX, FrameOffload, HEADER_LEN};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::device::{Net, RECEIVE_QUEUE};
use super::frame_queue::FrameQueue;
use super::metrics::NetMetrics;
use super::state::FrameState;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::queue::{QueueError, Used, VirtQueue};

/// Destination, source and type: what every Ethernet frame has.
pub(super) const ETHERNET_HEADER_LEN: usize = 14;
/// Position of `num_buffers` in `struct virtio_net_hdr` (virtio 1.2, 5.1.6).
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// It is in the guest's memory.
    Delivered,
    /// The guest has no buffers for it now; it waits, and reaches the guest as soon as it supplies some.
    Waiting,
    /// It is gone; [`super::NetMetrics`] says why.
    Dropped,
}

/// What one attempt to write a frame came to.
enum Attempt {
    /// The driver has it.
    Written,
    /// There are too few buffers; the driver will notify when it adds some.
    NoBuffers,
    /// The frame will never fit what this guest supplies.
    Unfit,
}

/// Frames on their way into the guest.
pub(super) struct Receiver {
    waiting: FrameQueue,
    /// The buffers of one frame; kept for their allocations.
    chains: Vec<Chain>,
    used: Vec<Used>,
}

impl Receiver {
    pub fn new(waiting: FrameQueue) -> Self {
        Self { waiting, chains: Vec::new(), used: Vec::new() }
    }

    pub fn save(&self) -> Vec<FrameState> {
        self.waiting.save()
    }

    pub fn waiting_frames(&self) -> usize {
        self.waiting.len()
    }

    /// Drops what waits, and says how many frames that were.
    pub fn clear(&mut self) -> usize {
        let frames = self.waiting.len();
        self.waiting.clear();
        frames
    }
}

impl Net {
    /// Writes a frame to the guest's buffers, or lets it wait.
    fn deliver(
        &mut self,
        frame: &[u8],
        offload: FrameOffload,
        queue: &mut VirtQueue,
        memory: &DmaMemory,
    ) -> Result<Delivery, QueueError> {
        let sound = (ETHERNET_HEADER_LEN..=FRAME_LEN_MAX).contains(&frame.len()) && offload.check(frame.len()).is_ok();
        if !sound || !self.receive_offloads().allow(offload) {
            self.metrics.rx_dropped_unfit += 1;
            return Ok(Delivery::Dropped);
        }
        let mergeable = self.has_feature(VIRTIO_NET_F_MRG_RXBUF);
        let Receiver { waiting, chains, used } = &mut self.receiver;
        if waiting.is_empty() {
            match write_frame(frame, offload, mergeable, queue, memory, chains, used)? {
                Attempt::Written => {
                    count_written(&mut self.metrics, frame);
                    return Ok(Delivery::Delivered);
                }
                Attempt::Unfit => {
                    self.metrics.rx_dropped_unfit += 1;
                    return Ok(Delivery::Dropped);
                }
                Attempt::NoBuffers => {}
            }
        }
        if !waiting.push(frame, offload) {
            self.metrics.rx_dropped_full += 1;
            return Ok(Delivery::Dropped);
        }
        self.metrics.rx_waited += 1;
        Ok(Delivery::Waiting)
    }

    /// Writes waiting frames to the guest's buffers, as many as fit.
    ///
    /// Only while frames wait does the driver have to notify of buffers, as a notification costs it an exit.
    pub(super) fn deliver_waiting(&mut self, queue: &mut VirtQueue, memory: &DmaMemory) -> Result<(), QueueError> {
        let mergeable = self.has_feature(VIRTIO_NET_F_MRG_RXBUF);
        let Receiver { waiting, chains, used } = &mut self.receiver;
        while let Some((frame, offload)) = waiting.front() {
            match write_frame(frame, offload, mergeable, queue, memory, chains, used)? {
                Attempt::Written => count_written(&mut self.metrics, frame),
                Attempt::Unfit => self.metrics.rx_dropped_unfit += 1,
                Attempt::NoBuffers => break,
            }
            waiting.pop();
        }
        Ok(())
    }
}

fn count_written(metrics: &mut NetMetrics, frame: &[u8]) {
    metrics.rx_frames += 1;
    metrics.rx_bytes += frame.len() as u64;
}

/// Writes header and frame to as many buffers as they need (virtio 1.2, 5.1.6.4), all of which the driver sees at once;
/// to none if there are not enough.
fn write_frame(
    frame: &[u8],
    offload: FrameOffload,
    mergeable: bool,
    queue: &mut VirtQueue,
    memory: &DmaMemory,
    chains: &mut Vec<Chain>,
    used: &mut Vec<Used>,
) -> Result<Attempt, QueueError> {
    let needed = (HEADER_LEN + frame.len()) as u64;
    let buffers_max = if mergeable { queue.size() } else { 1 };
    let (mut count, mut room) = (0u16, 0u64);
    while room < needed {
        if count == buffers_max {
            queue.unpop(count);
            return Ok(Attempt::Unfit);
        }
        if chains.len() <= usize::from(count) {
            chains.push(Chain::default());
        }
        let Some(chain) = chains.get_mut(usize::from(count)) else { return Ok(Attempt::Unfit) };
        if !queue.pop(memory, chain)? {
            // Asked before the buffers go back, the driver notifies of what it adds to them. It may have added some by
            // now, on a machine with several processors.
            if queue.enable_notification(memory)? {
                continue;
            }
            queue.unpop(count);
            return Ok(Attempt::NoBuffers);
        }
        // Each buffer takes some of the frame, and the first one the whole header.
        let least = if count == 0 { HEADER_LEN as u64 } else { 1 };
        if chain.writable_bytes() < least {
            return Err(QueueError::ShortChain);
        }
        count += 1;
        room += chain.writable_bytes();
    }

    let mut header = offload.to_header();
    if let Some(num_buffers) = header.get_mut(NUM_BUFFERS) {
        num_buffers.copy_from_slice(&count.to_le_bytes());
    }
    used.clear();
    let mut rest = frame;
    for (index, chain) in chains.iter().take(usize::from(count)).enumerate() {
        let header = if index == 0 { &header[..] } else { &[] };
        chain.write(memory, 0, header)?;
        let room = chain.writable_bytes() - header.len() as u64;
        let (part, later) = rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        chain.write(memory, header.len() as u64, part)?;
        rest = later;
        used.push(Used { head: chain.head(), written_bytes: (header.len() + part.len()) as u32 });
    }
    queue.complete(memory, used)?;
    Ok(Attempt::Written)
}

impl MmioTransport<Net> {
    /// Hands a frame to the guest. An input of the machine: the run loop decides when.
    pub fn deliver(&mut self, frame: &[u8], offload: FrameOffload) -> Delivery {
        let delivery = self.with_queue(RECEIVE_QUEUE, |net, queue, memory| net.deliver(frame, offload, queue, memory));
        delivery.unwrap_or_else(|| {
            self.device_mut().metrics.rx_dropped_no_driver += 1;
            Delivery::Dropped
        })
    }
}
