//! The event log: everything that a guest's state is a function of besides the state it began with.
//!
//! The format is in `docs/event-log.md`, byte by byte. A log is a sequence of *segments*, each of which continues the one before: only a
//! [`SegmentReader`] that has read all of them since the beginning can read the next.

mod bytes;
mod entry;
mod history;
mod segment;

pub use entry::Entry;
pub use segment::{ENTRIES_MAX, LogError, SEGMENT_BYTES_MAX, Segment, SegmentReader, SegmentWriter};

/// Version of the format. Another version's segments cannot be read.
pub const FORMAT_VERSION: u16 = 1;
