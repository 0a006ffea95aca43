//! [`Processors`]: all processors of a machine, run in deterministic turns on one thread.

mod config;
mod convert;
mod execute;
mod messages;
mod processors;
mod registers;
mod state;
mod turn;

pub use config::CpuConfig;
pub use processors::{Exit, Processors, VCPUS_MAX};
pub use registers::Registers;
pub use state::{ProcessorsState, StateError};
