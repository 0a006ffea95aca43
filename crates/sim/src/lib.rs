//! Seeded simulation of the replication protocol under faults.
//!
//! A schedule is a life of a VM on two or three hosts, of which everything follows from a seed: delays, clocks, what goes wrong and when. The
//! replicas are [`replication::protocol::Replica`]s; what `replication::mirror` does around them is imitated, with time that is simulated.
//! After every step the promises of the protocol must hold ([`Violation`]); and once nothing goes wrong any more, the VM must get protected
//! again.

mod coverage;
mod daemons;
mod faults;
mod history;
mod mutation;
mod network;
mod primary;
mod process;
mod random;
mod schedule;
mod secondary;
mod soak;
mod store;
mod time;
mod violation;
mod world;

pub use coverage::{Coverage, Occurrence};
pub use mutation::Mutation;
pub use schedule::{Outcome, Schedule};
pub use soak::{Failure, Soak, SoakReport};
pub use violation::Violation;
