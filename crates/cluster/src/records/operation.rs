use std::fmt;

use protocol::Generation;
use serde::{Deserialize, Serialize};
use spec::{FtMode, HostName, SnapshotName};

use super::UnknownFields;

/// Something that somebody has asked for, that happens once. It stays in the VM's record until it has ended, whatever becomes of the daemon that was
/// asked, and then until the next one takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Tells it from earlier ones of the VM: each has the next number.
    pub id: u64,
    /// What is to happen, with what whoever asked has said about it.
    pub kind: OperationKind,
    /// The host that is to carry it out, if that is not the VM's home, whichever that is by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// The VM's generation when it was asked for. A start says it anew when it begins.
    pub generation: Generation,
    /// A start: it was noted that the VM is on, and that the claim is about to be won.
    #[serde(default)]
    pub has_begun: bool,
    /// How it has ended; none while it is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<OperationResult>,
    /// What a newer version has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum OperationKind {
    /// Start the VM.
    Start {
        /// From the copy of the disks that the host has, though another host's is newer or may be.
        #[serde(default)]
        from_stale_disks: bool,
        /// From this snapshot instead of the disks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<SnapshotName>,
    },
    /// Press its power button, or pull its plug.
    Stop {
        /// Pull the plug.
        force: bool,
    },
    /// Shut it down as [`Stop`](Self::Stop) does, and start it again.
    Reboot {
        /// Pull the plug.
        force: bool,
        /// How long the guest may take to shut down, in ms. After that it is left to run.
        patience_ms: u64,
    },
    /// Hand it over to its secondary.
    Switchover {
        /// The host that it is on.
        from: HostName,
    },
    /// Kill its primary's process.
    Failover {
        /// The host that it is on.
        from: HostName,
    },
    /// Let its secondary go; another one is made.
    RestartSecondary,
    /// Protect it in another mode from now on, which its primary may find impossible.
    ChangeMode {
        /// The mode.
        mode: FtMode,
    },
    /// Move it to another host while it runs, with its disks: that host becomes its secondary's, and is handed the VM.
    Migrate {
        /// The host.
        to: HostName,
    },
}

/// How an operation has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum OperationResult {
    /// It is done.
    Done,
    /// It was not done.
    Failed {
        /// Why the operation was not done.
        why: String,
    },
}

impl OperationKind {
    /// As people call it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Reboot { .. } => "reboot",
            Self::Switchover { .. } => "switchover",
            Self::Failover { .. } => "failover",
            Self::RestartSecondary => "restart of the secondary",
            Self::ChangeMode { .. } => "change of the FT mode",
            Self::Migrate { .. } => "migration",
        }
    }

    /// Whether the VM is to be shut down: it needs no secondary meanwhile.
    pub fn ends_the_guest(&self) -> bool {
        matches!(self, Self::Stop { .. } | Self::Reboot { .. })
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Migrate { to } => write!(f, "{} to host {to}", self.label()),
            Self::ChangeMode { mode } => write!(f, "{} to {mode}", self.label()),
            _ => f.pad(self.label()),
        }
    }
}
