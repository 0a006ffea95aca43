//! The process of one VM replica.

pub mod config;
mod console;
pub mod control;
mod ends;
pub mod process;
mod report;
pub mod status;
