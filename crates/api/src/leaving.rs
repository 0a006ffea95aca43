//! [`HostLeft`]: what becomes of a host that leaves the cluster.

use serde::{Deserialize, Serialize};

/// A host has left the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLeft {
    /// What of it is left behind, and how to remove it; nothing if nothing is.
    #[serde(default)]
    pub remains: Option<String>,
}
