//! What a host does next about its VMs: what is wanted and what is seen go in, actions come out, with the reason for each and for
//! each thing not done. Pure: no I/O, no clock, no threads.
//!
//! What is wanted are the records that the API writes ([`ClusterState`](crate::records::ClusterState)); what is seen is the
//! [`HostReport`] of the host that asks. The [`Controller`] adds what it remembers: which actions are under way, and which hosts have
//! failed as secondaries. Nothing breaks when that is forgotten, as by a daemon that is killed: the next one finds what is there and
//! goes on from it.
//!
//! | type | is |
//! | --- | --- |
//! | [`HostReport`], [`ReplicaReport`] | what is seen |
//! | [`Controller`] | what decides |
//! | [`Plan`], [`Planned`], [`Action`] | what is to be done, and why |
//! | [`Idle`] | why nothing is done about a VM |
//! | [`Waiting`] | what an operation waits for that somebody asked for |
//! | [`consent`] | what a host may do with its replica when it is asked to start, prepare, drop or end one |
//! | [`RunLease`], [`Fence`] | for how long a host may run what others restart |
//! | [`Outcome`] | how an action that took its time has ended |
//!
//! What happens once, such as a start or a hand-over, is an [`Operation`](crate::records::Operation) in the VM's record, which stays there until it has
//! ended. Each run of a daemon decides its next [`Step`] from what it sees: a step whose end nobody came to note is done again, or found to be done.
//!
//! Plans are advice, as the planner's are: two hosts may decide at once from states that differ, and the compare-and-swap on a VM's claim
//! or the host that is asked to hold a replica has the last word. So whoever carries an action out reads the claim again where an
//! action on an old state would do harm.

mod action;
mod autostart;
pub mod consent;
mod decide;
mod idle;
mod look;
mod operation;
mod report;
mod restart;
mod run_lease;
mod search;
mod shutdown;

pub use action::{Action, Outcome, Plan, Planned, Step, Why};
pub use decide::{Controller, Settings};
pub use idle::Idle;
pub use operation::Waiting;
pub use report::{HostReport, Loss, LossCause, ReplicaReport, ReplicaState};
pub use restart::{BUDGET_SPAN_MS, RESTARTS_MAX};
pub use run_lease::{Fence, FenceStep, RENEWAL_MS, RUN_LEASE_MS, RunLease, STOP_BEFORE_MS};
pub use shutdown::SHUTDOWN_MS_MAX;
