//! Where replicas go. Pure: the cluster's state in, a place out; the time is an argument.
//!
//! Plans are advice. Two hosts may plan at once from the same state; what they then do is decided by compare-and-swap in the
//! store, and by the host that is asked to hold a replica.

mod basis;
mod demand;
mod failures;
mod leaving;
mod placement;
mod why_not;

pub use basis::Basis;
pub use demand::{Demand, Reserved, reserved};
pub use failures::{BACKOFF_MS_MAX, BACKOFF_MS_MIN, FORGIVEN_AFTER_MS, Failure, Failures};
pub use leaving::{Leaving, leaving};
pub use placement::{NoPlace, may_hold_secondary, place_primary, place_secondary};
pub use why_not::WhyNot;
