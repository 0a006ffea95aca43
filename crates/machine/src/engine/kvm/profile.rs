//! Which processor a VM gets at power-on.

use spec::processor::{Features, TscOffer, bit, vendor, word};
use spec::{CpuLevel, CpuProfile};

use super::support::Support;
use crate::engine::EngineError;

/// Family 6, model 55h, stepping 7. Kernels derive from these numbers which weaknesses a processor has unless IA32_ARCH_CAPABILITIES says
/// otherwise, and have the longest list for this one: a guest that says it protects itself on any of Intel's processors.
const INTEL_SIGNATURE: u32 = 0x0005_0657;

/// The processor of a VM that is started here at a level.
///
/// The maker is the host's: kernels know by it which workarounds a processor needs. On Intel's processors, family and model are always the
/// same ones. On those of AMD and others they are the host's own, as which of several defences works depends on them.
pub(super) fn at_power_on(level: CpuLevel, support: &Support) -> Result<CpuProfile, EngineError> {
    let offer = &support.offer;
    let portable = Features::PORTABLE.or(Features::MITIGATIONS).and(offer.features).without(bit::TSC_DEADLINE);
    let mut profile = CpuProfile {
        vendor: offer.vendor.unwrap_or(vendor::INTEL),
        signature: if offer.vendor == Some(vendor::INTEL) { INTEL_SIGNATURE } else { support.signature },
        features: portable,
        arch_capabilities: 0,
        physical_bits: offer.physical_bits.min(CpuProfile::in_order().physical_bits),
        xsave: Vec::new(),
        tsc_hz: None,
    };
    match level {
        CpuLevel::Portable => {}
        CpuLevel::V3 => {
            let missing = offer.lacks_of_v3();
            if !missing.is_empty() {
                return Err(EngineError::CpuLevel { level, missing: missing.join(", ") });
            }
            profile.features = portable.or(Features::V3);
            profile.xsave = offer.avx().into_iter().collect();
        }
        CpuLevel::Host => {
            let kvm = (word::KVM_EAX, u32::MAX);
            let all = offer.features.minus(Features::NEVER).without(bit::TSC_DEADLINE);
            profile.features = all.without(kvm).with((word::KVM_EAX, portable.word(word::KVM_EAX)));
            profile.signature = support.signature;
            profile.physical_bits = offer.physical_bits;
            profile.xsave = offer.xsave.clone();
        }
    }
    // The portable processor promises no rate, so that it keeps time on every host; one that is tied to such hosts anyway does.
    if level != CpuLevel::Portable && offer.tsc == TscOffer::Scaled {
        profile.tsc_hz = Some(support.tsc_hz);
        if offer.features.has(bit::TSC_DEADLINE) {
            profile.features = profile.features.with(bit::TSC_DEADLINE);
        }
    }
    if profile.features.has(bit::ARCH_CAPABILITIES) {
        profile.arch_capabilities = offer.arch_capabilities;
    }
    Ok(profile)
}
