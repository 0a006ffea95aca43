//! /dev/kvm, for processes that may open it only at their start.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::OnceLock;

use kvm_ioctls::Kvm;

use super::kvm_error;
use crate::engine::EngineError;

static KEPT: OnceLock<File> = OnceLock::new();

/// Opens the device and keeps it open for the life of the process: whoever confines this process afterwards need not leave it the way there.
///
/// # Errors
/// [`EngineError::Kvm`] if it cannot be opened.
pub fn keep_open() -> Result<(), EngineError> {
    if KEPT.get().is_none() {
        let fd = Kvm::open_with_cloexec(true).map_err(kvm_error("open /dev/kvm"))?;
        // SAFETY: the descriptor was just opened, and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        // Another thread may have been faster, which is as good.
        let _ = KEPT.set(file);
    }
    Ok(())
}

/// Opens the device, or takes what [`keep_open`] has opened.
pub(super) fn open() -> Result<Kvm, EngineError> {
    let Some(kept) = KEPT.get() else { return Kvm::new().map_err(kvm_error("open /dev/kvm")) };
    let kept = kept.try_clone().map_err(|source| EngineError::Kvm { what: "open /dev/kvm", source })?;
    // SAFETY: the descriptor is one of the device, and its owner has just given it up.
    Ok(unsafe { Kvm::from_raw_fd(kept.into_raw_fd()) })
}
