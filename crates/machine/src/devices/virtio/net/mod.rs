//! virtio-net: a network card (virtio 1.2, section 5.1).
//!
//! Frames that the guest sends go to the card's [`network::FrameBackend`] at once. Frames for the guest are input: the
//! machine's run loop takes them from the backend and hands them over with
//! [`MmioTransport::deliver`](super::MmioTransport::deliver) at a point of its choice.
//!
//! What the guest can observe does not depend on the backend: a frame that the backend has no room for waits on the
//! host's side, and its buffer goes back to the guest all the same.

mod device;
mod frame_queue;
mod metrics;
mod receive;
mod state;
mod transmit;

pub use device::{Net, NetConfig};
pub use frame_queue::{FRAME_BYTES_MAX, FRAMES_MAX};
pub use metrics::NetMetrics;
pub use receive::Delivery;
pub use state::{FrameState, NetRestoreError, NetState};
