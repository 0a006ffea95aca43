//! Requests to KVM that `kvm_ioctls` does not have (Linux `Documentation/virt/kvm/api.rst`).
#![allow(unsafe_code)]

use std::io;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::engine::EngineError;

ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);

/// Sets IA32_MCG_CAP of a vCPU, and with it the number of its machine-check banks.
pub(super) fn setup_mce(fd: &VcpuFd, mcg_cap: u64) -> Result<(), EngineError> {
    // SAFETY: the kernel reads 8 bytes, which the reference is to, and keeps no pointer.
    let result = unsafe { ioctl_with_ref(fd, KVM_X86_SETUP_MCE(), &mcg_cap) };
    checked(result, "set up machine-check banks")
}

fn checked(result: i32, what: &'static str) -> Result<(), EngineError> {
    if result < 0 { Err(EngineError::Kvm { what, source: io::Error::last_os_error() }) } else { Ok(()) }
}
