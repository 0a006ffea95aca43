//! Clients that measure a Redis from outside, and know nothing of what it runs on.
//!
//! Each has one TCP connection and never opens another in its place: a connection that breaks is a finding.

mod connection;
mod gaps;
mod histogram;
mod rate;
mod resp;
mod runner;
mod workload;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use connection::{Broken, Connection};
pub use histogram::Histogram;
pub use resp::Reply;
pub use runner::{Load, LoadOptions, Outcome};
pub use workload::{Counter, KeyWrites, PageWrites, Workload};
