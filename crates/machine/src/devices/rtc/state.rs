//! [`RtcState`].

use serde::{Deserialize, Serialize};

use super::civil::CivilTime;

/// The saved state of an [`Rtc`](super::Rtc).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// The register that the data port shows.
    pub index: u8,
    /// Register A.
    pub control_a: u8,
    /// Register B.
    pub control_b: u8,
    /// Seconds by which the guest's clock is ahead of the machine's.
    pub offset_seconds: i64,
    /// The time while the SET bit of register B holds the clock. It is kept as the registers are: while they are set one after the other, it
    /// may be a date that does not exist.
    pub held: Option<CivilTime>,
    /// CMOS memory; of the clock's own registers only the alarm is there. At most 128 bytes count.
    pub memory: Vec<u8>,
}

impl Default for RtcState {
    /// Power-on: UTC, BCD, 24 hours, a 32.768 kHz time base.
    fn default() -> Self {
        Self { index: 0, control_a: 0x26, control_b: 0x02, offset_seconds: 0, held: None, memory: vec![] }
    }
}
