//! Where replicas go. Pure: the cluster's state in, a place out; the time is an argument.
//!
//! Plans are advice. Two hosts may plan at once from the same state; what they then do is decided by compare-and-swap in the
//! store, and by the host that is asked to hold a replica.

mod admission;
mod basis;
mod demand;
mod failures;
mod leaving;
mod loss;
mod placement;
mod restart;
mod why_not;

pub use admission::{NotAdmitted, admits};
pub use basis::Basis;
pub use demand::{Demand, Reserved, Room};
pub use failures::{BACKOFF_MS_MAX, BACKOFF_MS_MIN, FORGIVEN_AFTER_MS, Failure, Failures};
pub use leaving::{Leaving, leaving};
pub use loss::{AfterLoss, after_loss};
pub use placement::{NoPlace, may_hold_secondary, place_primary, place_secondary};
pub(crate) use placement::{may_hold_secondary_in, place_secondary_in};
pub use restart::{Restarts, has_lost_its_host, may_restart, place_restarts};
pub use why_not::WhyNot;
