//! The process of one VM replica.

pub mod broker;
pub mod config;
mod console;
pub mod control;
pub mod disk_copy;
pub mod end;
mod ends;
mod figures;
pub mod process;
pub mod process_log;
pub(crate) mod report;
