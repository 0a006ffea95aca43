//! [`BootState`]: the registers of the first vCPU at its first instruction.

use crate::map;

/// The registers of the boot vCPU at its first instruction: 64-bit mode, the first 4 GiB mapped to themselves, flat
/// segments, interrupts off. Registers that are not named are zero (RFLAGS: [`BootState::RFLAGS`]); the IDT is empty,
/// so that an exception before the guest has one shuts it down.
///
/// Segments (boot.rst, "64-bit boot protocol": `__BOOT_CS` is 0x10, `__BOOT_DS` is 0x18): CS is
/// [`BootState::CODE_SELECTOR`] with [`BootState::CODE_DESCRIPTOR`]; DS, ES, SS, FS and GS are
/// [`BootState::DATA_SELECTOR`] with [`BootState::DATA_DESCRIPTOR`]; TR is [`BootState::TASK_SELECTOR`] with
/// [`BootState::TASK_DESCRIPTOR`]; LDTR is null. The same descriptors lie in the GDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// First instruction.
    pub rip: u64,
    /// What the guest gets in RSI: for Linux the address of `boot_params`.
    pub rsi: u64,
    /// Top of a stack of one page.
    pub rsp: u64,
    /// PML4.
    pub cr3: u64,
    /// Base of the GDT.
    pub gdt_base: u64,
    /// Limit of the GDT.
    pub gdt_limit: u16,
}

impl BootState {
    /// CR0: PG, WP, NE, ET, MP, PE.
    pub const CR0: u64 = 0x8001_0033;
    /// CR4: PAE.
    pub const CR4: u64 = 0x20;
    /// EFER: LMA, LME.
    pub const EFER: u64 = 0x500;
    /// RFLAGS: only the bit that is always one.
    pub const RFLAGS: u64 = 2;
    /// Selector in CS.
    pub const CODE_SELECTOR: u16 = 0x10;
    /// 64-bit code, present, DPL 0, accessed (Intel SDM 3A 3.4.5).
    pub const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
    /// Selector in DS, ES, SS, FS and GS.
    pub const DATA_SELECTOR: u16 = 0x18;
    /// Flat 4 GiB data, writable, present, DPL 0, accessed.
    pub const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
    /// Selector in TR.
    pub const TASK_SELECTOR: u16 = 0x20;
    /// Busy 64-bit TSS at 0 with the smallest limit (0x67), the lower half of its 16 bytes; the upper is zero. It is
    /// there because processors refuse to run without a task; a guest loads its own before it needs one.
    pub const TASK_DESCRIPTOR: u64 = 0x0000_8b00_0000_0067;

    /// The state that enters at `rip` with `rsi`.
    pub(super) fn at(rip: u64, rsi: u64) -> Self {
        Self {
            rip,
            rsi,
            rsp: map::BOOT_STACK_TOP,
            cr3: map::BOOT_PAGE_TABLES,
            gdt_base: map::BOOT_GDT,
            gdt_limit: super::early_tables::GDT_BYTES - 1,
        }
    }
}
