//! virtio-blk: a disk (virtio 1.2, section 5.2).
//!
//! Writes may sit in a cache of the host until the driver asks for a flush; a driver that does not know flushes gets
//! each write flushed.

mod backend;
mod device;
mod metrics;
mod request;
mod state;

pub use backend::BlockBackend;
pub use device::{Block, ID_LEN};
pub use metrics::BlockMetrics;
pub use state::{BlockRestoreError, BlockState};
