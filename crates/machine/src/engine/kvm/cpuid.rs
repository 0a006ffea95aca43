//! CPUID for KVM: from a profile to the kernel's table.

use cpu::cpuid::{self, Processor};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use spec::CpuProfile;

use crate::engine::EngineError;

/// What CPUID says on processor `number` of `count`.
pub(super) fn entries(profile: &CpuProfile, number: usize, count: usize) -> Result<CpuId, EngineError> {
    let processor = Processor { number: number as u32, count: count as u32 };
    let entries: Vec<kvm_cpuid_entry2> = cpuid::table(processor, profile)
        .into_iter()
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
    CpuId::from_entries(&entries).map_err(|error| EngineError::State(format!("CPUID: {error:?}")))
}
