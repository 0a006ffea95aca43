//! virtio-blk: a disk (virtio 1.2, section 5.2).
//!
//! Writes may sit in a cache of the host until the driver asks for a flush; a driver that does not know flushes gets
//! each write flushed.
//!
//! Which requests make sense (`checked`) and how they are answered is the same for all disks. Who does them is the engine's choice:
//!
//! * *Synchronous*, for the soft engine: a request is done while the vCPU that notified the device waits. So what the guest finds depends on
//!   the time that the host takes for it in no way; only failures of the host are inputs ([`DiskFailure`]).
//! * *Queued*, for KVM: requests are done by threads of the disk's own, several at a time, and no vCPU waits ([`Block::queue_requests`]).
//!   Those under way when the VM is paused are part of its state, and are done again by whoever goes on from there.

mod backend;
mod buffers;
mod checked;
mod device;
mod metrics;
mod operation;
mod queued;
mod recorded;
mod request;
mod state;
mod synchronous;
mod workers;

pub use backend::{BlockBackend, ImageDisk};
pub use device::{Block, ID_LEN};
pub use metrics::BlockMetrics;
pub use recorded::DiskFailure;
pub use state::{BlockRestoreError, BlockState};
