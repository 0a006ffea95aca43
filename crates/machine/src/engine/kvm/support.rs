//! [`Support`]: what this host's KVM can do for a guest's processors.

use std::sync::{Arc, OnceLock};

use cpu::msr::index;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use spec::processor::{CpuOffer, Features, TscOffer, WORDS, XsaveComponent, bit, vendor as maker};

use super::{ioctl, kvm_error, trial};
use crate::engine::EngineError;

/// Length of KVM's structure for an XSAVE area without components that a process has to ask for, in bytes.
const XSAVE_BYTES_MAX: u32 = 4096;
/// Components of XSAVE areas that are not carried: MPX's two, which processors have lost again, and those from 16 on, of which AMX's need
/// the kernel's permission.
const XSAVE_NEVER: u64 = 3 << 3 | !0xffff;

/// What this host's KVM can do.
#[derive(Clone)]
pub(super) struct Support {
    /// Whether there is an XCR0.
    pub has_xcrs: bool,
    /// Whether the offset of a vCPU's time-stamp counter can be read and set (KVM_VCPU_TSC_OFFSET).
    pub has_tsc_offset: bool,
    /// EAX of CPUID's leaf 1: family, model and stepping of the host's processor.
    pub signature: u32,
    /// Rate of the host's time-stamp counter, in ticks a second.
    pub tsc_hz: u64,
    /// Which processors guests can have.
    pub offer: CpuOffer,
}

impl Support {
    /// That of this host. It is looked up once in the life of the process.
    pub(super) fn here(kvm: &Kvm) -> Result<Arc<Self>, EngineError> {
        static HERE: OnceLock<Arc<Support>> = OnceLock::new();
        if let Some(support) = HERE.get() {
            return Ok(support.clone());
        }
        let support = Self::look_up(kvm)?.with_what_kernels_can_use(kvm)?;
        Ok(HERE.get_or_init(|| support).clone())
    }

    /// Without what CPUID offers and a guest's kernel cannot use.
    fn with_what_kernels_can_use(self, kvm: &Kvm) -> Result<Arc<Self>, EngineError> {
        let mut support = Arc::new(self);
        if support.offer.features.has(bit::CMPXCHG16B) && !trial::executes(kvm, &support, trial::CMPXCHG16B)? {
            let offer = &mut Arc::make_mut(&mut support).offer;
            offer.features = offer.features.without(bit::CMPXCHG16B);
        }
        Ok(support)
    }

    fn look_up(kvm: &Kvm) -> Result<Self, EngineError> {
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_error("read the host's CPUID"))?;
        let probe = kvm.create_vm().map_err(kvm_error("create a VM"))?;
        let vcpu = probe.create_vcpu(0).map_err(kvm_error("create a vCPU"))?;
        let tsc_hz =
            u64::from(vcpu.get_tsc_khz().map_err(kvm_error("read the rate of the time-stamp counter"))?) * 1000;
        let has_xcrs = kvm.check_extension(Cap::Xcrs);
        let vendor = vendor(&cpuid);
        let mut features = offered(vendor, features(&cpuid)).with(bit::X2APIC).with(bit::HYPERVISOR);
        if !has_xcrs {
            features = features.without(bit::XSAVE);
        }
        if kvm.check_extension(Cap::TscDeadlineTimer) {
            features = features.with(bit::TSC_DEADLINE);
        }
        let offer = CpuOffer {
            vendor: Some(vendor),
            features,
            arch_capabilities: if features.has(bit::ARCH_CAPABILITIES) { arch_capabilities(kvm) } else { 0 },
            physical_bits: entry(&cpuid, 0x8000_0008, 0).map_or(36, |entry| entry.eax as u8),
            xsave: if features.has(bit::XSAVE) { xsave(&cpuid) } else { Vec::new() },
            tsc: if kvm.check_extension(Cap::TscControl) { TscOffer::Scaled } else { TscOffer::Fixed(tsc_hz) },
        };
        Ok(Self {
            has_xcrs,
            has_tsc_offset: takes_tsc_offset(&vcpu),
            signature: entry(&cpuid, 1, 0).map_or(0, |entry| entry.eax),
            tsc_hz,
            offer,
        })
    }
}

