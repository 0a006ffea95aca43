use spec::{HostName, VmName};

use super::placement::{NoPlace, place_secondary};
use super::{Failures, WhyNot};
use crate::records::{ClusterState, Power, VmState};

/// How far apart attempts are when no host says when to try again, in ms.
const LOOK_AGAIN_MS: u64 = 1_000;

/// A replica in the role of primary that runs on the planning host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReplica {
    /// Its VM.
    pub vm: VmName,
    /// How it is protected.
    pub phase: Phase,
    /// Since when, in ms since 1970.
    pub since_unix_ms: u64,
}

/// How a running VM is protected, as its primary knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not at all.
    Alone,
    /// A host is being given its first copy.
    Syncing {
        /// The host.
        to: HostName,
    },
    /// It survives the loss of its host.
    Protected {
        /// The secondary's host.
        by: HostName,
    },
}

/// What a host is to do about one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The VM.
    pub vm: VmName,
    /// What to do.
    pub action: Action,
}

/// What is to be done about a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give it a secondary on this host.
    Protect {
        /// The host.
        secondary: HostName,
    },
    /// Let its secondary go: protection is off or suspended.
    Unprotect,
    /// Nothing now.
    Wait {
        /// Why.
        reason: WaitReason,
        /// Since when it is as it is, in ms since 1970.
        since_unix_ms: u64,
        /// When to plan again even if nothing has changed, in ms since 1970; none if there is no need.
        again_unix_ms: Option<u64>,
    },
}

/// Why nothing is to be done about a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// It is as it should be.
    Protected {
        /// The secondary's host.
        by: HostName,
    },
    /// The first sync is under way.
    Syncing {
        /// The host that gets it.
        to: HostName,
    },
    /// Protection is off.
    Disabled,
    /// Protection is suspended.
    Suspended,
    /// It is to be powered off.
    PoweringOff,
    /// The store says that another host runs it: this replica is about to stop.
    Superseded,
    /// No host fits, each for its reason.
    NoHost(Vec<(HostName, WhyNot)>),
    /// Its record or spec is not there or not understood.
    Unreadable(String),
}

/// What `host` is to do about each VM that it runs, so that each has a secondary that is to have one.
pub fn next_actions(
    state: &ClusterState,
    host: &HostName,
    local: &[LocalReplica],
    failures: &Failures,
    now_unix_ms: u64,
) -> Vec<Planned> {
    let plan = |replica: &LocalReplica| Planned {
        vm: replica.vm.clone(),
        action: match state.vm(&replica.vm) {
            Some(vm) => next_action(state, host, vm, replica, failures, now_unix_ms),
            None => wait(WaitReason::Unreadable(format!("no record of VM {} can be read", replica.vm)), replica, None),
        },
    };
    local.iter().map(plan).collect()
}

fn next_action(
    state: &ClusterState,
    host: &HostName,
    vm: &VmState,
    replica: &LocalReplica,
    failures: &Failures,
    now_unix_ms: u64,
) -> Action {
    if !host.is(&vm.claim.claim.primary) {
        return wait(WaitReason::Superseded, replica, None);
    }
    let ft = &vm.record.ft;
    match (&replica.phase, ft.is_wanted()) {
        (Phase::Syncing { .. } | Phase::Protected { .. }, false) => Action::Unprotect,
        (Phase::Alone, false) if ft.enabled => wait(WaitReason::Suspended, replica, None),
        (Phase::Alone, false) => wait(WaitReason::Disabled, replica, None),
        (Phase::Syncing { to }, true) => wait(WaitReason::Syncing { to: to.clone() }, replica, None),
        (Phase::Protected { by }, true) => wait(WaitReason::Protected { by: by.clone() }, replica, None),
        (Phase::Alone, true) if vm.record.power == Power::Off => wait(WaitReason::PoweringOff, replica, None),
        (Phase::Alone, true) => match place_secondary(vm, state, failures, now_unix_ms) {
            Ok(secondary) => Action::Protect { secondary },
            Err(NoPlace::Spec(error)) => wait(WaitReason::Unreadable(error.to_string()), replica, None),
            Err(NoPlace::Hosts(refusals)) => {
                let next_retry_ms = refusals.iter().filter_map(|(_, why)| match why {
                    WhyNot::FailedLately { retry_in_ms, .. } => Some(*retry_in_ms),
                    _ => None,
                });
                // Leases end and are renewed without anything else changing.
                let again_ms = next_retry_ms.min().unwrap_or(LOOK_AGAIN_MS).min(LOOK_AGAIN_MS);
                wait(WaitReason::NoHost(refusals), replica, Some(now_unix_ms.saturating_add(again_ms)))
            }
        },
    }
}

fn wait(reason: WaitReason, replica: &LocalReplica, again_unix_ms: Option<u64>) -> Action {
    Action::Wait { reason, since_unix_ms: replica.since_unix_ms, again_unix_ms }
}
