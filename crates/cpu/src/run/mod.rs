//! [`Processors`]: all processors of a machine, run in deterministic turns on one thread.

mod convert;
mod execute;
mod processors;
mod registers;
mod state;

pub use processors::{CpuConfig, Exit, Processors, TSC_HZ, VCPUS_MAX};
pub use registers::Registers;
pub use state::{ProcessorsState, StateError};
