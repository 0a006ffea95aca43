//! What a gate says of itself.

use serde::{Deserialize, Serialize};

/// The state of an [`OutputGate`](super::OutputGate). Counts are since it was made, of all cards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateStatus {
    /// Whether output waits for its commit.
    pub held: bool,
    /// Frames that wait.
    pub waiting_frames: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// For how long the oldest of them has waited, in microseconds; 0 if there is none.
    pub oldest_wait_us: u64,
    /// Frames that did not have to wait.
    pub passed_frames: u64,
    /// Frames that left after they had waited.
    pub released_frames: u64,
    /// Frames that were lost because the network end refused them or was gone.
    pub dropped_frames: u64,
    /// Median of the time that frames waited lately, from the guest's request until they left, in microseconds.
    pub wait_us_p50: u64,
    /// 99th percentile of the same.
    pub wait_us_p99: u64,
}
