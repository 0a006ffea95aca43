//! [`CpuConfig`]: what the processors of a machine are given when they are made.

/// What of a machine's processors is fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// Wall-clock time of power-on, when the time-stamp counter was 0, in nanoseconds since the Unix epoch.
    pub power_on_unix_ns: u64,
    /// Instructions that a processor executes before the next one's turn.
    pub turn_instructions: u64,
    /// How often a block is interpreted before it is translated to host code; `None`: none ever is. What the guest computes is the same.
    pub translate_after: Option<u8>,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self { power_on_unix_ns: 0, turn_instructions: 20_000, translate_after: Some(32) }
    }
}
