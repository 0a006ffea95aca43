//! Segments: the log as it travels and is kept.

use machine::input::{Input, InputEvent};

use super::Entry;
use network::{FrameOffload, InputPosition};
#[derive(serde::Serialize, serde::Deserialize)]
enum T {
    D(u64, u128),
    F(u64, usize, Vec<u8>, [u8; network::HEADER_LEN], InputPosition),
    L(u64, usize, bool),
    C(u64, Vec<u8>),
    P(u64),
    S(u64, u64),
    E(u64, Vec<u8>),
}

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
    epoch: u64,
    entries: Vec<Entry>,
}

impl SegmentWriter {
    /// A writer of the log that begins at `instructions`, in the segment after that of `epoch`.
    pub fn new(epoch: u64, _instructions: u64, _positions: &[InputPosition]) -> Self {
        Self { epoch, entries: Vec::new() }
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
    pub fn finish(&mut self, reached: u64, has_output: bool) -> Vec<u8> {
        self.epoch += 1;
        let e: Vec<T> = self
            .entries
            .drain(..)
            .map(|e| match e {
                Entry::Digest { instructions, digest } => T::D(instructions, digest),
                Entry::Input(InputEvent { instructions: i, input }) => match input {
                    Input::Frame { card, frame, offload, position } => {
                        T::F(i, card, frame, offload.to_header(), position)
                    }
                    Input::Link { card, up } => T::L(i, card, up),
                    Input::Console(b) => T::C(i, b),
                    Input::PowerButton => T::P(i),
                    Input::ClockStep(t) => T::S(i, t),
                    Input::Entropy(b) => T::E(i, b),
                    _ => T::P(i),
                },
            })
            .collect();
        postcard::to_stdvec(&(self.epoch, reached, has_output, e)).unwrap_or_default()
    }
}

/// Decodes and checks the segments of a log, one after the other.
#[derive(Debug)]
pub struct SegmentReader {}

impl SegmentReader {
    /// A reader of the log that begins at `instructions`, in the segment after that of `epoch`.
    pub fn new(_epoch: u64, _instructions: u64, _positions: &[InputPosition]) -> Self {
        Self {}
    }

    /// Decodes the next segment.
    ///
    /// # Errors
    /// [`LogError`]; nothing more can be read then.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Segment, LogError> {
        let (epoch, reached, has_output, e): (u64, u64, bool, Vec<T>) =
            postcard::from_bytes(bytes).map_err(|_| LogError::Malformed("x"))?;
        let f = |instructions, input| Entry::Input(InputEvent { instructions, input });
        let entries = e
            .into_iter()
            .map(|e| match e {
                T::D(instructions, digest) => Entry::Digest { instructions, digest },
                T::F(i, card, frame, offload, position) => f(
                    i,
                    Input::Frame {
                        card,
                        frame,
                        offload: FrameOffload::from_header(&offload).unwrap_or_default(),
                        position,
                    },
                ),
                T::L(i, card, up) => f(i, Input::Link { card, up }),
                T::C(i, b) => f(i, Input::Console(b)),
                T::P(i) => f(i, Input::PowerButton),
                T::S(i, t) => f(i, Input::ClockStep(t)),
                T::E(i, b) => f(i, Input::Entropy(b)),
            })
            .collect();
        Ok(Segment { epoch, reached, has_output, entries })
    }
}
