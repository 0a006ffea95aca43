//! [`ApicMessage`].

/// What a local APIC does with an interrupt message (Intel SDM 3A 11.5.1, "delivery mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// To all destinations.
    Fixed,
    /// To the destination that runs at the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// Reset of the processor.
    Init,
    /// As if from an external 8259A.
    ExtInt,
    /// One of the two encodings without meaning; local APICs ignore it.
    Reserved,
}

impl DeliveryMode {
    /// The mode of a three-bit encoding.
    pub fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            7 => Self::ExtInt,
            _ => Self::Reserved,
        }
    }
}

/// An interrupt on its way to the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// Identifier of a local APIC (0xff: all of them), or in logical mode a set of them.
    pub destination: u8,
    /// Whether `destination` is to be matched with the logical destination registers.
    pub logical: bool,
    /// What is delivered.
    pub delivery_mode: DeliveryMode,
    /// Vector.
    pub vector: u8,
    /// Level-triggered: the local APIC says when the processor has finished ([`super::IoApic::end_of_interrupt`]).
    pub level: bool,
}
