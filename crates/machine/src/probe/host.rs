//! What the host's kernel and processor have, as they say it themselves.

use std::fs;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_IOEVENTFD, KVM_CAP_IRQFD,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_TSC_CONTROL, KVM_CAP_XSAVE2,
};
use kvm_ioctls::Kvm;

/// Bytes of an entry of the dirty ring (`struct kvm_dirty_gfn`), which is the unit of what KVM_CHECK_EXTENSION answers.
const DIRTY_RING_ENTRY_BYTES: u32 = 16;
/// Bytes of what KVM_GET_XSAVE moves on a kernel without KVM_CAP_XSAVE2 (`struct kvm_xsave`).
const XSAVE_BYTES: u32 = 4096;
/// The pages that hugetlbfs reserves, 2 MiB each.
const RESERVED_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// What the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// /dev/kvm.
    pub kvm: KvmAccess,
    /// Whether the processor has hardware virtualization switched on (VMX or SVM), as far as this host is told.
    pub has_virtualization: bool,
    /// Whether the time-stamp counter ticks at one rate whatever the processor does.
    pub has_invariant_tsc: bool,
    /// What the host's kernel tells the time by (`tsc`, `hpet`, ...).
    pub clock_source: Option<String>,
    /// Large pages for guest memory.
    pub huge_pages: HugePages,
}

/// Whether this process can use /dev/kvm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmAccess {
    /// The process can use it, and this is what the kernel says of it.
    Open(KvmFacts),
    /// There is none.
    Missing,
    /// It belongs to others.
    Denied,
    /// It cannot be opened, for this reason.
    Failed(String),
}

/// What the host's KVM can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmFacts {
    /// Most entries of a vCPU's ring of dirty pages; 0 if there are no rings.
    pub dirty_ring_entries_max: u32,
    /// Whether dirty pages are protected again when they are cleared, not when the log is read.
    pub has_manual_protect: bool,
    /// Whether a guest's time-stamp counter can tick at another rate than the host's.
    pub has_tsc_scaling: bool,
    /// Whether interrupts can be raised by an event descriptor.
    pub has_irqfd: bool,
    /// Whether a guest's notifications can arrive at an event descriptor.
    pub has_ioeventfd: bool,
    /// Bytes of a vCPU's extended state (XSAVE area); `None` if guests have no XSAVE.
    pub xsave_bytes: Option<u32>,
}

/// How guest memory, which is shared memory, can have pages of 2 MiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// When the kernel gives them to shared memory: the word selected in `shmem_enabled`.
    pub shared_memory: Option<String>,
    /// Free pages of those that were reserved, 2 MiB each.
    pub reserved_free: u64,
}

impl HostFacts {
    /// Reads them. What cannot be read counts as not there.
    pub fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let flags = cpu_flags(&read("/proc/cpuinfo"));
        let has = |flag: &str| flags.iter().any(|known| known == flag);
        let clock_source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource").trim().to_owned();
        Self {
            kvm: KvmAccess::read(),
            has_virtualization: has("vmx") || has("svm"),
            has_invariant_tsc: has("constant_tsc") && has("nonstop_tsc"),
            clock_source: Some(clock_source).filter(|name| !name.is_empty()),
            huge_pages: HugePages {
                shared_memory: selected(&read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
                reserved_free: read(RESERVED_HUGE_PAGES).trim().parse().unwrap_or_default(),
            },
        }
    }
}

impl KvmAccess {
    fn read() -> Self {
        match Kvm::new() {
            Ok(kvm) => Self::Open(KvmFacts::read(&kvm)),
            Err(error) => match error.errno() {
                libc::ENOENT | libc::ENODEV | libc::ENXIO => Self::Missing,
                libc::EACCES | libc::EPERM => Self::Denied,
                _ => Self::Failed(error.to_string()),
            },
        }
    }
}

impl KvmFacts {
    fn read(kvm: &Kvm) -> Self {
        let value = |capability: u32| u32::try_from(kvm.check_extension_raw(capability.into())).unwrap_or_default();
        let has = |capability| value(capability) != 0;
        // The newer one says that its order of accesses is acquire and release, which x86 has anyway.
        let ring_bytes = value(KVM_CAP_DIRTY_LOG_RING_ACQ_REL).max(value(KVM_CAP_DIRTY_LOG_RING));
        Self {
            dirty_ring_entries_max: ring_bytes / DIRTY_RING_ENTRY_BYTES,
            has_manual_protect: has(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
            has_tsc_scaling: has(KVM_CAP_TSC_CONTROL),
            has_irqfd: has(KVM_CAP_IRQFD),
            has_ioeventfd: has(KVM_CAP_IOEVENTFD),
            xsave_bytes: guests_have_xsave(kvm).then(|| value(KVM_CAP_XSAVE2).max(XSAVE_BYTES)),
        }
    }
}

/// Whether KVM offers XSAVE to guests (CPUID leaf 1, ECX). That it can save the state (KVM_CAP_XSAVE) says nothing: it always can.
fn guests_have_xsave(kvm: &Kvm) -> bool {
    const XSAVE: u32 = 1 << 26;
    let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
    supported.is_ok_and(|cpuid| cpuid.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx & XSAVE != 0))
}

/// The features of the first processor in `/proc/cpuinfo`.
fn cpu_flags(cpuinfo: &str) -> Vec<String> {
    let flags = cpuinfo.lines().find_map(|line| Some(line.strip_prefix("flags")?.split_once(':')?.1));
    flags.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// The word in brackets, as sysfs marks which of several is selected.
fn selected(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let cpuinfo = "processor\t: 0\nflags\t\t: fpu svm constant_tsc\nbugs\t: none\nprocessor\t: 1\nflags\t: vmx\n";
        assert_eq!(cpu_flags(cpuinfo), ["fpu", "svm", "constant_tsc"]);
        assert_eq!(cpu_flags(""), [""; 0]);
        assert_eq!(selected("always within_size advise [never] deny force\n").as_deref(), Some("never"));
        assert_eq!(selected("always"), None);
    }
}
