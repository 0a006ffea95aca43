//! Segments: the log as it travels and is kept.

use machine::input::{Input, InputEvent};

use super::Entry;

/// A stretch of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The epoch that it ends.
    pub epoch: u64,
    /// The instruction count at which it ends: nothing that a later segment holds happens before.
    pub reached: u64,
    /// Output of the guest waits for this segment.
    pub has_output: bool,
    /// What happens, in order.
    pub entries: Vec<Entry>,
}

/// Why bytes are not the next segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// It makes no sense.
    #[error("malformed log segment: {0}")]
    Malformed(&'static str),
}

/// Encodes the segments of a log, one after the other.
#[derive(Debug)]
pub struct SegmentWriter {
    entries: Vec<Entry>,
}

impl SegmentWriter {
    /// A writer of the log that begins at `instructions`, in the segment after that of `epoch`.
    pub fn new(_epoch: u64, _instructions: u64) -> Self {
        Self { entries: Vec::new() }
    }

    /// Adds an input, which enters at `instructions`.
    pub fn input(&mut self, instructions: u64, input: &Input) {
        self.entries.push(Entry::Input(InputEvent { instructions, input: input.clone() }));
    }

    /// Adds a digest of the state at `instructions`.
    pub fn digest(&mut self, instructions: u64, digest: u128) {
        self.entries.push(Entry::Digest { instructions, digest });
    }

    /// Bytes that the segment under way has so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the segment under way has no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Ends the segment and returns it encoded.
    pub fn finish(&mut self, _reached: u64, _has_output: bool) -> Vec<u8> {
        todo!()
    }
}

/// Decodes and checks the segments of a log, one after the other.
#[derive(Debug)]
pub struct SegmentReader {}

impl SegmentReader {
    /// A reader of the log that begins at `instructions`, in the segment after that of `epoch`.
    pub fn new(_epoch: u64, _instructions: u64) -> Self {
        Self {}
    }

    /// Decodes the next segment.
    ///
    /// # Errors
    /// [`LogError`]; nothing more can be read then.
    pub fn read(&mut self, _bytes: &[u8]) -> Result<Segment, LogError> {
        todo!()
    }
}
