//! How running an instruction can end other than by going on to the next one.

/// Why a block ended before (or with) an op.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The instruction retired and set [`Cpu::rip`](crate::core::Cpu::rip).
    Branch,
    /// The instruction retired and changed something the run loop caches (interrupt flag, mode, paging, time): leave the
    /// block; RIP is the next instruction.
    Sync,
    /// The instruction did not retire: deliver [`Cpu::fault`](crate::core::Cpu::fault) with RIP at this instruction.
    Fault,
    /// A string instruction did part of its work: it counts as one instruction and RIP stays at it.
    Repeat,
    /// The instruction retired, set [`Cpu::rip`](crate::core::Cpu::rip) and changed something the run loop caches (privilege, mode, interrupt flag).
    Transfer,
    /// The instruction did nothing yet: run it again, alone, with [`Cpu::alone`](crate::core::Cpu::alone) set. Raised by memory accesses that
    /// reach a device or overwrite decoded code, so that everything such an access may cause finds exact counts and takes effect
    /// before the next instruction. Handlers pass it on like a fault.
    Alone,
    /// HLT retired: RIP is the next instruction.
    Halt,
    /// PAUSE retired: a good place to end this vCPU's turn; RIP is the next instruction.
    Pause,
    /// An exception could not be delivered, nor the double fault: the processor is shut down.
    Shutdown,
}

/// An exception on its way to delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub vector: u8,
    /// `None` for vectors that push none.
    pub error_code: Option<u32>,
    /// For #PF, and for #GP of an address that is not canonical: the linear address. Else 0.
    pub address: u64,
}

/// Exception vectors (Intel SDM volume 3, table 6-1).
pub(crate) mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const XM: u8 = 19;
}
