//! Requests to KVM that `kvm_ioctls` does not have (Linux `Documentation/virt/kvm/api.rst`).
#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::engine::EngineError;

ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Sets IA32_MCG_CAP of a vCPU, and with it the number of its machine-check banks.
pub(super) fn setup_mce(fd: &VcpuFd, mcg_cap: u64) -> Result<(), EngineError> {
    // SAFETY: the kernel reads 8 bytes, which the reference is to, and keeps no pointer.
    let result = unsafe { ioctl_with_ref(fd, KVM_X86_SETUP_MCE(), &mcg_cap) };
    checked(result, "set up machine-check banks")
}

/// What is added to the host's time-stamp counter, after scaling, for a vCPU's.
pub(super) fn tsc_offset(fd: &VcpuFd) -> Result<u64, EngineError> {
    let mut offset = 0u64;
    let attribute = tsc_offset_attribute(&raw mut offset as u64);
    // SAFETY: the kernel reads the structure, writes 8 bytes to `offset`, which its address is of, and keeps no pointer.
    let result = unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) };
    checked(result, "read the offset of the time-stamp counter").map(|()| offset)
}

/// Sets it.
pub(super) fn set_tsc_offset(fd: &VcpuFd, offset: u64) -> Result<(), EngineError> {
    let attribute = tsc_offset_attribute(&raw const offset as u64);
    // SAFETY: the kernel reads the structure and 8 bytes of `offset`, which its address is of, and keeps no pointer.
    let result = unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) };
    checked(result, "set the offset of the time-stamp counter")
}

fn tsc_offset_attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr }
}

fn checked(result: i32, what: &'static str) -> Result<(), EngineError> {
    if result < 0 { Err(EngineError::Kvm { what, source: io::Error::last_os_error() }) } else { Ok(()) }
}
