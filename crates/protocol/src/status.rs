//! [`Status`]: what a replica says of itself.

use spec::ReplicaId;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{DropReason, Generation, LossReason, StopReason};

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it is, or was when it stopped.
    pub role: Role,
    /// The last generation that it knows of; 0 for a secondary that was not told yet.
    pub generation: Generation,
    /// The secondary, if this is a primary that has one.
    pub secondary: Option<ReplicaId>,
    /// Whether the VM survives the loss of a host.
    pub protection: Protection,
    /// Why it does not, or may not.
    pub reason: Option<Reason>,
}

impl Status {
    /// Whether the VM survives the loss of a host.
    pub fn is_protected(&self) -> bool {
        self.protection == Protection::Protected
    }

    /// Whether it is being decided which replica goes on.
    pub fn is_undecided(&self) -> bool {
        matches!(self.reason, Some(Reason::Arbitrating(_) | Reason::StoreUnreachable | Reason::NotReady))
    }
}

/// What a replica is to its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It runs the VM.
    Primary,
    /// It holds the VM.
    Secondary,
}

/// Whether the VM survives the loss of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// The secondary holds all that was let out: it can take over.
    Protected,
    /// Not yet: a secondary is joining.
    Starting,
    /// No: there is no secondary.
    NeedSecondary,
    /// No: nobody wants it to.
    Disabled,
    /// The VM does not run here, and will not.
    NotRunning,
}

/// Why a VM is not protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It has not had a secondary.
    NoSecondaryYet,
    /// This replica was the secondary.
    TookOver,
    /// The first checkpoint is on its way.
    FirstCheckpoint,
    /// The store has not taken note of the secondary yet.
    Entitling,
    /// The other replica was lost, and it is not decided who goes on.
    Arbitrating(LossReason),
    /// The same, and the store does not answer.
    StoreUnreachable,
    /// The primary was lost, and this secondary does not compete for the VM, which it could not run now.
    NotReady,
    /// The secondary was lost.
    Lost(LossReason),
    /// The secondary is being dropped, or was.
    Dropped(DropReason),
    /// The other replica was asked to take over.
    HandOver,
    /// It has stopped.
    Stopped(StopReason),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSecondaryYet => f.pad("it has not had a secondary yet"),
            Self::TookOver => f.pad("this replica was the secondary, and has taken over"),
            Self::FirstCheckpoint => f.pad("the first checkpoint is on its way"),
            Self::Entitling => f.pad("the cluster store has not taken note of the secondary yet"),
            Self::Arbitrating(loss) => write!(f, "{loss}; who goes on is being decided"),
            Self::StoreUnreachable => f.pad("who goes on cannot be decided: the cluster store does not answer"),
            Self::NotReady => f.pad("the primary is lost, and this secondary could not run the VM"),
            Self::Lost(loss) => loss.fmt(f),
            Self::Dropped(reason) => reason.fmt(f),
            Self::HandOver => f.pad("the other replica was asked to take over"),
            Self::Stopped(reason) => reason.fmt(f),
        }
    }
}
