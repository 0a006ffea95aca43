//! Requests to KVM that `kvm_ioctls` does not have (Linux `Documentation/virt/kvm/api.rst`).
#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1,
    kvm_device_attr,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr};

use crate::engine::EngineError;

ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

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

/// Has the kernel take back the entries of dirty rings that were read, and protect their pages.
pub(super) fn reset_dirty_rings(vm: &VmFd) -> Result<(), EngineError> {
    // SAFETY: the request takes no argument and works on the kernel's side of the rings alone.
    checked(unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) }, "reset the dirty rings")
}

/// Clears the bits of the dirty log of a memory slot that are set in `words`, one for each of its `pages`, and protects these pages.
pub(super) fn clear_dirty_log(vm: &VmFd, slot: u32, pages: u64, words: &[u64]) -> Result<(), EngineError> {
    let is_whole = words.len() as u64 >= pages.div_ceil(64);
    let num_pages = u32::try_from(pages).ok().filter(|_| is_whole);
    let request = kvm_clear_dirty_log {
        slot,
        num_pages: num_pages.ok_or_else(|| EngineError::State(format!("a memory slot of {pages} pages")))?,
        first_page: 0,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_ptr() as *mut std::ffi::c_void },
    };
    // SAFETY: the kernel reads one bit a page from `words`, which has as many, and writes nothing.
    checked(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &request) }, "clear the dirty log")
}

fn checked(result: i32, what: &'static str) -> Result<(), EngineError> {
    if result < 0 { Err(EngineError::Kvm { what, source: io::Error::last_os_error() }) } else { Ok(()) }
}
