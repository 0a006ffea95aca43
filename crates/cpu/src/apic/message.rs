//! What APICs send each other.

/// How an interrupt message is delivered (SDM table 11-18 and I/O APIC redirection entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// To all processors of the destination.
    Fixed,
    /// To the processor of the destination that does the least urgent work.
    LowestPriority,
    /// As a non-maskable interrupt.
    Nmi,
    /// Resets the processor, which then waits for a start-up message.
    Init,
    /// Starts a processor that waits for it at page `vector`.
    StartUp,
}

impl DeliveryMode {
    /// From the three-bit field of interrupt command and redirection registers. `None` for modes that nothing here has: SMI, ExtINT.
    pub fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => return None,
        })
    }
}

/// An interrupt message on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// Physical: an APIC ID, 0xff or 0xffff_ffff for all. Logical: a set, as the receivers' logical destination registers define it.
    pub destination: u32,
    /// Whether `destination` is logical.
    pub logical: bool,
    /// How it is delivered.
    pub mode: DeliveryMode,
    /// Interrupt vector, 16 to 255; for [`DeliveryMode::StartUp`] a page number.
    pub vector: u8,
    /// Level-triggered: its end is reported to [`crate::Bus::end_of_interrupt`].
    pub level: bool,
}

/// What a local APIC sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    To(ApicMessage),
    ToSelf(ApicMessage),
    ToAll(ApicMessage),
    ToOthers(ApicMessage),
}
