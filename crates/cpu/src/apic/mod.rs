//! The local APIC.

use crate::state::ApicState;

/// A local APIC.
pub(crate) struct Apic {
    state: ApicState,
}

impl Apic {
    pub(crate) fn from_state(state: &ApicState) -> Option<Self> {
        (state.registers.len() == 1024).then(|| Self { state: state.clone() })
    }

    pub(crate) fn to_state(&self) -> ApicState {
        self.state.clone()
    }

    pub(crate) fn cr8(&self) -> u64 {
        0
    }
}
