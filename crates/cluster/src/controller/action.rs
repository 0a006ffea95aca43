//! What is to be done, and why.

use std::collections::BTreeMap;
use std::fmt;

use spec::{HostName, ReplicaId, VmName};

use super::Idle;

/// What one host is to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Actions, at most one for each VM, in order of the VMs' names.
    pub actions: Vec<Planned>,
    /// Why nothing is done about the other VMs with a replica on the host.
    pub idle: BTreeMap<VmName, Idle>,
}

/// What is to be done about one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The VM.
    pub vm: VmName,
    /// What to do. Its [`Outcome`] is to be told to the controller, which plans nothing else for the VM meanwhile.
    pub action: Action,
    /// Why.
    pub why: Why,
}

/// What is to be done about a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reserve what a secondary needs on this host, let it prepare one, and tell the primary of it.
    Protect {
        /// The host.
        secondary: HostName,
    },
    /// Tell the primary to let its secondary go, and end the secondary.
    Unprotect,
    /// End the replica that the report was about.
    EndReplica,
    /// Give up what is reserved for a first copy.
    ReleaseReservation,
    /// Note in the VM's record that it is off.
    NotePowerOff,
}

/// Why something is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The VM is to have a secondary and has none.
    NeedsSecondary,
    /// Its protection is off.
    ProtectionOff,
    /// Its protection is suspended.
    ProtectionSuspended,
    /// The store says that another replica was started or has taken over.
    Superseded {
        /// The primary now.
        by: ReplicaId,
    },
    /// No primary has come to this secondary.
    NoPrimaryCame,
    /// The first copy is complete: from now on the claim reserves what the secondary needs.
    CopyComplete,
    /// There is no first copy under way.
    NoCopyUnderWay,
    /// The guest was powered off, which the record does not say yet.
    PoweredOff,
}

/// How an action has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It was not done, as what is wanted has changed meanwhile.
    NotWanted,
    /// It failed.
    Failed(String),
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.vm, self.action, self.why)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protect { secondary } => write!(f, "protect by host {secondary}"),
            Self::Unprotect => f.pad("let the secondary go"),
            Self::EndReplica => f.pad("end the replica"),
            Self::ReleaseReservation => f.pad("release the reservation"),
            Self::NotePowerOff => f.pad("note that it is off"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsSecondary => f.pad("it has no secondary"),
            Self::ProtectionOff => f.pad("protection is off"),
            Self::ProtectionSuspended => f.pad("protection is suspended"),
            Self::Superseded { by } => write!(f, "host {by} runs the VM now"),
            Self::NoPrimaryCame => f.pad("no primary came to it"),
            Self::CopyComplete => f.pad("the first copy is complete"),
            Self::NoCopyUnderWay => f.pad("no first copy is under way"),
            Self::PoweredOff => f.pad("the guest was powered off"),
        }
    }
}
