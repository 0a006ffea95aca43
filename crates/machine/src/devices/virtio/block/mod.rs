//! virtio-blk: a disk (virtio 1.2, section 5.2).
//!
//! Writes may sit in a cache of the host until the driver asks for a flush; a driver that does not know flushes gets
//! each write flushed.
//!
//! A request is done while the vCPU that notified the device waits. So what the guest finds depends on the time that the host takes for it in
//! no way; only failures of the host are inputs ([`DiskFailure`]).

mod backend;
mod device;
mod metrics;
mod recorded;
mod request;
mod state;

pub use backend::BlockBackend;
pub use device::{Block, ID_LEN};
pub use metrics::BlockMetrics;
pub use recorded::DiskFailure;
pub use state::{BlockRestoreError, BlockState};
