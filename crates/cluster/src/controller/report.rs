//! What a host sees of itself.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{DropReason, Generation, LossReason, Protection, Reason};
use spec::{CpuProfile, HostName, VmName};

use crate::records::VmState;

/// What one host sees of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// The host.
    pub host: HostName,
    /// Whether the machine has booted since VMs were started with it last: those are to be started now that are to be started with it.
    pub has_booted: bool,
    /// Whether its daemon is about to end: it takes nothing on.
    pub is_stopping: bool,
    /// Whether the VMs that run here are to end before it does, and the secondaries.
    pub stops_vms: bool,
    /// For how long the host has held its run lease without a break, in ms; none if it has none.
    pub run_lease_ms: Option<u64>,
    /// The replicas whose processes run here.
    pub replicas: BTreeMap<VmName, ReplicaReport>,
    /// VMs of which no replica runs here, and whose last one here ended because the guest was powered off.
    pub powered_off: BTreeSet<VmName>,
}

impl HostReport {
    /// Whether a VM is at home here, and its primary runs.
    pub(super) fn runs(&self, vm: &VmState) -> bool {
        let replica = self.replicas.get(&vm.record.name).map(|replica| &replica.state);
        self.host.is(&vm.claim.claim.primary)
            && replica.is_some_and(|state| !matches!(state, ReplicaState::Booting | ReplicaState::Secondary { .. }))
    }
}

/// What a host sees of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// The generation that the replica acts in; 0 if it does not know.
    pub generation: Generation,
    /// What it is, and how that goes.
    pub state: ReplicaState,
    /// A primary's: what the guest was told that its processors are, if that is known.
    pub processor: Option<CpuProfile>,
}

/// What a replica is, and how that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// It has not said yet what it is, or its VM is being started.
    Booting,
    /// A primary without a secondary.
    Alone {
        /// How it lost the secondary that it had or was to have, if it had one.
        loss: Option<Loss>,
    },
    /// A primary whose first copy is under way.
    Syncing {
        /// The host that is given the copy.
        to: HostName,
    },
    /// A primary whose VM survives the loss of this host.
    Protected {
        /// The secondary's host.
        by: HostName,
    },
    /// A secondary.
    Secondary {
        /// For how long no primary has been connected to it, in ms.
        unclaimed_ms: u64,
    },
}

impl ReplicaState {
    /// What a primary is that says this of its protection, with a secondary on host `peer` or on the way to it. `loss`: how it lost the one before.
    pub fn of_primary(protection: Protection, peer: Option<HostName>, loss: Option<Loss>) -> Self {
        match (protection, peer) {
            (Protection::Protected, Some(by)) => Self::Protected { by },
            // The protocol hears of a secondary when its first copy is done: until then it says what came of the one before, as that protection was turned off.
            (Protection::Starting | Protection::NeedSecondary | Protection::Disabled, Some(to)) => Self::Syncing { to },
            // The VM itself is being started or ends.
            (Protection::Protected | Protection::Starting | Protection::NotRunning, _) => Self::Booting,
            (Protection::NeedSecondary | Protection::Disabled, _) => Self::Alone { loss },
        }
    }
}

/// How a primary lost its secondary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What kind of loss it was.
    pub cause: LossCause,
    /// More, in words.
    pub text: String,
}

/// Kinds of loss, by what they say about the secondary's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// Somebody asked for it: nothing.
    Request,
    /// It fell silent. One that was killed or cut off after a good while is as good as any when it answers again; one that never became a
    /// secondary may fall silent again.
    Silence,
    /// It failed, or could not keep up, and may do so again.
    Fault,
}

impl LossCause {
    /// What kind of loss it was that a primary gives this reason for.
    pub fn of(reason: Reason) -> Self {
        match reason {
            Reason::NotReady | Reason::Dropped(DropReason::TooSlow) => Self::Fault,
            Reason::Arbitrating(loss) | Reason::Lost(loss) => match loss {
                LossReason::Closed | LossReason::Silent => Self::Silence,
                LossReason::Protocol | LossReason::Failed | LossReason::Diverged => Self::Fault,
            },
            Reason::Dropped(DropReason::Off | DropReason::Suspend | DropReason::Restart)
            | Reason::HandOver
            | Reason::Stopped(_) => Self::Request,
            Reason::NoSecondaryYet
            | Reason::FirstCheckpoint
            | Reason::Entitling
            | Reason::TookOver
            | Reason::StoreUnreachable => Self::Silence,
        }
    }

    /// Whether it is held against the host; `during_sync`: it had not become a secondary yet.
    pub(super) fn is_blamed(self, during_sync: bool) -> bool {
        match self {
            Self::Request => false,
            Self::Silence => during_sync,
            Self::Fault => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_copy_is_under_way_whatever_became_of_the_secondary_before() {
        let to: HostName = "b".parse().unwrap();
        for protection in [Protection::Starting, Protection::NeedSecondary, Protection::Disabled] {
            let state = ReplicaState::of_primary(protection, Some(to.clone()), None);
            assert_eq!(state, ReplicaState::Syncing { to: to.clone() }, "{protection:?}");
        }
        for protection in [Protection::NeedSecondary, Protection::Disabled] {
            assert_eq!(ReplicaState::of_primary(protection, None, None), ReplicaState::Alone { loss: None });
        }
    }
}
