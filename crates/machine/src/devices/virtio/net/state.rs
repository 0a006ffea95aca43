//! Saved state of virtio-net.

use network::{HEADER_LEN, OffloadError};
use serde::{Deserialize, Serialize};
use spec::MacAddr;

/// What is saved of a [`super::Net`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The card's address.
    pub mac: MacAddr,
    /// The network's MTU, in bytes.
    pub mtu: u16,
    /// Whether the guest sees a carrier.
    pub link_up: bool,
    /// Features in use, 0 while no driver is ready.
    pub features: u64,
    /// Frames that wait for the guest to supply buffers.
    pub waiting_rx: Vec<FrameState>,
    /// Frames that the guest has sent and the backend has not taken.
    pub waiting_tx: Vec<FrameState>,
}

/// A waiting frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameState {
    /// Its offloads, as a `virtio_net_hdr`.
    pub header: [u8; HEADER_LEN],
    /// The frame.
    pub bytes: Vec<u8>,
}

/// Why a card cannot be built from a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetRestoreError {
    /// More waits than a card lets wait, or a frame is longer than any.
    #[error("saved state holds more waiting frames than a network card can")]
    TooManyFrames,
    /// A waiting frame's offloads make no sense.
    #[error("saved state of a waiting frame: {0}")]
    Offload(#[from] OffloadError),
}
