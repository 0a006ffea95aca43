//! Why a primary does not do what it is asked for.

use machine::vm::VmError;

use crate::disk::DiskFault;
use crate::driver::pause_queue::VmStopped;

/// Why the VM cannot be paused to do something with it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotPaused {
    /// There is none any more.
    #[error(transparent)]
    Stopped(#[from] VmStopped),
    /// Its thread may wait for a disk.
    #[error("the guest stands still, since disk {} is broken: {}", .0.disk, .0.problem)]
    Halted(DiskFault),
}

/// Why the mode of replication stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum SetModeError {
    /// The two hosts would not compute the same.
    #[error(
        "the secondary could not execute what the primary does: its processor's x87 unit computes differently, or its version of \
         twinvm is another one; the mode stays as it is"
    )]
    Secondary,
    /// Nothing counts the instructions of a processor that is not ours.
    #[error(
        "lockstep needs the soft engine, and the VM runs on kvm: start the VM anew with engine = \"soft\" in its spec"
    )]
    Engine,
    /// Nothing to replicate.
    #[error(transparent)]
    Stopped(#[from] VmStopped),
}

/// Why a planned takeover does not begin.
#[derive(Debug, thiserror::Error)]
pub enum SwitchOverError {
    /// Nobody to hand over to.
    #[error("the VM is not protected: there is no secondary that could take over")]
    NotProtected,
    /// Nothing to hand over.
    #[error(transparent)]
    Stopped(#[from] VmStopped),
    /// Nothing that could be handed over by a request.
    #[error(transparent)]
    NotPaused(#[from] NotPaused),
    /// The last checkpoint could not be taken.
    #[error(transparent)]
    Vm(#[from] VmError),
}
