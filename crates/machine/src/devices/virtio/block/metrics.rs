//! Counters of virtio-blk.

/// What a [`super::Block`] did in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockMetrics {
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
    /// Discard requests done.
    pub discards: u64,
    /// Write-zeroes requests done.
    pub write_zeroes: u64,
    /// Requests refused, as the guest asked for something that this disk cannot do.
    pub refused: u64,
    /// Requests that the disk's backend failed to do.
    pub backend_errors: u64,
}
