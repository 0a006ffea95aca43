//! Which pages vCPUs have written, as the kernel knows it.
//!
//! With *rings*, each vCPU's thread appends the pages that it writes for the first time to a ring that is shared with this process
//! (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, Linux 6.1, or KVM_CAP_DIRTY_LOG_RING, Linux 5.11; Documentation/virt/kvm/api.rst, section 8.29): what is
//! read is what was written, however large the guest, and reading takes no system call. Where the host has none, the
//! *bitmap* of each memory slot is read as a whole (KVM_GET_DIRTY_LOG), and its pages are protected anew by that or, where the host
//! offers it, when they are to be (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, section 7.13, and KVM_CLEAR_DIRTY_LOG).

mod ring;

use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use memory::{GuestRam, Harvest, PAGE_SHIFT, Slot};

use self::ring::{DirtyRing, ENTRY_BYTES};
use super::{ioctl, kvm_error};
use crate::bus::lock;
use crate::engine::{DirtyLog, EngineError};

/// Fewest entries of a ring: well above those that the kernel keeps back for the hardware's own log (512 and 64).
const ENTRIES_MIN: u64 = 4096;

/// A way to learn of written pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DirtyMethod {
    /// A ring per vCPU, of so many entries.
    Rings {
        /// A power of two.
        entries: u32,
    },
    /// The bitmaps of the memory slots.
    Bitmap {
        /// Pages are protected when they are cleared, not when they are read.
        clears: bool,
    },
}

impl DirtyMethod {
    /// Chooses what this host has for a VM with so many pages, and sets the VM up for it; before its first vCPU is created.
    pub fn set_up(kvm: &Kvm, vm: &VmFd, pages: u64) -> Self {
        // A kernel that emulates instructions rather than have the processor execute them runs past the end of a ring: it stores an entry
        // for each write, and looks for room only now and then.
        let rings = if has_hardware_virtualization() { Self::set_up_rings(kvm, vm, pages) } else { None };
        rings.unwrap_or_else(|| Self::set_up_bitmap(vm))
    }

    fn set_up_rings(kvm: &Kvm, vm: &VmFd, pages: u64) -> Option<Self> {
        // A page is written for the first time at most once between two resets.
        let wanted = pages.next_power_of_two().max(ENTRIES_MIN);
        [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING].into_iter().find_map(|capability| {
            let bytes_max = u64::try_from(kvm.check_extension_raw(capability.into())).unwrap_or(0);
            let entries = wanted.min(bytes_max / ENTRY_BYTES);
            let is_enabled = entries >= ENTRIES_MIN && enable(vm, capability, entries * ENTRY_BYTES);
            is_enabled.then_some(Self::Rings { entries: entries as u32 })
        })
    }

    fn set_up_bitmap(vm: &VmFd) -> Self {
        let clears = enable(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into());
        Self::Bitmap { clears }
    }
}

fn enable(vm: &VmFd, capability: u32, argument: u64) -> bool {
    let mut enable = kvm_enable_cap { cap: capability, ..kvm_enable_cap::default() };
    enable.args[0] = argument;
    vm.enable_cap(&enable).is_ok()
}

/// Whether the processor has VMX (Intel SDM volume 2, CPUID, leaf 1) or SVM (AMD APM volume 3, CPUID, leaf 8000_0001), which a guest of
/// another hypervisor sees only if that lets it use them.
fn has_hardware_virtualization() -> bool {
    use std::arch::x86_64::__cpuid;
    __cpuid(1).ecx >> 5 & 1 == 1 || __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx >> 2 & 1 == 1
}

/// The kernel's record of what vCPUs have written to one VM's memory.
///
/// It is kept only while somebody asks for it: a VM whose writes are not recorded can have its memory mapped in large pages.
///
/// Whoever holds it keeps the VM's memory, and the VM in the kernel, but none of its devices.
pub(super) struct DirtyTracking {
    vm: Arc<VmFd>,
    ram: GuestRam,
    slots: Vec<Slot>,
    state: Mutex<State>,
}

struct State {
    /// Writes are recorded.
    is_on: bool,
    record: Record,
}

enum Record {
    Rings {
        /// One of each vCPU.
        rings: Vec<DirtyRing>,
        /// Entries were read whose pages are not protected again.
        unprotected: bool,
    },
    Bitmap {
        /// As in [`DirtyMethod::Bitmap`].
        clears: bool,
    },
}

impl DirtyTracking {
    /// Gives `vm` its memory, `ram`, of which no writes are recorded yet.
    pub fn new(vm: &Arc<VmFd>, ram: &GuestRam, method: DirtyMethod) -> Result<Self, EngineError> {
        let record = match method {
            DirtyMethod::Rings { .. } => Record::Rings { rings: Vec::new(), unprotected: false },
            DirtyMethod::Bitmap { clears } => Record::Bitmap { clears },
        };
        let state = Mutex::new(State { is_on: false, record });
        let tracking = Self { vm: vm.clone(), ram: ram.clone(), slots: ram.layout().slots(), state };
        tracking.set_slots(0)?;
        Ok(tracking)
    }

