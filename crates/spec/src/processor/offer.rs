//! [`CpuOffer`]: which processors an engine can be on a host.

use serde::{Deserialize, Serialize};

use super::features::{Features, bit};
use super::profile::{CpuProfile, XsaveComponent};
use super::{SOFT_PHYSICAL_BITS, SOFT_TSC_HZ};

/// Bits of IA32_ARCH_CAPABILITIES that tell of a weakness rather than of its absence: RSBA and RRSBA (Intel SDM volume 4).
const WEAKNESSES: u64 = 1 << 2 | 1 << 19;
/// AVX state, the upper halves of YMM0 to YMM15: its number among XSAVE's components.
const COMPONENT_AVX: u8 = 2;

/// Which rates a host can give a time-stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TscOffer {
    /// Any: it is scaled.
    Scaled,
    /// This one, in ticks a second.
    Fixed(u64),
}

/// Which processors an engine can be on a host: those that are no more than this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuOffer {
    /// The maker, on an engine that executes on the host's own processor.
    pub vendor: Option<[u8; 12]>,
    /// All features.
    pub features: Features,
    /// IA32_ARCH_CAPABILITIES of the host.
    pub arch_capabilities: u64,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// What XCR0 can switch on beyond x87 and SSE state.
    pub xsave: Vec<XsaveComponent>,
    /// Rates of the time-stamp counter.
    pub tsc: TscOffer,
}

impl CpuOffer {
    /// What the soft engine can be: the portable processor, of any maker, and a timer by its own time-stamp counter. It does not speculate, so it can promise whatever a kernel's
    /// defences ask for.
    pub fn soft() -> Self {
        Self {
            vendor: None,
            features: Features::PORTABLE.or(Features::MITIGATIONS).with(bit::TSC_DEADLINE),
            arch_capabilities: !WEAKNESSES,
            physical_bits: SOFT_PHYSICAL_BITS,
            xsave: Vec::new(),
            tsc: TscOffer::Fixed(SOFT_TSC_HZ),
        }
    }

    /// AVX state, if it can be saved here.
    pub fn avx(&self) -> Option<XsaveComponent> {
        self.xsave.iter().find(|component| component.number == COMPONENT_AVX).copied()
    }

    /// What of x86-64-v3 is not here, by name; nothing if all of it is.
    pub fn lacks_of_v3(&self) -> Vec<String> {
        let mut missing = Features::V3.with(bit::XSAVE).minus(self.features).names();
        if self.avx().is_none() {
            missing.push("AVX state in XSAVE".to_owned());
        }
        missing
    }

    /// Why a VM with this processor cannot run here, if so; a clause that goes on after "because".
    pub fn refusal(&self, profile: &CpuProfile) -> Option<String> {
        if let Some(vendor) = self.vendor.filter(|vendor| *vendor != profile.vendor && !profile.is_in_order()) {
            let [here, there] = [vendor, profile.vendor].map(|name| String::from_utf8_lossy(&name).into_owned());
            return Some(format!("its guest was started on a processor of {there}, and this host's is of {here}"));
        }
        let missing = profile.features.minus(self.features).minus(Features::HINTS).names();
        if !missing.is_empty() {
            return Some(format!("its guest was promised what is not here: {}", missing.join(", ")));
        }
        if profile.arch_capabilities & !WEAKNESSES & !self.arch_capabilities != 0
            || profile.arch_capabilities != 0 && self.arch_capabilities & WEAKNESSES & !profile.arch_capabilities != 0
        {
            return Some(format!(
                "its guest was told that attacks by speculation fail that work here: IA32_ARCH_CAPABILITIES is {:#x}, here {:#x}",
                profile.arch_capabilities, self.arch_capabilities
            ));
        }
        if let Some(component) = profile.xsave.iter().find(|component| !self.xsave.contains(component)) {
            return Some(format!("its guest saves XSAVE component {}, which is not as such here", component.number));
        }
        if profile.physical_bits > self.physical_bits {
            return Some(format!(
                "its guest was promised physical addresses of {} bits, and here they have {}",
                profile.physical_bits, self.physical_bits
            ));
        }
        match (profile.tsc_hz, self.tsc) {
            (Some(promised), TscOffer::Fixed(hz)) if !is_same_rate(promised, hz) => Some(format!(
                "its guest was promised a time-stamp counter of {} MHz, and here it runs at {} MHz and cannot be scaled",
                promised as f64 / 1e6,
                hz as f64 / 1e6
            )),
            _ => None,
        }
    }
}

/// Whether two rates differ by no more than the 250 parts in a million that KVM takes for the same (`tsc_tolerance_ppm`) and that time
/// synchronisation evens out.
pub fn is_same_rate(a_hz: u64, b_hz: u64) -> bool {
    a_hz.abs_diff(b_hz) <= a_hz.max(b_hz) / 4000
}

#[cfg(test)]
mod tests {
    use super::super::vendor;
    use super::*;

    #[test]
    fn what_a_guest_was_promised_decides_where_it_can_go() {
        let soft = CpuOffer::soft();
        let portable = CpuProfile::in_order();
        assert_eq!(soft.refusal(&portable), None);
        let said = |profile: &CpuProfile, offer: &CpuOffer| offer.refusal(profile).unwrap_or_default();
        let v3 = CpuProfile { features: Features::PORTABLE.or(Features::V3), ..portable.clone() };
        assert!(said(&v3, &soft).contains("AVX2"));
        let amd = CpuProfile { vendor: vendor::AMD, signature: 0x00a0_0f11, ..portable.clone() };
        assert_eq!(soft.refusal(&amd), None, "the software processor can be of any maker");
        let intel = CpuOffer { vendor: Some(vendor::INTEL), ..CpuOffer::soft() };
        assert!(said(&amd, &intel).contains("AuthenticAMD"));
        assert_eq!(intel.refusal(&portable), None, "one that does not speculate has no workarounds to lose");
        let promised = CpuProfile { tsc_hz: Some(2_600_000_000), ..portable.clone() };
        assert!(said(&promised, &soft).contains("2600 MHz"));
        assert_eq!(CpuOffer { tsc: TscOffer::Scaled, ..CpuOffer::soft() }.refusal(&promised), None);
        let safe = CpuProfile { arch_capabilities: 1, ..portable.clone() };
        assert!(!said(&safe, &CpuOffer { arch_capabilities: 0, ..CpuOffer::soft() }).is_empty());
        let slower = CpuOffer { features: soft.features.minus(Features::HINTS), ..CpuOffer::soft() };
        assert_eq!(slower.refusal(&portable), None, "a guest runs right where string instructions are slow");
        let narrow = CpuOffer { physical_bits: 39, ..CpuOffer::soft() };
        assert!(said(&portable, &narrow).contains("39"));
    }
}
