//! Measurements of a replica.

use serde::{Deserialize, Serialize};

use crate::time::{Elapsed, unix_ms_now};

/// Measurements of a replica. Rates and quantiles are of the last few seconds, counts since the process started, unless said
/// otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// The last epoch that the secondary holds.
    pub epoch: u64,
    /// Epochs per second.
    pub epochs_per_s: f64,
    /// Length of an epoch in ms, median.
    pub epoch_ms: f64,
    /// Pages changed in an epoch, median.
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
    /// How long it took from the end of an epoch until the secondary was known to hold it, in ms.
    pub commit_ms: LatencyFigures,
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
    /// After how much silence the other replica is taken for lost, in ms: it follows the link. 0 without one.
    pub suspicion_ms: f64,
    /// The longest silence of the other replica that is remembered, in ms.
    pub silence_ms_max: f64,
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
    /// A primary: what each disk did, in the order of the spec.
    pub disks: Vec<DiskFigures>,
    /// A primary: what each network card did, in the order of the spec.
    pub cards: Vec<CardFigures>,
}

/// What a disk did since the process started, or took over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskFigures {
    /// Read requests done.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests done.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flush requests done.
    pub flushes: u64,
    /// Requests done that discard, or write zeros.
    pub discards: u64,
    /// Requests that failed: the guest asked for what the disk cannot do, or the host's disk failed.
    pub errors: u64,
}

/// What a network card did since the process started, or took over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CardFigures {
    /// Frames that the guest received.
    pub received_frames: u64,
    /// Bytes of those.
    pub received_bytes: u64,
    /// Frames for the guest that were dropped: too many waited, no driver was ready, or they did not fit.
    pub received_dropped: u64,
    /// Frames that the guest sent.
    pub sent_frames: u64,
    /// Bytes of those.
    pub sent_bytes: u64,
    /// Frames of the guest's that were dropped: too many waited, the network end refused them, or they were malformed.
    pub sent_dropped: u64,
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
    /// Until the vCPUs stood still.
    pub stop: f64,
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
    /// Greatest number of changed pages; none of the class of the most.
    pub pages_max: Option<u64>,
    /// Checkpoints since protection began.
    pub checkpoints: u64,
    /// Changed pages of the newest of them, median.
    pub dirty_pages: u64,
    /// Their pauses, in us.
    pub pause_us: PauseFigures,
}

/// How long output waited, or commits took, in ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyFigures {
    /// Half of them less.
    pub p50: f64,
    /// 99 of 100 less.
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

/// The log that a primary sends in lockstep, and how far its secondary is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LockstepFigures {
    /// Instructions that the secondary may execute, as it has their log, and has not said to have executed.
    pub lag_instructions: u64,
    /// Age of the oldest segment sent that the secondary has not executed, in ms.
    pub lag_ms: f64,
    /// Bytes of the log sent, since the log began.
    pub log_bytes: u64,
    /// Bandwidth of the log, lately.
    pub log_bits_per_s: f64,
    /// Bytes of inbound frames in the log.
    pub inbound_bytes: u64,
    /// Segments sent.
    pub segments: u64,
    /// Digests that the secondary has compared.
    pub digests: u64,
    /// Digests that differed, since the start of the process.
    pub divergences: u64,
}
