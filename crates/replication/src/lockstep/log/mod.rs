//! The event log: everything that a guest's state is a function of besides the state it began with.

mod entry;
mod segment;

pub use entry::Entry;
pub use segment::{LogError, Segment, SegmentReader, SegmentWriter};
