//! What a replica says of itself while it runs, and what it leaves when it has ended.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use replication::lockstep::LockstepFigures;
use serde::{Deserialize, Serialize};
use spec::{EngineKind, FtMode};

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
    /// It does.
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

/// A time span in the largest unit of which it has a few: `12 s`, `5 min`, `3 h`, `4 d`.
struct Elapsed(u64);

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 / 1000 {
            s @ 0..120 => write!(f, "{s} s"),
            s @ 120..7200 => write!(f, "{} min", s / 60),
            s @ 7200..172_800 => write!(f, "{} h", s / 3600),
            s => write!(f, "{} d", s / 86_400),
        }
    }
}

/// The time in ms since 1970.
pub fn unix_ms_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
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
    /// Measurements.
    #[serde(default)]
    pub figures: Figures,
}

/// Measurements of a replica. Rates and quantiles are of the last few seconds, counts since the process started, unless said
/// otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// The last epoch that the secondary holds.
    pub epoch: u64,
    /// Epochs per second.
    pub epochs_per_s: f64,
    /// Length of an epoch, mean.
    pub epoch_ms: f64,
    /// Pages changed in an epoch, mean.
    pub dirty_pages: u64,
    /// How long a checkpoint pauses the guest, in us.
    pub pause_us: PauseFigures,
    /// What that time goes into, medians.
    pub pause_parts_us: PauseParts,
    /// The pauses by the number of changed pages, by ascending number.
    pub pauses_by_pages: Vec<PauseClass>,
    /// Bytes of changed pages.
    pub dirty_bytes: u64,
    /// Bytes sent for them, and for everything else.
    pub sent_bytes: u64,
    /// Pages by how they were sent.
    pub pages: PagesByEncoding,
    /// How long output waited for its commit, in ms.
    pub latency_added_ms: LatencyFigures,
    /// Epochs that the secondary has not yet acknowledged.
    pub lag_epochs: u64,
    /// Frames that wait for their commit now.
    pub waiting_frames: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Resident memory of the replica's process, the guest's memory included.
    pub memory_bytes: u64,
    /// Times that this replica took over or that the VM's replica here did before it.
    pub failovers: u64,
    /// The last takeover here.
    pub last_takeover: Option<Takeover>,
    /// How often the guest was reset by a triple fault here: as a rule, a crash before it could say anything.
    pub triple_faults: u64,
    /// The last of them.
    pub last_triple_fault: Option<LastTripleFault>,
    /// How often the guest had to wait because the secondary was behind.
    pub throttled: u64,
    /// For how long in all, in ms.
    pub throttled_ms: f64,
    /// The log and the lag of the secondary, while that executes; nothing while it follows by checkpoints.
    pub lockstep: Option<LockstepFigures>,
}

impl Figures {
    /// Triple faults for people, if there were any.
    pub fn triple_faults_text(&self) -> Option<String> {
        let last = self.last_triple_fault.as_ref()?;
        let ago = Elapsed(unix_ms_now().saturating_sub(last.at_unix_ms));
        Some(format!("{} resets by triple fault; the last {ago} ago, {}", self.triple_faults, last.place))
    }
}

/// The last triple fault of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastTripleFault {
    /// When, in ms since 1970.
    pub at_unix_ms: u64,
    /// Which vCPU, and what is known of where it was.
    pub place: String,
}

/// How long checkpoints paused the guest, in us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PauseFigures {
    /// Half of them were shorter.
    pub p50: f64,
    /// 99 of 100 were shorter.
    pub p99: f64,
    /// The last one.
    pub last: f64,
}

/// What a pause goes into, medians, in us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PauseParts {
    /// Finding the changed pages, and beginning the next round.
    pub tracking: f64,
    /// Copying them.
    pub pages: f64,
    /// Saving vCPUs and devices.
    pub state: f64,
}

/// Pauses of checkpoints with about as many changed pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PauseClass {
    /// Least number of changed pages.
    pub pages_min: u64,
    /// Greatest number of changed pages.
    pub pages_max: u64,
    /// Checkpoints since protection began.
    pub checkpoints: u64,
    /// Changed pages of the newest of them, median.
    pub dirty_pages: u64,
    /// Their pauses, in us.
    pub pause_us: PauseFigures,
}

/// How long output waited, in ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyFigures {
    /// Half of it waited less.
    pub p50: f64,
    /// 99 of 100 frames waited less.
    pub p99: f64,
}

/// Pages by how they were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PagesByEncoding {
    /// All zero.
    pub zero: u64,
    /// Written to, but the same as before.
    pub unchanged: u64,
    /// The 64-bit words that changed.
    pub word_runs: u64,
    /// The difference, compressed.
    pub delta: u64,
    /// The page, compressed.
    pub lz4: u64,
    /// The page as it is.
    pub raw: u64,
}

/// How long the parts of a takeover took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Takeover {
    /// When, in ms since 1970.
    pub at_unix_ms: u64,
    /// From the peer's last sign of life to the suspicion, in ms.
    pub detected_ms: f64,
    /// The compare-and-swap in the cluster store, in ms.
    pub arbitration_ms: f64,
    /// From winning it to the guest running, in ms.
    pub restore_ms: f64,
}

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
