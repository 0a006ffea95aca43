//! One VM: engines, buses, interrupt controllers, devices, boot, pause and resume, snapshot.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod clock;
pub mod devices;
pub mod engine;
pub mod events;
pub mod irq;
pub mod map;
pub mod snapshot;
pub mod spec;
