//! [`ReplicaEnd`]: what a replica leaves when it has ended.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Why a replica process has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "kebab-case")]
pub enum ReplicaEnd {
    /// The guest powered itself off.
    PoweredOff,
    /// Told to: the plug was pulled.
    PlugPulled,
    /// The other replica goes on alone, or the primary handed over. What this one's disks hold is out of date.
    LostArbitration {
        /// How it came to that.
        message: String,
    },
    /// The primary let this secondary go, or was lost before it was entitled to take over.
    Released {
        /// How it came to that.
        message: String,
    },
    /// It could not go on.
    Failed {
        /// Why.
        message: String,
    },
}

impl ReplicaEnd {
    /// Where a replica leaves it in its VM folder.
    fn path(folder: &Path) -> PathBuf {
        folder.join("ended.json")
    }

    /// Leaves it for the host daemon, as the last thing that the process does.
    pub fn leave(&self, folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        let text = serde_json::to_string(self).context("cannot write JSON")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// What a replica left, if it came to leave anything.
    pub fn left_in(folder: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(Self::path(folder)).ok()?).ok()
    }

    /// Takes away what an earlier replica left.
    pub fn clear(folder: &Path) {
        // Not being there is the usual case; one that cannot be removed will be overwritten.
        let _ = fs::remove_file(Self::path(folder));
    }
}

impl fmt::Display for ReplicaEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::PlugPulled => f.write_str("the plug was pulled"),
            Self::LostArbitration { message } => write!(f, "the other replica goes on: {message}"),
            Self::Released { message } => write!(f, "released: {message}"),
            Self::Failed { message } => write!(f, "failed: {message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_replica_leaves_is_found_and_cleared() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ReplicaEnd::left_in(folder.path()), None);
        let end = ReplicaEnd::Failed { message: "no disk".to_owned() };
        end.leave(folder.path()).unwrap();
        assert_eq!(ReplicaEnd::left_in(folder.path()), Some(end));
        ReplicaEnd::clear(folder.path());
        assert_eq!(ReplicaEnd::left_in(folder.path()), None);
    }
}
