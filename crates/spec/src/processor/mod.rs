//! What the processors of a VM are, as its guest was told, and which ones an engine can be on a host: what decides where a VM can go.
//!
//! Sources: Intel SDM volume 2 (CPUID), AMD APM volume 3 appendix E, Linux `Documentation/virt/kvm/x86/cpuid.rst`.

mod features;
mod offer;
mod profile;

pub use features::{FeatureWord, Features, WORDS, bit, word};
pub use offer::{CpuOffer, TscOffer, is_same_rate};
pub use profile::{CpuProfile, XsaveComponent, vendor};

/// Bits of a physical address on the soft engine's processor.
pub const SOFT_PHYSICAL_BITS: u8 = 40;
/// Ticks a second of the time-stamp counter of the soft engine's processor.
pub const SOFT_TSC_HZ: u64 = 1_000_000_000;
