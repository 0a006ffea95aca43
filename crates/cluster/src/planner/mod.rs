//! Where replicas go, and what a host does next. Pure: the cluster's state in, a plan out; the time is an argument.
//!
//! Plans are advice. Two hosts may plan at once from the same state; what they then do is decided by compare-and-swap in the
//! store, and by the host that is asked to hold a replica.

mod actions;
mod demand;
mod failures;
mod placement;
mod why_not;

pub use actions::{Action, LocalReplica, Phase, Planned, WaitReason, next_actions};
pub use demand::{Demand, Reserved, reserved};
pub use failures::{BACKOFF_MS_MAX, BACKOFF_MS_MIN, FORGIVEN_AFTER_MS, Failure, Failures};
pub use placement::{NoPlace, place_primary, place_secondary};
pub use why_not::WhyNot;
