//! Counters of virtio-net.

/// What a [`super::Net`] did in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetMetrics {
    /// Frames written to the guest's buffers.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that had to wait for the guest to supply buffers.
    pub rx_waited: u64,
    /// Frames dropped because too many waited.
    pub rx_dropped_full: u64,
    /// Frames dropped because no driver was ready, or it gave up while they waited.
    pub rx_dropped_no_driver: u64,
    /// Frames dropped because they do not fit the guest's buffers or what its driver negotiated, or are no frames.
    pub rx_dropped_unfit: u64,
    /// Frames handed to the backend.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames that had to wait for the backend to have room.
    pub tx_waited: u64,
    /// Frames dropped because too many waited.
    pub tx_dropped_full: u64,
    /// Frames dropped because the backend refused them.
    pub tx_dropped_refused: u64,
    /// Frames dropped because the guest's request was malformed or used features it did not negotiate.
    pub tx_dropped_malformed: u64,
}
