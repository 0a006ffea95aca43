//! [`ReplicaEnd`]: what a replica leaves when it has ended.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use storage::plain_file;

/// Longest file in which a replica says why it has ended.
const BYTES_MAX: u64 = 64 << 10;

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
        /// Why the replica could not go on.
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
        plain_file::write_anew(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// What a replica left, if it came to leave anything. One that was broken into may have left something else there, which counts as nothing.
    pub fn left_in(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&plain_file::read(&Self::path(folder), BYTES_MAX).ok()?).ok()
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

    /// The folder is the VM's user's, whose replica may have been broken into.
    #[test]
    fn what_a_hostile_replica_leaves_is_not_waited_for_nor_followed_nor_read_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let (end, other) = (ReplicaEnd::path(folder.path()), folder.path().join("other"));
        let text = serde_json::to_string(&ReplicaEnd::PoweredOff).unwrap();
        fs::write(&other, &text).unwrap();
        let left = || ReplicaEnd::left_in(folder.path());
        std::os::unix::fs::symlink(&other, &end).unwrap();
        assert_eq!(left(), None, "a link, to a file of somebody else's");
        // Nor is what the daemon writes in its place written through the link.
        ReplicaEnd::PlugPulled.leave(folder.path()).unwrap();
        assert_eq!((left(), fs::read_to_string(&other).unwrap()), (Some(ReplicaEnd::PlugPulled), text.clone()));
        fs::remove_file(&end).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &end, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(left(), None, "a pipe, which nobody writes to");
        fs::remove_file(&end).unwrap();
        fs::write(&end, &text).unwrap();
        assert_eq!(left(), Some(ReplicaEnd::PoweredOff));
        // The same, and more blanks behind it than fit into memory.
        fs::OpenOptions::new().append(true).open(&end).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(left(), None, "without end");
    }
}
