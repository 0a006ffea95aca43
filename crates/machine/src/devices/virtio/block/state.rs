//! Saved state of virtio-blk.

use serde::{Deserialize, Serialize};

use super::device::ID_LEN;
use crate::devices::virtio::chain::ChainState;
use crate::devices::virtio::queue::QueueError;

/// What is saved of a [`super::Block`]. What is on the disk is its backend's business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Capacity that the guest sees, in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// The disk's identity, padded with zeros.
    pub id: [u8; ID_LEN],
    /// Features in use, 0 while no driver is ready.
    pub features: u64,
    /// Requests taken from the queue and not answered, in the order in which they were taken. Whoever goes on from here does them again:
    /// each of them leaves the same on the disk if it is done twice, and a driver leaves their buffers alone.
    pub in_flight: Vec<ChainState>,
}

/// Why a disk cannot be built from a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockRestoreError {
    /// More requests are under way than the queue has room for.
    #[error("saved state holds {0} requests under way, more than the disk's queue can")]
    TooManyRequests(usize),
    /// A request under way is none.
    #[error("saved state of a request under way: {0}")]
    Request(#[from] QueueError),
    /// The image has another size than the guest's disk.
    #[error("disk image has {found} sectors, but the guest's disk has {saved}")]
    Capacity {
        /// In the state.
        saved: u64,
        /// Of the backend.
        found: u64,
    },
    /// The guest may write, but the image is read-only.
    #[error("disk image is read-only, but the guest's disk is not")]
    ReadOnly,
}
