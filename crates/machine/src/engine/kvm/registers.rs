//! The registers of virtio devices as memory that the guest can read and not write: reading one does not leave the guest. Drivers read
//! one at each interrupt.
#![allow(unsafe_code)]

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};

use super::kvm_error;
use crate::devices::virtio::RegisterPages;
use crate::engine::EngineError;
use crate::map;

/// Shows them to the guest in memory slot `slot`, where the host has read-only slots. Writes go on leaving the guest.
///
/// Whoever lets vCPUs run has to keep `pages`.
pub(super) fn show(vm: &VmFd, slot: usize, pages: &RegisterPages) -> Result<(), EngineError> {
    if !vm.check_extension(Cap::ReadonlyMem) {
        return Ok(());
    }
    let region = kvm_userspace_memory_region {
        slot: slot as u32,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: map::VIRTIO_MMIO,
        memory_size: pages.len_bytes(),
        userspace_addr: pages.host_address(),
    };
    // SAFETY: the pages are whole, hold nothing but atomics that the guest can only read, and the platform, which each vCPU's thread keeps,
    // keeps them.
    unsafe { vm.set_user_memory_region(region) }.map_err(kvm_error("show the guest its devices' registers"))
}
