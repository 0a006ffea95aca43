//! CPUID for KVM: the portable processor, without what this host's KVM cannot do.

use cpu::cpuid::{self, CpuModel, Processor};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::support::Support;
use crate::engine::EngineError;

/// CPUID leaves that tell the rates of clocks.
const LEAF_TSC: u32 = 0x15;
const LEAF_FREQUENCY: u32 = 0x16;

/// CPUID as the guest of either engine sees it, without what this host's KVM cannot do.
pub(super) fn entries(support: &Support, number: usize, count: usize) -> Result<CpuId, EngineError> {
    let processor = Processor { number: number as u32, count: count as u32, model: CpuModel::OutOfOrder };
    let mut entries: Vec<kvm_cpuid_entry2> = cpuid::table(processor)
        .into_iter()
        // The TSC ticks at the host's rate here; the guest learns it from the paravirtual clock.
        .filter(|entry| !matches!(entry.leaf, LEAF_TSC | LEAF_FREQUENCY))
        .map(|entry| kvm_cpuid_entry2 {
            function: entry.leaf,
            index: entry.subleaf.unwrap_or_default(),
            flags: if entry.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: entry.registers.eax,
            ebx: entry.registers.ebx,
            ecx: entry.registers.ecx,
            edx: entry.registers.edx,
            ..kvm_cpuid_entry2::default()
        })
        .collect();
    for entry in &mut entries {
        let host =
            support.cpuid.as_slice().iter().find(|host| host.function == entry.function && host.index == entry.index);
        match entry.function {
            // Feature words only: what the host's KVM does not know must not be promised. X2APIC, TSC-deadline and the
            // hypervisor bit come from the in-kernel APIC and are not always listed.
            1 => {
                const FROM_KERNEL: u32 = 1 << 21 | 1 << 24 | 1 << 31;
                entry.ecx &= host.map_or(0, |host| host.ecx) | FROM_KERNEL;
                entry.edx &= host.map_or(0, |host| host.edx);
            }
            7 => {
                entry.ebx &= host.map_or(0, |host| host.ebx);
                entry.ecx &= host.map_or(0, |host| host.ecx);
                entry.edx &= host.map_or(0, |host| host.edx);
            }
            0x8000_0001 => {
                entry.ecx &= host.map_or(0, |host| host.ecx);
                entry.edx &= host.map_or(0, |host| host.edx);
            }
            _ => {}
        }
    }
    CpuId::from_entries(&entries).map_err(|error| EngineError::State(format!("CPUID: {error:?}")))
}
