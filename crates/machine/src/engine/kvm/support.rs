//! [`Support`]: what this host's KVM can do for a guest's processors.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::kvm_error;
use crate::engine::EngineError;

/// What this host's KVM can do.
pub(super) struct Support {
    /// KVM_GET_SUPPORTED_CPUID.
    pub cpuid: CpuId,
    /// Whether there is an XCR0.
    pub has_xcrs: bool,
}

impl Support {
    pub(super) fn of(kvm: &Kvm) -> Result<Self, EngineError> {
        Ok(Self {
            cpuid: kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_error("read the host's CPUID"))?,
            has_xcrs: kvm.check_extension(Cap::Xcrs),
        })
    }
}
