//! What a replica says of itself while it runs.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use spec::{EngineKind, FtMode};

use crate::figures::Figures;
use crate::time::{Elapsed, unix_ms_now};

/// What a replica is to its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It runs the VM: the world sees its output.
    Primary,
    /// It can take over at any moment.
    Secondary,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        })
    }
}

/// Whether the VM survives the loss of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionState {
    /// The secondary holds all that was let out: it can take over.
    Protected,
    /// Not yet: the first sync is under way.
    Starting,
    /// No: it has no secondary.
    NeedSecondary,
    /// No: nobody asked for it, or it is suspended.
    Disabled,
    /// The VM does not run.
    NotRunning,
}

impl ProtectionState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Protected, Self::Starting, Self::NeedSecondary, Self::Disabled, Self::NotRunning];

    /// One word for labels and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::Starting => "starting",
            Self::NeedSecondary => "need-secondary",
            Self::Disabled => "disabled",
            Self::NotRunning => "not-running",
        }
    }
}

impl fmt::Display for ProtectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Protected => "Protected",
            Self::Starting => "Not protected: starting",
            Self::NeedSecondary => "Not protected: need secondary",
            Self::Disabled => "Not protected: disabled",
            Self::NotRunning => "Not protected: VM not running",
        })
    }
}

/// Why a VM is not protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The VM has just been started, or protection turned on.
    Initializing,
    /// The connection to the secondary, or to the primary that was, was closed or fell silent.
    LostConnection,
    /// What the two replicas hold differs.
    Divergence,
    /// The host or one of its parts failed.
    HardwareFailure,
    /// Somebody asked for it.
    UserAction,
    /// A checkpoint could not be taken, sent or applied.
    CheckpointError,
    /// The secondary could not keep up.
    SecondaryTooSlow,
    /// No other host can take the secondary now.
    NoHost,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Initializing => "initializing",
            Self::LostConnection => "lost connection",
            Self::Divergence => "divergence",
            Self::HardwareFailure => "partial hardware failure",
            Self::UserAction => "user action",
            Self::CheckpointError => "checkpoint error",
            Self::SecondaryTooSlow => "secondary too slow",
            Self::NoHost => "no host for it",
        })
    }
}

/// Protection of a VM: the state, why, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// The state.
    pub state: ProtectionState,
    /// Why; none when protected.
    #[serde(default)]
    pub reason: Option<Reason>,
    /// More about the reason, in words.
    #[serde(default)]
    pub detail: Option<String>,
    /// Since when, in ms since 1970.
    pub since_unix_ms: u64,
}

impl Protection {
    /// This state from now on.
    pub fn now(state: ProtectionState, reason: Option<Reason>) -> Self {
        Self { state, reason, detail: None, since_unix_ms: unix_ms_now() }
    }
}

/// As in `Not protected: need secondary (lost connection), since 12 s`.
impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state)?;
        match (&self.reason, &self.detail) {
            (Some(reason), Some(detail)) => write!(f, " ({reason}: {detail})")?,
            (Some(reason), None) => write!(f, " ({reason})")?,
            (None, Some(detail)) => write!(f, " ({detail})")?,
            (None, None) => {}
        }
        write!(f, ", since {}", Elapsed(unix_ms_now().saturating_sub(self.since_unix_ms)))
    }
}

/// A part of a replica that is broken while the replica goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which part, as in `network card 0`.
    pub part: String,
    /// What is wrong with it.
    pub detail: String,
    /// Since when, in ms since 1970.
    pub since_unix_ms: u64,
}

/// As in `network card 0: cannot reach the network end at ...: Connection refused, since 12 s`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elapsed = Elapsed(unix_ms_now().saturating_sub(self.since_unix_ms));
        write!(f, "{}: {}, since {elapsed}", self.part, self.detail)
    }
}

/// What the first sync is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncPhase {
    /// Connecting, comparing what the secondary has.
    Connect,
    /// Copying blocks of disks that differ.
    Disks,
    /// Copying memory.
    Memory,
    /// Copying memory that has changed meanwhile.
    ChangedMemory,
    /// The first checkpoint.
    Checkpoint,
}

impl fmt::Display for SyncPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connect => "connecting",
            Self::Disks => "copying disks",
            Self::Memory => "copying memory",
            Self::ChangedMemory => "copying changed memory",
            Self::Checkpoint => "first checkpoint",
        })
    }
}

/// Progress of the first sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncProgress {
    /// What is being done.
    pub phase: SyncPhase,
    /// Bytes of this phase that are done.
    pub done_bytes: u64,
    /// Bytes of this phase in all; it may still change.
    pub total_bytes: u64,
}

/// What a running replica says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The VM.
    pub vm: String,
    /// The host it runs on.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// What it is now: a secondary that has taken over says primary.
    pub role: Role,
    /// What executes vCPUs.
    pub engine: EngineKind,
    /// A primary: how the VM is replicated, or would be. In the beginning, and where a change of it is under way, the secondary
    /// follows otherwise: [`Figures::lockstep`] is there while it executes.
    #[serde(default)]
    pub mode: Option<FtMode>,
    /// The generation it acts in.
    pub generation: u64,
    /// Seconds since the guest was powered on, or since this replica took over.
    pub running_s: u64,
    /// How the VM is protected, as this replica sees it.
    pub protection: Protection,
    /// The host of the other replica, if any.
    #[serde(default)]
    pub peer: Option<String>,
    /// The first sync, while there is one.
    #[serde(default)]
    pub sync: Option<SyncProgress>,
    /// Where a secondary listens.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// What is broken here.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// Measurements.
    #[serde(default)]
    pub figures: Figures,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unprotected_vm_says_why_and_since_when() {
        let since_unix_ms = unix_ms_now() - 12_500;
        let lost = Protection {
            state: ProtectionState::NeedSecondary,
            reason: Some(Reason::LostConnection),
            detail: None,
            since_unix_ms,
        };
        assert_eq!(lost.to_string(), "Not protected: need secondary (lost connection), since 12 s");
        let none = Protection { detail: Some("b: too little memory".to_owned()), reason: Some(Reason::NoHost), ..lost };
        assert_eq!(
            none.to_string(),
            "Not protected: need secondary (no host for it: b: too little memory), since 12 s"
        );
        let protected = Protection { since_unix_ms: 0, ..Protection::now(ProtectionState::Protected, None) };
        assert!(protected.to_string().starts_with("Protected, since ") && protected.to_string().ends_with(" d"));
    }

    #[test]
    fn a_status_of_few_words_is_understood() {
        let text = r#"{"vm":"v","host":"a","pid":1,"role":"secondary","engine":"soft","generation":3,"running_s":0,
            "protection":{"state":"starting","since_unix_ms":1}}"#;
        let status: ReplicaStatus = serde_json::from_str(text).unwrap();
        assert_eq!((status.role, status.figures), (Role::Secondary, Figures::default()));
    }
}
