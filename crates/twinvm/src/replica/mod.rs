//! The process of one VM replica.

pub mod config;
pub mod control;
pub mod status;
