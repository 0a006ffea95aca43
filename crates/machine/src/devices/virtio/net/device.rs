//! The network card.

use memory::DmaMemory;
use network::{FrameBackend, ReceiveOffloads};
use spec::MacAddr;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::frame_queue::FrameQueue;
use super::metrics::NetMetrics;
use super::receive::Receiver;
use super::state::{NetRestoreError, NetState};
use super::transmit::Transmitter;
use crate::devices::virtio::device::{Progress, VirtioDevice};
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::queue::{QueueError, VirtQueue};

/// Number of the queue of buffers for frames towards the guest (virtio 1.2, 5.1.2).
pub(super) const RECEIVE_QUEUE: usize = 0;
const QUEUE_SIZE_MAX: u16 = 256;

/// Length of `struct virtio_net_config` up to and including `mtu` (virtio 1.2, 5.1.4).
const CONFIG_LEN: usize = 12;
const LINK_UP: u16 = VIRTIO_NET_S_LINK_UP as u16;

const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_STATUS;

/// What distinguishes one card from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The card's address.
    pub mac: MacAddr,
    /// The network's MTU in bytes, which the guest adopts.
    pub mtu: u16,
}

/// A virtio-net device.
pub struct Net {
    config: NetConfig,
    config_space: [u8; CONFIG_LEN],
    link_up: bool,
    features: u64,
    backend: Box<dyn FrameBackend>,
    pub(super) receiver: Receiver,
    transmitter: Transmitter,
    pub(super) metrics: NetMetrics,
}

impl Net {
    /// A card as after power-on, its link up.
    pub fn new(config: NetConfig, backend: Box<dyn FrameBackend>) -> Self {
        Self::assemble(config, true, 0, backend, FrameQueue::default(), FrameQueue::default())
    }

    /// A card that goes on where `state` was saved. If its driver is ready, the backend is told what it accepts.
    ///
    /// # Errors
    /// [`NetRestoreError`].
    pub fn restore(state: NetState, backend: Box<dyn FrameBackend>) -> Result<Self, NetRestoreError> {
        let config = NetConfig { mac: state.mac, mtu: state.mtu };
        let waiting_rx = FrameQueue::restore(state.waiting_rx)?;
        let waiting_tx = FrameQueue::restore(state.waiting_tx)?;
        let mut net = Self::assemble(config, state.link_up, state.features, backend, waiting_rx, waiting_tx);
        if state.features != 0 {
            net.accept_frames();
        }
        Ok(net)
    }

    fn assemble(
        config: NetConfig,
        link_up: bool,
        features: u64,
        backend: Box<dyn FrameBackend>,
        waiting_rx: FrameQueue,
        waiting_tx: FrameQueue,
    ) -> Self {
        Self {
            config,
            config_space: config_space(config, link_up),
            link_up,
            features,
            backend,
            receiver: Receiver::new(waiting_rx),
            transmitter: Transmitter::new(waiting_tx),
            metrics: NetMetrics::default(),
        }
    }

    /// The backend, to take frames from and to poll.
    pub fn backend_mut(&mut self) -> &mut dyn FrameBackend {
        &mut *self.backend
    }

    /// Whether the guest is shown a carrier.
    pub fn is_link_up(&self) -> bool {
        self.link_up
    }

    /// What the card did in this process.
    pub fn metrics(&self) -> NetMetrics {
        self.metrics
    }

    /// Whether frames wait for the backend to have room: when its descriptor is writable, call
    /// [`Net::retry_transmit`].
    pub fn has_waiting_tx(&self) -> bool {
        self.transmitter.has_waiting()
    }

    /// Frames that wait for the guest to supply buffers; while there are some, more frames are better left with the
    /// backend.
    pub fn waiting_rx_frames(&self) -> usize {
        self.receiver.waiting_frames()
    }

    /// Offers waiting frames to the backend again.
    pub fn retry_transmit(&mut self) {
        self.transmitter.retry(&mut *self.backend, &mut self.metrics);
    }

    pub(super) fn has_feature(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }

    /// What the driver is ready to receive.
    pub(super) fn receive_offloads(&self) -> ReceiveOffloads {
        let checksum = self.has_feature(VIRTIO_NET_F_GUEST_CSUM);
        ReceiveOffloads {
            checksum,
            tso4: checksum && self.has_feature(VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && self.has_feature(VIRTIO_NET_F_GUEST_TSO6),
        }
    }

    fn accept_frames(&mut self) {
        let offloads = self.receive_offloads();
        // A backend that is gone shows as a link that is down; the guest's driver need not wait for it.
        if let Err(error) = self.backend.accept(offloads) {
            tracing::warn!(mac = %self.config.mac, %error, "network backend does not take up reception");
        }
    }
}

impl VirtioDevice for Net {
    type State = NetState;

    const DEVICE_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_NET;
    const QUEUE_SIZES_MAX: &'static [u16] = &[QUEUE_SIZE_MAX, QUEUE_SIZE_MAX];

    fn offered_features(&self) -> u64 {
        FEATURES
    }

    fn config(&self) -> &[u8] {
        &self.config_space
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        self.accept_frames();
    }

    fn process(
        &mut self,
        queue_index: usize,
        queue: &mut VirtQueue,
        memory: &DmaMemory,
    ) -> Result<Progress, QueueError> {
        if queue_index == RECEIVE_QUEUE {
            self.deliver_waiting(queue, memory).map(|()| Progress::Done)
        } else {
            let Self { transmitter, backend, metrics, features, .. } = self;
            transmitter.process(queue, memory, *features, &mut **backend, metrics)
        }
    }

    fn reset(&mut self) {
        self.features = 0;
        self.metrics.rx_dropped_no_driver += self.receiver.clear() as u64;
    }

    fn save(&self) -> NetState {
        NetState {
            mac: self.config.mac,
            mtu: self.config.mtu,
            link_up: self.link_up,
            features: self.features,
            waiting_rx: self.receiver.save(),
            waiting_tx: self.transmitter.save(),
        }
    }
}

impl MmioTransport<Net> {
    /// Shows the guest a carrier, or none. An input of the machine, like a frame.
    pub fn set_link(&mut self, up: bool) {
        let net = self.device_mut();
        if net.link_up != up {
            net.link_up = up;
            net.config_space = config_space(net.config, up);
            self.config_changed();
        }
    }
}

fn config_space(config: NetConfig, link_up: bool) -> [u8; CONFIG_LEN] {
    let [a, b, c, d, e, f] = config.mac.bytes();
    let [s0, s1] = if link_up { LINK_UP } else { 0 }.to_le_bytes();
    let [m0, m1] = config.mtu.to_le_bytes();
    // `max_virtqueue_pairs` lies between: read only with a feature that is not offered.
    [a, b, c, d, e, f, s0, s1, 0, 0, m0, m1]
}
