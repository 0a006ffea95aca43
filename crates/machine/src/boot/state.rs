//! [`BootState`]: the registers of the first vCPU at its first instruction.

use cpu::VcpuState;
use cpu::state::{SegmentState, TableState};

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

    /// The vCPU that has them.
    pub fn vcpu(&self) -> VcpuState {
        let data = segment(Self::DATA_SELECTOR, Self::DATA_DESCRIPTOR);
        let code = segment(Self::CODE_SELECTOR, Self::CODE_DESCRIPTOR);
        let mut state = VcpuState::reset(0);
        state.gpr[4] = self.rsp;
        state.gpr[6] = self.rsi;
        state.rip = self.rip;
        state.rflags = Self::RFLAGS;
        state.segments = [data, code, data, data, data, data];
        state.tr = segment(Self::TASK_SELECTOR, Self::TASK_DESCRIPTOR);
        state.ldtr.unusable = true;
        state.gdtr = TableState { base: self.gdt_base, limit: self.gdt_limit };
        state.idtr = TableState { base: 0, limit: 0 };
        state.cr0 = Self::CR0;
        state.cr3 = self.cr3;
        state.cr4 = Self::CR4;
        state.efer = Self::EFER;
        state
    }
}

/// A segment register from the descriptor that was loaded into it (Intel SDM volume 3, figure 3-8).
fn segment(selector: u16, descriptor: u64) -> SegmentState {
    let attributes = (descriptor >> 40) as u16 & 0xf0ff;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    let base = descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000;
    let granular = attributes & 1 << 15 != 0;
    let limit = if granular { limit << 12 | 0xfff } else { limit };
    SegmentState { selector, base, limit, attributes, unusable: false }
}
