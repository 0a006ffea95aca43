use super::Failures;
use crate::records::{BootTime, ClusterState};

/// What a plan is made from.
#[derive(Clone, Copy)]
pub struct Basis<'a> {
    /// The cluster, as it is known.
    pub state: &'a ClusterState,
    /// Hosts that have failed as secondaries lately.
    pub failures: &'a Failures,
    /// The time.
    pub now: &'a BootTime,
}
