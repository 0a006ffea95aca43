//! One VM: engines, buses, interrupt controllers, devices, boot, pause and resume, snapshot.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod clock;
pub mod control;
pub mod device_meter;
pub mod devices;
pub mod digest;
pub mod engine;
pub mod events;
pub mod generation;
pub mod input;
pub mod irq;
pub mod map;
pub mod platform;
pub mod probe;
pub mod snapshot;
pub mod triple_fault;
pub mod vm;
