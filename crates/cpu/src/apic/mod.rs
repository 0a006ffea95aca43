//! The local APIC (Intel SDM volume 3, chapter 11), in xAPIC and x2APIC mode.
//!
//! One tick of the timer's clock is one tick of the time-stamp counter, as KVM has it. LINT0, LINT1, the thermal, performance-counter
//! and machine-check entries hold values; nothing triggers them.

mod local;
mod message;
mod registers;
mod timer;

pub(crate) use local::Apic;
pub(crate) use message::Outgoing;
pub use message::{ApicMessage, DeliveryMode};
