//! Model-specific registers: their indices, and what those that only hold a value hold after reset.

/// Indices (Intel SDM volume 4, and Linux `Documentation/virt/kvm/x86/msr.rst`).
pub mod index {
    /// IA32_TIME_STAMP_COUNTER.
    pub const TSC: u32 = 0x10;
    /// IA32_PLATFORM_ID.
    pub const PLATFORM_ID: u32 = 0x17;
    /// IA32_APIC_BASE.
    pub const APIC_BASE: u32 = 0x1b;
    /// IA32_TSC_ADJUST.
    pub const TSC_ADJUST: u32 = 0x3b;
    /// IA32_SPEC_CTRL.
    pub const SPEC_CTRL: u32 = 0x48;
    /// IA32_PRED_CMD.
    pub const PRED_CMD: u32 = 0x49;
    /// IA32_BIOS_SIGN_ID: the microcode revision.
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    /// MSR_PLATFORM_INFO.
    pub const PLATFORM_INFO: u32 = 0xce;
    /// IA32_MTRRCAP.
    pub const MTRR_CAPABILITIES: u32 = 0xfe;
    /// IA32_ARCH_CAPABILITIES.
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    /// IA32_FLUSH_CMD.
    pub const FLUSH_CMD: u32 = 0x10b;
    /// IA32_SYSENTER_CS.
    pub const SYSENTER_CS: u32 = 0x174;
    /// IA32_SYSENTER_ESP.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// IA32_SYSENTER_EIP.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// IA32_MCG_CAP.
    pub const MCG_CAPABILITIES: u32 = 0x179;
    /// IA32_MCG_STATUS.
    pub const MCG_STATUS: u32 = 0x17a;
    /// IA32_MISC_ENABLE.
    pub const MISC_ENABLE: u32 = 0x1a0;
    /// IA32_DEBUGCTL.
    pub const DEBUG_CONTROL: u32 = 0x1d9;
    /// Base and mask of the first of [`MTRR_VARIABLE_RANGES`](super::MTRR_VARIABLE_RANGES) variable ranges; two registers each.
    pub const MTRR_VARIABLE_FIRST: u32 = 0x200;
    /// IA32_MTRR_FIX64K_00000.
    pub const MTRR_FIXED_64K: u32 = 0x250;
    /// IA32_MTRR_FIX16K_80000.
    pub const MTRR_FIXED_16K_8: u32 = 0x258;
    /// IA32_MTRR_FIX16K_A0000.
    pub const MTRR_FIXED_16K_A: u32 = 0x259;
    /// IA32_MTRR_FIX4K_C0000, the first of eight.
    pub const MTRR_FIXED_4K_FIRST: u32 = 0x268;
    /// IA32_PAT.
    pub const PAT: u32 = 0x277;
    /// IA32_MTRR_DEF_TYPE.
    pub const MTRR_DEFAULT: u32 = 0x2ff;
    /// IA32_MC0_CTL.
    pub const MC0_CTL: u32 = 0x400;
    /// IA32_MC0_STATUS.
    pub const MC0_STATUS: u32 = 0x401;
    /// IA32_MC0_ADDR.
    pub const MC0_ADDR: u32 = 0x402;
    /// IA32_MC0_MISC.
    pub const MC0_MISC: u32 = 0x403;
    /// IA32_TSC_DEADLINE.
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// The first of the x2APIC's registers.
    pub const X2APIC_FIRST: u32 = 0x800;
    /// The last index that is the x2APIC's.
    pub const X2APIC_LAST: u32 = 0x8ff;
    /// IA32_EFER.
    pub const EFER: u32 = 0xc000_0080;
    /// IA32_STAR.
    pub const STAR: u32 = 0xc000_0081;
    /// IA32_LSTAR.
    pub const LSTAR: u32 = 0xc000_0082;
    /// IA32_CSTAR.
    pub const CSTAR: u32 = 0xc000_0083;
    /// IA32_FMASK.
    pub const SFMASK: u32 = 0xc000_0084;
    /// IA32_FS_BASE.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// IA32_GS_BASE.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// IA32_KERNEL_GS_BASE.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// IA32_TSC_AUX.
    pub const TSC_AUX: u32 = 0xc000_0103;
    /// VIRT_SPEC_CTRL, AMD's way to ask a hypervisor for SSBD.
    pub const VIRT_SPEC_CTRL: u32 = 0xc001_011f;
    /// MSR_KVM_WALL_CLOCK_NEW.
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    /// MSR_KVM_SYSTEM_TIME_NEW.
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
}

/// Banks of machine-check registers that IA32_MCG_CAP reports, on every engine: a kernel that found more of them on one engine than another
/// has would panic at its next look at them there.
pub const MCE_BANKS: u64 = 1;
/// Variable ranges that IA32_MTRRCAP reports, on every engine.
pub(crate) const MTRR_VARIABLE_RANGES: u64 = 8;
/// IA32_MISC_ENABLE: fast string operations; neither branch trace storage nor precise event-based sampling.
const MISC_ENABLE_RESET: u64 = 1 << 0 | 1 << 11 | 1 << 12;

/// A register that only holds a value.
pub(crate) struct Held {
    pub index: u32,
    pub reset: u64,
    /// Bits that may be set; setting another is #GP.
    pub writable: u64,
}

const fn held(index: u32, reset: u64, writable: u64) -> Held {
    Held { index, reset, writable }
}

/// Every register that only holds a value, ascending by index. Memory is write-back by default, as firmware would leave it.
pub(crate) const HELD: &[Held] = &[
    held(index::TSC_ADJUST, 0, u64::MAX),
    held(index::SPEC_CTRL, 0, u64::MAX),
    held(index::SYSENTER_CS, 0, 0xffff_ffff),
    held(index::SYSENTER_ESP, 0, u64::MAX),
    held(index::SYSENTER_EIP, 0, u64::MAX),
    held(index::MCG_STATUS, 0, 7),
    held(index::MISC_ENABLE, MISC_ENABLE_RESET, u64::MAX),
    held(index::DEBUG_CONTROL, 0, 0xdfc3),
    held(index::MTRR_VARIABLE_FIRST, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 1, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 2, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 3, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 4, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 5, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 6, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 7, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 8, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 9, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 10, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 11, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 12, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 13, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 14, 0, u64::MAX),
    held(index::MTRR_VARIABLE_FIRST + 15, 0, u64::MAX),
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
    held(index::MC0_CTL, 0, u64::MAX),
    held(index::MC0_STATUS, 0, 0),
    held(index::MC0_ADDR, 0, 0),
    held(index::MC0_MISC, 0, 0),
    held(index::KVM_WALL_CLOCK, 0, u64::MAX),
    held(index::KVM_SYSTEM_TIME, 0, u64::MAX),
    held(index::STAR, 0, u64::MAX),
    held(index::LSTAR, 0, u64::MAX),
    held(index::CSTAR, 0, u64::MAX),
    held(index::SFMASK, 0, 0xffff_ffff),
    held(index::KERNEL_GS_BASE, 0, u64::MAX),
    held(index::TSC_AUX, 0, 0xffff_ffff),
    held(index::VIRT_SPEC_CTRL, 0, 4),
];

/// Indices of the registers that a saved state lists, ascending.
pub fn neutral() -> impl Iterator<Item = u32> {
    HELD.iter().map(|held| held.index)
}

/// What those registers hold after reset: index and value, ascending by index.
pub(crate) fn reset() -> Vec<(u32, u64)> {
    HELD.iter().map(|held| (held.index, held.reset)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_sorted_so_that_search_finds_them() {
        assert!(HELD.is_sorted_by_key(|held| held.index));
    }
}
