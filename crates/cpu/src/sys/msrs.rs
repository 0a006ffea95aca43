//! [`Msrs`]: model-specific registers that only hold a value.

/// Indices (Intel SDM volume 4, and Linux `Documentation/virt/kvm/x86/msr.rst`).
pub(crate) mod index {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRR_CAPABILITIES: u32 = 0xfe;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAPABILITIES: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUG_CONTROL: u32 = 0x1d9;
    pub const MTRR_FIXED_64K: u32 = 0x250;
    pub const MTRR_FIXED_16K_8: u32 = 0x258;
    pub const MTRR_FIXED_16K_A: u32 = 0x259;
    pub const MTRR_FIXED_4K_FIRST: u32 = 0x268;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEFAULT: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
}

/// A register that only holds a value.
struct Held {
    index: u32,
    reset: u64,
    /// Bits that may be set; setting another is #GP.
    writable: u64,
}

const fn held(index: u32, reset: u64, writable: u64) -> Held {
    Held { index, reset, writable }
}

/// Every register that only holds a value, ascending by index. Memory is write-back by default, as firmware would leave it.
const HELD: &[Held] = &[
    held(index::SYSENTER_CS, 0, 0xffff_ffff),
    held(index::SYSENTER_ESP, 0, u64::MAX),
    held(index::SYSENTER_EIP, 0, u64::MAX),
    held(index::MCG_STATUS, 0, 7),
    held(index::MISC_ENABLE, 1, u64::MAX),
    held(index::DEBUG_CONTROL, 0, 0xdfc3),
    held(index::MTRR_FIXED_64K, 0, u64::MAX),
    held(index::MTRR_FIXED_16K_8, 0, u64::MAX),
    held(index::MTRR_FIXED_16K_A, 0, u64::MAX),
    held(index::MTRR_FIXED_4K_FIRST, 0, u64::MAX),
    held(index::MTRR_FIXED_4K_FIRST + 1, 0, u64::MAX),
    held(index::MTRR_FIXED_4K_FIRST + 2, 0, u64::MAX),
    held(index::MTRR_FIXED_4K_FIRST + 3, 0, u64::MAX),
    held(index::MTRR_FIXED_4K_FIRST + 4, 0, u64::MAX),
    held(index::MTRR_FIXED_4K_FIRST + 5, 0, u64::MAX),
    held(index::MTRR_FIXED_4K_FIRST + 6, 0, u64::MAX),
    held(index::MTRR_FIXED_4K_FIRST + 7, 0, u64::MAX),
    held(index::PAT, 0x0007_0406_0007_0406, 0x0707_0707_0707_0707),
    held(index::MTRR_DEFAULT, 0x806, 0xcff),
    held(index::KVM_WALL_CLOCK, 0, u64::MAX),
    held(index::KVM_SYSTEM_TIME, 0, u64::MAX),
    held(index::STAR, 0, u64::MAX),
    held(index::LSTAR, 0, u64::MAX),
    held(index::CSTAR, 0, u64::MAX),
    held(index::SFMASK, 0, 0xffff_ffff),
    held(index::KERNEL_GS_BASE, 0, u64::MAX),
    held(index::TSC_AUX, 0, 0xffff_ffff),
];

/// The model-specific registers that a saved state lists, ascending by index.
pub fn neutral_msrs() -> impl Iterator<Item = u32> {
    HELD.iter().map(|held| held.index)
}

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

    /// All values, ascending by index.
    pub(crate) fn to_state(&self) -> Vec<(u32, u64)> {
        HELD.iter().zip(self.values).map(|(held, value)| (held.index, value)).collect()
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
    fn registers_are_sorted_so_that_search_finds_them() {
        assert!(HELD.is_sorted_by_key(|held| held.index));
    }

    #[test]
    fn values_survive_saving() {
        let mut msrs = Msrs::from_state(&[]);
        assert_eq!(msrs.get(index::PAT), Some(0x0007_0406_0007_0406));
        assert_eq!(msrs.set(index::LSTAR, 77), Some(()));
        assert_eq!(msrs.set(index::PAT, 8), None);
        assert_eq!(msrs.set(0x1234_5678, 0), None);
        let msrs = Msrs::from_state(&msrs.to_state());
        assert_eq!(msrs.lstar(), 77);
    }
}
