//! How far a comparison or a copy is.

use super::blocks::{Span, block_range};

/// How much of the disks was looked at, and how much there is to look at, in bytes. What both sides are known to have in common
/// does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskProgress {
    /// Done.
    pub done_bytes: u64,
    /// To be done in all.
    pub total_bytes: u64,
}

/// Length of the blocks of a span in bytes.
pub(super) fn span_bytes(span: &Span, size_bytes: u64) -> u64 {
    block_range(span.blocks.end, size_bytes).0 - block_range(span.blocks.start, size_bytes).0
}
