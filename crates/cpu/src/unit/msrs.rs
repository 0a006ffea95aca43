//! [`Msrs`]: model-specific registers that only hold a value.

use crate::msr::{HELD, index};

/// Position of a register in [`HELD`], known at compile time.
const fn place(index: u32) -> usize {
    let mut at = 0;
    while HELD[at].index != index {
        at += 1;
    }
    at
}

const STAR: usize = place(index::STAR);
const LSTAR: usize = place(index::LSTAR);
const CSTAR: usize = place(index::CSTAR);
const SFMASK: usize = place(index::SFMASK);
const KERNEL_GS_BASE: usize = place(index::KERNEL_GS_BASE);
const TSC_AUX: usize = place(index::TSC_AUX);
const SYSENTER_CS: usize = place(index::SYSENTER_CS);
const SYSENTER_ESP: usize = place(index::SYSENTER_ESP);
const SYSENTER_EIP: usize = place(index::SYSENTER_EIP);

/// The values of all registers that only hold one.
#[derive(Clone, Debug)]
pub(crate) struct Msrs {
    values: [u64; HELD.len()],
}

impl Msrs {
    /// From saved values; what is not among them is as after reset, and what this processor does not have is dropped.
    pub(crate) fn from_state(saved: &[(u32, u64)]) -> Self {
        let mut msrs = Self { values: std::array::from_fn(|at| HELD[at].reset) };
        for &(index, value) in saved {
            let _ = msrs.set(index, value);
        }
        msrs
    }

    /// The values of those that `is_there` says the processor has, ascending by index.
    pub(crate) fn to_state(&self, is_there: impl Fn(u32) -> bool) -> Vec<(u32, u64)> {
        let all = HELD.iter().zip(self.values).map(|(held, value)| (held.index, value));
        all.filter(|(index, _)| is_there(*index)).collect()
    }

    pub(crate) fn get(&self, index: u32) -> Option<u64> {
        let at = HELD.binary_search_by_key(&index, |held| held.index).ok()?;
        self.values.get(at).copied()
    }

    /// Sets a register. `None` if there is none of this index, or the value has bits that may not be set.
    #[must_use]
    pub(crate) fn set(&mut self, index: u32, value: u64) -> Option<()> {
        let at = HELD.binary_search_by_key(&index, |held| held.index).ok()?;
        if value & !HELD.get(at)?.writable != 0 {
            return None;
        }
        *self.values.get_mut(at)? = value;
        Some(())
    }

    pub(crate) fn star(&self) -> u64 {
        self.values[STAR]
    }

    pub(crate) fn lstar(&self) -> u64 {
        self.values[LSTAR]
    }

    pub(crate) fn cstar(&self) -> u64 {
        self.values[CSTAR]
    }

    pub(crate) fn sfmask(&self) -> u64 {
        self.values[SFMASK]
    }

    pub(crate) fn kernel_gs_base_mut(&mut self) -> &mut u64 {
        &mut self.values[KERNEL_GS_BASE]
    }

    pub(crate) fn tsc_aux(&self) -> u64 {
        self.values[TSC_AUX]
    }

    /// Selector, stack pointer and instruction pointer of SYSENTER.
    pub(crate) fn sysenter(&self) -> (u64, u64, u64) {
        (self.values[SYSENTER_CS], self.values[SYSENTER_ESP], self.values[SYSENTER_EIP])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_saving() {
        let mut msrs = Msrs::from_state(&[]);
        assert_eq!(msrs.get(index::PAT), Some(0x0007_0406_0007_0406));
        assert_eq!(msrs.set(index::LSTAR, 77), Some(()));
        assert_eq!(msrs.set(index::PAT, 8), None);
        assert_eq!(msrs.set(0x1234_5678, 0), None);
        let msrs = Msrs::from_state(&msrs.to_state(|_| true));
        assert_eq!(msrs.lstar(), 77);
    }
}
