//! Counters of virtio-rng.

/// What a [`super::Rng`] did in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RngMetrics {
    /// Buffers filled.
    pub requests: u64,
    /// Bytes handed to the guest.
    pub bytes: u64,
    /// Times that the entropy source failed.
    pub source_errors: u64,
}
