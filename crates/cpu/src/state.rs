//! The neutral state of a virtual processor: what every engine can save and start from.
//!
//! The fields follow the architecture (Intel SDM volume 3), not an engine. Times are in ticks of the time-stamp
//! counter.

use serde::{Deserialize, Serialize};

use crate::msr;

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentState {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes (granularity already applied).
    pub limit: u32,
    /// Descriptor bits 40 to 55: type, S, DPL, P (bits 0 to 7), AVL, L, D/B, G (bits 12 to 15); bits 8 to 11 are zero.
    pub attributes: u16,
    /// Whether the register holds no usable segment (a null selector was loaded).
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// x87, MMX and SSE state, as FXSAVE lays it out by meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// Physical registers R0 to R7 (not stack order): 64-bit significand, then sign and exponent.
    pub registers: [(u64, u16); 8],
    /// Control word.
    pub control: u16,
    /// Status word, TOP in bits 11 to 13.
    pub status: u16,
    /// Abridged tag word: bit n set when physical register n is not empty.
    pub valid: u8,
    /// Last opcode (11 bits).
    pub last_opcode: u16,
    /// Last instruction pointer.
    pub last_instruction: u64,
    /// Last operand pointer.
    pub last_operand: u64,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

impl Default for FpuState {
    /// As after reset and FNINIT.
    fn default() -> Self {
        Self {
            registers: [(0, 0); 8],
            control: 0x37f,
            status: 0,
            valid: 0,
            last_opcode: 0,
            last_instruction: 0,
            last_operand: 0,
            xmm: [0; 16],
            mxcsr: 0x1f80,
        }
    }
}

/// A part of what XSAVE saves. The bytes are those of the standard format, which each component defines for itself; only where it stands in
/// the area differs between processors (Intel SDM volume 1, 13.4.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtendedState {
    /// Its bit in XCR0.
    pub component: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// An event that was being delivered, or waits to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PendingEvent {
    /// An exception with its error code, and CR2 or DR6 payload where it has one.
    Exception {
        /// Vector, 0 to 31.
        vector: u8,
        /// Error code, for vectors that push one.
        error_code: Option<u32>,
        /// Payload not yet written to CR2 or DR6.
        payload: Option<u64>,
    },
    /// An external interrupt that was taken from the APIC but not delivered.
    Interrupt {
        /// Vector, 16 to 255.
        vector: u8,
    },
}

/// Why interrupts are held off for one more instruction (Intel SDM volume 3, 6.8.3, and table 24-3: a processor takes up the first kind only
/// while RFLAGS.IF is set).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterruptShadow {
    /// STI set RFLAGS.IF.
    Sti,
    /// SS was loaded by MOV or POP; the stack pointer follows.
    MovSs,
}

/// What the processor is doing between instructions (ACPI and Intel multiprocessor terms).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Executes instructions.
    #[default]
    Running,
    /// HLT: waits for an interrupt.
    Halted,
    /// An application processor that waits for INIT.
    Uninitialized,
    /// INIT was received: waits for a start-up IPI.
    WaitForSipi,
}

/// The local APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicState {
    /// The 1 KiB register page in xAPIC layout (Intel SDM volume 3, table 11-1), as KVM_GET_LAPIC returns it: register n at byte
    /// 16 * n.
    pub registers: Vec<u8>,
    /// IA32_APIC_BASE.
    pub base_msr: u64,
    /// IA32_TSC_DEADLINE: 0 when disarmed.
    pub tsc_deadline: u64,
}

/// Everything a vCPU is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [SegmentState; 6],
    /// LDTR.
    pub ldtr: SegmentState,
    /// TR.
    pub tr: SegmentState,
    /// GDTR.
    pub gdtr: TableState,
    /// IDTR.
    pub idtr: TableState,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8: bits 4 to 7 of the task priority.
    pub cr8: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// DR0 to DR3, DR6, DR7.
    pub debug: [u64; 6],
    /// x87 and SSE.
    pub fpu: FpuState,
    /// What XSAVE saves beyond x87 and SSE, ascending by component; what is as after reset is left out.
    pub extended: Vec<ExtendedState>,
    /// Other model-specific registers that the guest can set, by index, ascending.
    pub msrs: Vec<(u32, u64)>,
    /// The local APIC.
    pub apic: ApicState,
    /// Time-stamp counter at the moment of saving, including IA32_TSC_ADJUST.
    pub tsc: u64,
    /// Running, halted or not started.
    pub run_state: RunState,
    /// An event on its way.
    pub pending: Option<PendingEvent>,
    /// What holds interrupts off for one more instruction.
    pub interrupt_shadow: Option<InterruptShadow>,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// Instructions retired since power-on (0 on engines that do not count).
    pub instructions: u64,
}

impl VcpuState {
    /// A processor after power-on reset (Intel SDM volume 3, table 10-1): real mode at F000:FFF0. Processor 0 runs, the
    /// others wait to be started.
    pub fn reset(number: u32) -> Self {
        let data = SegmentState { selector: 0, base: 0, limit: 0xffff, attributes: 0x93, unusable: false };
        let code = SegmentState { selector: 0xf000, base: 0xffff_0000, attributes: 0x9b, ..data };
        Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: 2,
            segments: [data, code, data, data, data, data],
            ldtr: SegmentState { attributes: 0x82, ..data },
            tr: SegmentState { attributes: 0x8b, ..data },
            gdtr: TableState { base: 0, limit: 0xffff },
            idtr: TableState { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: 1,
            efer: 0,
            debug: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            fpu: FpuState::default(),
            extended: Vec::new(),
            msrs: msr::reset(),
            apic: ApicState::reset(number),
            tsc: 0,
            run_state: if number == 0 { RunState::Running } else { RunState::WaitForSipi },
            pending: None,
            interrupt_shadow: None,
            nmi_blocked: false,
            nmi_pending: false,
            instructions: 0,
        }
    }
}

impl ApicState {
    /// A local APIC after reset, with this APIC ID; processor 0 is the bootstrap processor.
    pub fn reset(id: u32) -> Self {
        let mut registers = vec![0; 1024];
        let mut set = |offset: usize, value: u32| registers[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        set(0x20, id << 24);
        set(0x30, 0x0005_0014);
        set(0xe0, u32::MAX);
        set(0xf0, 0xff);
        for lvt in [0x320, 0x330, 0x340, 0x350, 0x360, 0x370] {
            set(lvt, 1 << 16);
        }
        let bootstrap = u64::from(id == 0) << 8;
        Self { registers, base_msr: 0xfee0_0000 | 1 << 11 | bootstrap, tsc_deadline: 0 }
    }
}
