//! A replica's copy of each disk: the log of writes, the first copy.
//!
//! Each replica has its own image of each writable disk. The primary's [`DiskSet`] changes its images at once and, while a
//! secondary is there, logs each change. The log goes with the checkpoint; when that is committed, the secondary's [`DiskApplier`]
//! does the same to its images, in the same order. Read-only disks are not copied: each host has them, and [`DiskDescription`]s
//! show whether they are the same.
//!
//! # The first copy
//!
//! A new secondary, or one that comes back with disks of some other time, sums up what its images hold ([`SummaryWriter`]); the
//! primary ([`SummaryReader`]) sends the blocks that differ ([`DiskCopy`]) while its guest runs. Images over the same base are
//! compared only where either of them was written to.
//!
//! The secondary's disks are then copies, for this reason:
//!
//! - Every change (write, discard, zeroing) gives its range a content that depends on nothing else. In particular a discarded
//!   range reads as zeros, on both sides; it is not left open. So what a byte is in the end is decided by the last change that covers it.
//! - The stream that the secondary applies consists of the primary's log and nothing else: a block that differs is put into the
//!   log, as a write, under the lock under which it is read, and a guest's change under the lock under which it is done. So the
//!   order of the stream is that of the image, and a block can neither overtake a newer write nor be overtaken by
//!   an older one. A logged write that is older than a block that follows does no harm: the block holds it.
//! - The log is started before the first block is compared. So a byte of the primary's that no change in the stream covers has not been
//!   written since it was compared, and was then what the secondary has: by digest, or because neither side's image holds
//!   anything there and both show the same base.
//!
//! Digests are kept, on both sides, until their blocks are changed, and from one process to the next as long as nobody has written to the disk's files in
//! between (`digests`). For one that is kept the same holds as for one that was just computed: it is forgotten under the lock under which its block is changed, so
//! that a change after the look at it is in the log.
//!
//! Hence, when the guest is paused, whatever is in the log until then is sent, and all of it is applied, the disks are the same. At
//! the end of the blocks the stream tells the secondary to flush, as the guest's own flushes before the log began are not in it.
//!
//! # Lockstep
//!
//! There a secondary's guest writes its disks itself, and no log is sent. It need not wait for its flushes ([`DeferredFlushes`]), but for
//! those before a write.
//!
//! # Failures
//!
//! The guest of a primary never sees that a disk has failed ([`DiskSet::hold_failures`]): its request is held, and the VM goes on where the disk
//! is sound, from a state before that request; or here, once the request succeeds. Nothing of a request that is held is in the log.
//!
//! Where failures are not held, a change that fails, fails the guest's request. Its range may then hold anything, but the
//! same on both sides: the log gets what a look at the range shows. Where that is not possible, or nobody takes the log and it gets
//! too big, the log gets [`DiskOp::Lost`], which no secondary accepts. An error on the secondary ends the
//! secondary, not the primary.
//!
//! # Power failures
//!
//! A secondary's copy is marked ([`CopyMark`]) as incomplete before the first byte of a first copy is written to it, and as consistent when the first
//! checkpoint has been applied to it and everything is on stable storage.
//!
//! On either replica, what a guest wrote after a flush is written after what it wrote before that flush is on stable storage. So each copy is at any
//! time what a disk of a machine without replicas could be after a power failure.

mod applier;
mod backend;
mod blocks;
mod codec;
mod copy;
mod deferred;
mod description;
mod digests;
mod error;
mod log;
mod mark;
mod progress;
mod requests;
mod set;
mod stream;
mod summary;

pub use applier::DiskApplier;
pub use blocks::BLOCK_BYTES;
pub use codec::{PIECE_BYTES_MAX, decode_writes, encode_writes};
pub use copy::DiskCopy;
pub use deferred::DeferredFlushes;
pub use description::{DISKS_MAX, DiskDescription, check_compatible};
pub use error::DiskSyncError;
pub use log::{DiskOp, DiskWrite, WRITE_BYTES_MAX};
pub use mark::{CopyMark, CopyState};
pub use progress::DiskProgress;
pub use requests::{DiskFault, DiskProblem};
pub use set::DiskSet;
pub use stream::LogStream;
pub use summary::{DiskSummary, SUMMARY_PIECE_BYTES_MAX, SummaryReader, SummaryWriter};