/// Tries it out on a vCPU that is for nothing else: a KVM that emulates processors may take an offset and leave the counter to the host's.
fn takes_tsc_offset(vcpu: &VcpuFd) -> bool {
    const TRIED: u64 = 1 << 20;
    ioctl::set_tsc_offset(vcpu, TRIED).is_ok() && ioctl::tsc_offset(vcpu).is_ok_and(|offset| offset == TRIED)
}

fn entry(cpuid: &CpuId, leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
    cpuid.as_slice().iter().find(|entry| entry.function == leaf && entry.index == subleaf)
}

fn features(cpuid: &CpuId) -> Features {
    let words = WORDS.iter().enumerate().filter_map(|(number, word)| {
        let entry = entry(cpuid, word.leaf, word.subleaf)?;
        let bits = [entry.eax, entry.ebx, entry.ecx, entry.edx].get(word.register).copied()?;
        Some((number, bits))
    });
    words.fold(Features::default(), Features::with)
}

/// What of the features that KVM supports a maker's processors can have. KVM supports IA32_ARCH_CAPABILITIES on all of them, but it is a
/// register of Intel's: on AMD's a guest could take promises from it that no such processor makes, and some kernels refuse to set it there.
fn offered(vendor: [u8; 12], supported: Features) -> Features {
    if vendor == maker::INTEL { supported } else { supported.without(bit::ARCH_CAPABILITIES) }
}

fn vendor(cpuid: &CpuId) -> [u8; 12] {
    let mut vendor = [0; 12];
    if let Some(entry) = entry(cpuid, 0, 0) {
        for (place, register) in vendor.chunks_exact_mut(4).zip([entry.ebx, entry.edx, entry.ecx]) {
            place.copy_from_slice(&register.to_le_bytes());
        }
    }
    vendor
}

/// KVM's own view of the host: what it lets guests have of it.
fn arch_capabilities(kvm: &Kvm) -> u64 {
    /// Those that stand for a register or an instruction which no guest is given: TSX_CTRL, MISC_PACKAGE_CTLS, energy filtering,
    /// DOITM, FB_CLEAR_CTRL, the status of an xAPIC that cannot be switched on, and overclocking.
    const NEVER: u64 = 1 << 7 | 3 << 10 | 1 << 12 | 1 << 18 | 1 << 21 | 1 << 23;
    let wanted = kvm_msr_entry { index: index::ARCH_CAPABILITIES, ..kvm_msr_entry::default() };
    let Ok(mut msrs) = Msrs::from_entries(&[wanted]) else { return 0 };
    match kvm.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map_or(0, |entry| entry.data & !NEVER),
        _ => 0,
    }
}

fn xsave(cpuid: &CpuId) -> Vec<XsaveComponent> {
    let Some(list) = entry(cpuid, 0xd, 0) else { return Vec::new() };
    let offered = (u64::from(list.edx) << 32 | u64::from(list.eax)) & !XSAVE_NEVER;
    let components = (2..63u8).filter(|number| offered >> number & 1 == 1).filter_map(|number| {
        let entry = entry(cpuid, 0xd, number.into())?;
        let component = XsaveComponent { number, offset: entry.ebx, bytes: entry.eax };
        let is_user_state = entry.ecx & 1 == 0;
        let end = component.offset.checked_add(component.bytes)?;
        (is_user_state && component.bytes > 0 && end <= XSAVE_BYTES_MAX).then_some(component)
    });
    components.collect()
}

#[cfg(test)]
mod tests {
    use spec::processor::vendor;

    use super::*;

    #[test]
    fn the_register_of_intels_capabilities_is_offered_on_intels_processors_only() {
        let supported = Features::PORTABLE.with(bit::ARCH_CAPABILITIES);
        assert!(offered(vendor::INTEL, supported).has(bit::ARCH_CAPABILITIES));
        for maker in [vendor::AMD, vendor::HYGON] {
            assert_eq!(offered(maker, supported), Features::PORTABLE.without(bit::ARCH_CAPABILITIES));
        }
    }
}
