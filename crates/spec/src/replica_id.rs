//! [`ReplicaId`]: who a replica is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A replica of a VM, by the name of its host: a host has at most one replica of a VM at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(String);

impl ReplicaId {
    /// The replica on host `host`.
    pub fn new(host: impl Into<String>) -> Self {
        Self(host.into())
    }

    /// The host's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