    /// Takes the ring of a vCPU in, if vCPUs have one.
    pub fn add_vcpu(&self, vcpu: &VcpuFd, method: DirtyMethod) -> Result<(), EngineError> {
        if let (Record::Rings { rings, .. }, DirtyMethod::Rings { entries }) = (&mut lock(&self.state).record, method) {
            rings.push(DirtyRing::new(vcpu, entries)?);
        }
        Ok(())
    }

    fn switch_on(&self, state: &mut State) -> Result<(), EngineError> {
        self.set_slots(KVM_MEM_LOG_DIRTY_PAGES)?;
        state.is_on = true;
        // Marked after the kernel has begun: what was written before is among all pages, what is written now is recorded.
        self.ram.mark_all_dirty();
        Ok(())
    }

    /// Makes room in the rings.
    pub fn empty_rings(&self) -> Result<(), EngineError> {
        self.protect(&mut lock(&self.state))
    }

    /// Marks the pages logged so far and protects them.
    fn protect(&self, state: &mut State) -> Result<(), EngineError> {
        if !state.is_on {
            return self.switch_on(state);
        }
        match &mut state.record {
            Record::Rings { rings, unprotected } => {
                if self.read_rings(rings)? || *unprotected {
                    ioctl::reset_dirty_rings(&self.vm)?;
                    rings.iter_mut().for_each(DirtyRing::was_reset);
                    *unprotected = false;
                }
                Ok(())
            }
            Record::Bitmap { clears } => self.read_bitmaps(*clears),
        }
    }

    /// Says whether there was anything.
    fn read_rings(&self, rings: &mut [DirtyRing]) -> Result<bool, EngineError> {
        let mut any = false;
        for ring in rings {
            for (slot, page) in ring.entries() {
                any = true;
                if let Some(slot) = self.slots.get(slot as usize) {
                    self.ram.mark_logged_page((slot.offset >> PAGE_SHIFT).saturating_add(page));
                }
            }
            if ring.is_overrun() {
                return Err(EngineError::KvmExit("a vCPU ran past the end of its ring of dirty pages".to_owned()));
            }
        }
        Ok(any)
    }

    fn read_bitmaps(&self, clear: bool) -> Result<(), EngineError> {
        for (number, slot) in self.slots.iter().enumerate() {
            let words = self.vm.get_dirty_log(number as u32, slot.len_bytes as usize);
            let words = words.map_err(kvm_error("read the dirty log"))?;
            self.ram.merge_dirty_words(slot.offset >> PAGE_SHIFT, &words);
            if clear && words.iter().any(|&word| word != 0) {
                ioctl::clear_dirty_log(&self.vm, number as u32, slot.len_bytes >> PAGE_SHIFT, &words)?;
            }
        }
        Ok(())
    }

    #[allow(unsafe_code)]
    fn set_slots(&self, flags: u32) -> Result<(), EngineError> {
        for (number, slot) in self.slots.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: number as u32,
                flags,
                guest_phys_addr: slot.guest_address,
                memory_size: slot.len_bytes,
                userspace_addr: self.ram.host_address() + slot.offset,
            };
            // SAFETY: the range lies within the RAM mapping, which `ram` keeps alive as long as the VM in the kernel can be used, and nobody
            // holds references into it.
            unsafe { self.vm.set_user_memory_region(region) }.map_err(kvm_error("give the VM its memory"))?;
        }
        Ok(())
    }
}

impl DirtyLog for DirtyTracking {
    /// What is marked may go on being written to without notice, until [`DirtyTracking::harvest`] protects it. Where bitmaps
    /// cannot be cleared apart from being read, this protects as well.
    fn observe(&self) -> Result<(), EngineError> {
        let mut state = lock(&self.state);
        if !state.is_on {
            return self.switch_on(&mut state);
        }
        match &mut state.record {
            Record::Rings { rings, unprotected } => {
                *unprotected |= self.read_rings(rings)?;
                Ok(())
            }
            Record::Bitmap { .. } => self.read_bitmaps(false),
        }
    }

    fn harvest(&self) -> Result<Harvest, EngineError> {
        let mut state = lock(&self.state);
        self.protect(&mut state)?;
        // Still under the lock: a vCPU has its page logged before it writes to it. If somebody else read such an entry by now, the page would be
        // among these, might be copied before the write, and would not be logged again for it.
        Ok(self.ram.harvest())
    }

    fn stop(&self) -> Result<(), EngineError> {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.is_on) { self.set_slots(0) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
