//! What lockstep costs, as it is being paid.

use serde::{Deserialize, Serialize};

/// What `twinvm top` shows of a primary that sends its log.
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
