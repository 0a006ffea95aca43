//! How far the first copy to a secondary is.

use protocol::{SlowLink, Slowed};
use serde::{Deserialize, Serialize};

/// Parts of the first copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The two agree on what the VM is.
    #[default]
    Connecting,
    /// Both sides find out what their disks have in common.
    ComparingDisks,
    /// What differs on disks is copied.
    CopyingDisks,
    /// Memory is copied, while the guest runs and changes it.
    CopyingMemory,
    /// What the guest changed meanwhile is copied.
    CopyingChanges,
    /// The first checkpoint is under way.
    FirstCheckpoint,
    /// Done: checkpoints follow each other.
    Mirroring,
}

/// How far the first copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes of this phase that are done.
    pub done_bytes: u64,
    /// Bytes of this phase, as far as is known.
    pub total_bytes: u64,
    /// The guest is slowed down for it.
    pub slowed: Option<Slowed>,
    /// The link is slower than protection needs.
    pub slow_link: Option<SlowLink>,
}
