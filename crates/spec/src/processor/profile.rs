//! [`CpuProfile`]: what the processors of one VM are, as its guest was told at power-on.

use serde::{Deserialize, Serialize};

use super::SOFT_PHYSICAL_BITS;
use super::features::{Features, bit};

/// Family 6, model 36h: an in-order processor, which kernels know not to speculate. True of the soft engine, whose guests so are spared
/// retpolines, page-table isolation and the like.
const IN_ORDER_SIGNATURE: u32 = 0x0003_0661;

/// A part of the XSAVE area beyond x87 and SSE state. (Intel SDM volume 1, 13.4.3)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XsaveComponent {
    /// Its bit in XCR0, 2 to 62.
    pub number: u8,
    /// Offset in the standard format of the area, in bytes.
    pub offset: u32,
    /// Length in bytes.
    pub bytes: u32,
}

/// What the processors of a VM are. It is part of the VM's state: whatever engine and host the VM goes on at, its guest sees the same
/// processor, and a host that cannot be it does not take the VM (see [`CpuOffer`](super::CpuOffer)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuProfile {
    /// The maker, as leaf 0 spells it.
    pub vendor: [u8; 12],
    /// Family, model and stepping: EAX of leaf 1.
    pub signature: u32,
    /// The features.
    pub features: Features,
    /// IA32_ARCH_CAPABILITIES; 0 where it is not there.
    pub arch_capabilities: u64,
    /// Bits of a physical address.
    pub physical_bits: u8,
    /// What XCR0 can switch on beyond x87 and SSE state, ascending.
    pub xsave: Vec<XsaveComponent>,
    /// Ticks a second of a time-stamp counter that is promised to keep this rate for good, in whole kHz. Without it the guest is not
    /// told of an invariant counter, nor of a timer by it, and keeps time by the paravirtual clock, which is right at any rate.
    pub tsc_hz: Option<u64>,
}

/// Makers, as leaf 0 spells them.
pub mod vendor {
    /// Intel.
    pub const INTEL: [u8; 12] = *b"GenuineIntel";
    /// AMD.
    pub const AMD: [u8; 12] = *b"AuthenticAMD";
    /// Hygon, whose processors are AMD's.
    pub const HYGON: [u8; 12] = *b"HygonGenuine";
}

impl CpuProfile {
    /// The portable processor as the soft engine is it.
    pub fn in_order() -> Self {
        Self {
            vendor: vendor::INTEL,
            signature: IN_ORDER_SIGNATURE,
            features: Features::PORTABLE,
            arch_capabilities: 0,
            physical_bits: SOFT_PHYSICAL_BITS,
            xsave: Vec::new(),
            tsc_hz: None,
        }
    }

    /// Whether its guest was told that nothing speculates, as on the soft engine, and so protects itself against no such attack.
    pub fn is_in_order(&self) -> bool {
        self.vendor == vendor::INTEL && self.signature == IN_ORDER_SIGNATURE
    }

    /// Whether its maker is AMD, or one who makes AMD's processors.
    pub fn is_amd(&self) -> bool {
        self.vendor == vendor::AMD || self.vendor == vendor::HYGON
    }

    /// What XCR0 can have: x87, SSE and the components.
    pub fn xcr0(&self) -> u64 {
        let base = if self.features.has(bit::XSAVE) { 3 } else { 1 };
        self.xsave.iter().fold(base, |mask, component| mask | 1 << (component.number & 63))
    }
}

impl Default for CpuProfile {
    fn default() -> Self {
        Self::in_order()
    }
}
