//! Segments: the log as it travels and is kept.

use machine::input::Input;
use network::InputPosition;
use protocol::Epoch;

use super::bytes::{Bytes, put_varint};
use super::entry::History;
use super::{Entry, FORMAT_VERSION};

/// Where the checksum is, and what it covers.
const CHECKSUM_BYTES: usize = 4;
/// The low bits of the epoch.
const EPOCH_MASK: u8 = 0x0f;
/// Output waits for the segment.
const HAS_OUTPUT: u8 = 1 << 4;

/// Longest segment, in bytes.
pub const SEGMENT_BYTES_MAX: usize = 1 << 20;
/// Most entries of a segment. Few bytes can be an entry that takes many in memory.
pub const ENTRIES_MAX: usize = 16_384;
/// A writer asks for the end of a segment that has so many bytes or entries: one entry more fits in any case.
const FULL_BYTES: usize = 128 << 10;
const FULL_ENTRIES: usize = ENTRIES_MAX / 2;

/// A stretch of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// The instruction count at which it ends: nothing that a later segment holds happens before.
    pub reached: u64,
    /// Output of the guest waits for this segment, or somebody else does.
    pub has_output: bool,
    /// What happens, in order.
    pub entries: Vec<Entry>,
}

/// Why bytes are not the next segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// It is not as it was written, or not the one that follows.
    #[error("a segment of the event log is damaged, or does not follow the one before: its checksum does not match")]
    Checksum,
    /// It makes no sense.
    #[error("a malformed segment of the event log: {0}")]
    Malformed(&'static str),
}

/// Encodes the segments of a log, one after the other.
#[derive(Debug)]
pub struct SegmentWriter {
    epoch: Epoch,
    /// Where the last segment ended.
    reached: u64,
    history: History,
    /// The entries of the segment under way, and how many they are.
    entries: Vec<u8>,
    count: usize,
    checksum: Checksum,
}

impl SegmentWriter {
    /// A writer of the log that begins at `instructions`, in the segment after that of `epoch`, with each card's frames taken as far as
    /// `positions` say.
    pub fn new(epoch: Epoch, instructions: u64, positions: &[InputPosition]) -> Self {
        Self {
            epoch,
            reached: instructions,
            history: History::new(instructions, positions),
            entries: Vec::new(),
            count: 0,
            checksum: Checksum::new(epoch, instructions),
        }
    }

    /// Adds an input, which enters at `instructions`: not before what was added last.
    pub fn input(&mut self, instructions: u64, input: &Input) {
        self.history.put_input(&mut self.entries, instructions, input);
        self.count += 1;
    }

    /// Adds a digest of the state at `instructions`.
    pub fn digest(&mut self, instructions: u64, digest: u128) {
        self.history.put_digest(&mut self.entries, instructions, digest);
        self.count += 1;
    }

    /// Whether the segment under way should end before it gets too long.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= FULL_BYTES || self.count >= FULL_ENTRIES
    }

    /// Whether the segment under way has no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Ends the segment at `reached`, which is not before its last entry, and returns it encoded.
    pub fn finish(&mut self, reached: u64, has_output: bool) -> Vec<u8> {
        let reached = reached.max(self.history.instructions());
        self.epoch = self.epoch.next();
        let mut out = Vec::with_capacity(CHECKSUM_BYTES + 11 + self.entries.len());
        out.extend_from_slice(&[0; CHECKSUM_BYTES]);
        out.push(self.epoch.number() as u8 & EPOCH_MASK | if has_output { HAS_OUTPUT } else { 0 });
        put_varint(&mut out, reached.saturating_sub(self.reached));
        out.append(&mut self.entries);
        self.count = 0;
        self.reached = reached;
        self.history.go_on_at(reached);
        if let Some((checksum, content)) = out.split_first_chunk_mut::<CHECKSUM_BYTES>() {
            *checksum = self.checksum.next(content);
        }
        out
    }
}

/// Decodes and checks the segments of a log, one after the other.
#[derive(Debug)]
pub struct SegmentReader {
    epoch: Epoch,
    reached: u64,
    history: History,
    checksum: Checksum,
}

impl SegmentReader {
    /// A reader of the log that begins at `instructions`, in the segment after that of `epoch`, with each card's frames taken as far as
    /// `positions` say.
    pub fn new(epoch: Epoch, instructions: u64, positions: &[InputPosition]) -> Self {
        let history = History::new(instructions, positions);
        Self { epoch, reached: instructions, history, checksum: Checksum::new(epoch, instructions) }
    }

    /// Decodes the next segment.
    ///
    /// # Errors
    /// [`LogError`]; nothing more can be read then.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Segment, LogError> {
        if bytes.len() > SEGMENT_BYTES_MAX {
            return Err(LogError::Malformed("it is too long"));
        }
        let (checksum, content) =
            bytes.split_first_chunk::<CHECKSUM_BYTES>().ok_or(LogError::Malformed("it ends too early"))?;
        if self.checksum.next(content) != *checksum {
            return Err(LogError::Checksum);
        }
        let mut bytes = Bytes(content);
        let flags = bytes.byte()?;
        if flags & !(EPOCH_MASK | HAS_OUTPUT) != 0 {
            return Err(LogError::Malformed("a segment has an unknown flag"));
        }
        let epoch = self.epoch.next();
        if epoch == self.epoch {
            return Err(LogError::Malformed("epochs have no end"));
        }
        if flags & EPOCH_MASK != epoch.number() as u8 & EPOCH_MASK {
            return Err(LogError::Malformed("a segment is of another epoch"));
        }
        let reached = self.reached.checked_add(bytes.varint()?);
        let reached = reached.ok_or(LogError::Malformed("instructions have no end"))?;
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            if entries.len() == ENTRIES_MAX {
                return Err(LogError::Malformed("a segment has too many entries"));
            }
            entries.push(self.history.take(&mut bytes, reached)?);
        }
        self.history.go_on_at(reached);
        (self.epoch, self.reached) = (epoch, reached);
        Ok(Segment { epoch, reached, has_output: flags & HAS_OUTPUT != 0, entries })
    }
}

/// The checksum of a segment covers all segments before it, and where the log begins: one that is missing, repeated or of another log is
/// found out as well.
#[derive(Debug)]
struct Checksum(u32);

impl Checksum {
    fn new(epoch: Epoch, instructions: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&FORMAT_VERSION.to_le_bytes());
        hasher.update(&epoch.number().to_le_bytes());
        hasher.update(&instructions.to_le_bytes());
        Self(hasher.finalize())
    }

    /// That of the next segment.
    fn next(&mut self, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(content);
        self.0 = hasher.finalize();
        self.0.to_le_bytes()
    }
}
