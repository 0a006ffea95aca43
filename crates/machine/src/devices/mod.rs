//! The devices of the machine, a folder each.

#[cfg(test)]
mod hostile;

pub mod ioapic;
pub mod panic_notifier;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod virtio;
