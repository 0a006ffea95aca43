//! Seeded simulation of the replication protocol, and of what hosts decide, under faults.
//!
//! A schedule is a life of a VM on two or three hosts, of which everything follows from a seed: delays, clocks, what goes wrong and when. The
//! replicas decide by the shipped crate [`protocol`], the hosts' daemons by the shipped [`cluster::controller`]; what carries that out, in the place of
//! `replication::driver` and of `host`, has time that is simulated.
//! After every step the promises of the protocol must hold ([`Violation`]); and once nothing goes wrong any more, the VM must get protected
//! again. [`Mutation`]s are mistakes made on purpose, to see that they are found.
//!
//! ```text
//! cargo test --profile checked -p sim                                              # many schedules, all mutations
//! TWINVM_SIM_SCHEDULES=5000000 cargo test --profile checked -p sim schedule        # a soak; TWINVM_SIM_FIRST_SEED says where to begin
//! TWINVM_SIM_SEED=7 cargo test --profile checked -p sim replay -- --nocapture      # one schedule, and all that happens in it
//! ```

mod agenda;
mod controller;
mod copying;
mod coverage;
mod daemon;
mod daemons;
mod disks;
mod ends;
mod faults;
mod history;
mod identity;
mod mutation;
mod network;
mod operator;
mod others;
mod power;
mod process;
mod random;
mod replica;
mod restarts;
mod schedule;
mod soak;
mod store;
mod strangers;
mod time;
mod violation;
mod world;

pub use coverage::{Coverage, Occurrence};
pub use mutation::Mutation;
pub use restarts::{RestartMutation, RestartOutcome, RestartSchedule, RestartViolation};
pub use schedule::{Outcome, Schedule};
pub use soak::{Failure, Soak, SoakReport};
pub use violation::Violation;
