//! Why nothing is done about a VM.

use std::fmt;

use spec::{HostName, ReplicaId};

use super::autostart::TRIES_MAX;
use super::restart::BUDGET_SPAN_MS;
use crate::planner::WhyNot;

/// Why nothing is done about a VM now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It is as it should be.
    Protected {
        /// The secondary's host.
        by: HostName,
    },
    /// The first copy is under way.
    Syncing {
        /// The host that is given the copy.
        to: HostName,
    },
    /// An action is being carried out.
    UnderWay,
    /// The primary was told of its secondary just now.
    Connecting {
        /// The secondary's host.
        to: HostName,
    },
    /// The replica does not say yet what it is.
    Booting,
    /// It is a secondary, and belongs to a primary elsewhere.
    Secondary,
    /// Protection is off.
    Disabled,
    /// Protection is suspended.
    Suspended,
    /// It is to be powered off.
    PoweringOff,
    /// It could not be started with the machine, which is tried again.
    StartsAgain {
        /// How often it was tried.
        tries: u32,
    },
    /// It was restarted so often lately that it is left as it is.
    RestartedOften {
        /// How often.
        restarts: usize,
    },
    /// The host's daemon is about to end.
    HostStopping,
    /// The host is being stopped with its VMs, and the guest is shutting down.
    ShuttingDown,
    /// Its protection is off, it does not run here, and its secondary may be about to take it over.
    Undecided {
        /// The secondary's replica.
        by: ReplicaId,
    },
    /// The last attempt has failed just now.
    RetrySoon {
        /// What went wrong.
        message: String,
    },
    /// Other first copies of this host come first.
    Queued {
        /// How many of those that wait come before it.
        ahead: usize,
        /// How many are under way.
        under_way: usize,
    },
    /// No host fits, each for its reason.
    NoHost(Vec<(HostName, WhyNot)>),
    /// The store names another primary: this replica is about to end by itself.
    Superseded {
        /// The primary now.
        by: ReplicaId,
    },
    /// The store names another primary, but of an earlier generation than the replica's: what is known of the store is out of date.
    StoreIsBehind,
    /// Its record or spec is not there or not understood.
    Unreadable(String),
}

impl Idle {
    /// What keeps the VM from being protected as it should be, for whoever looks at it; nothing if nothing does.
    pub fn obstacle(&self) -> Option<String> {
        match self {
            Self::NoHost(_) | Self::Queued { .. } | Self::RetrySoon { .. } | Self::Unreadable(_) => {
                Some(self.to_string())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protected { by } => write!(f, "protected by host {by}"),
            Self::Syncing { to } => write!(f, "the first copy to host {to} is under way"),
            Self::UnderWay => f.pad("an action is under way"),
            Self::Connecting { to } => write!(f, "it is connecting to host {to}"),
            Self::Booting => f.pad("the replica is being started"),
            Self::Secondary => f.pad("it is a secondary"),
            Self::Disabled => f.pad("protection is off"),
            Self::Suspended => f.pad("protection is suspended"),
            Self::PoweringOff => f.pad("it is being powered off"),
            Self::StartsAgain { tries } => {
                write!(f, "it is to be started with the machine: {tries} of {TRIES_MAX} tries have failed")
            }
            Self::RestartedOften { restarts } => {
                let minutes = BUDGET_SPAN_MS / 60_000;
                write!(
                    f,
                    "it was restarted {restarts} times within {minutes} min, and is left off: `twinvm vm start` starts it"
                )
            }
            Self::HostStopping => f.pad("the host is being stopped"),
            Self::ShuttingDown => f.pad("the host is being stopped with its VMs, and the guest is shutting down"),
            Self::Undecided { by } => write!(f, "host {by} may be about to take the VM over"),
            Self::RetrySoon { message } => f.pad(message),
            Self::Queued { ahead, under_way } => {
                write!(f, "it waits for its turn: first copies under way: {under_way}, VMs before it: {ahead}")
            }
            Self::NoHost(refusals) => {
                let words: Vec<String> = refusals.iter().map(|(host, why)| format!("host {host} {why}")).collect();
                if words.is_empty() { f.pad("there is no other host") } else { f.pad(&words.join("; ")) }
            }
            Self::Superseded { by } => write!(f, "host {by} runs the VM now, and this replica is about to end"),
            Self::StoreIsBehind => f.pad("the store does not say yet what the replica says"),
            Self::Unreadable(message) => f.pad(message),
        }
    }
}
