//! [`Entry`]: one event of the log, and how it is encoded.

use machine::input::{FAILED_CONTENT_BYTES_MAX, FailedContent, Input, InputEvent};
use network::{FrameOffload, HEADER_LEN, InputPosition};

use super::LogError;
use super::bytes::{Bytes, put_bytes, put_varint};
use super::history::CardHistory;

/// One event of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Something from outside enters.
    Input(InputEvent),
    /// What the primary was at a point that both replicas stop at.
    Digest {
        /// Instructions retired since power-on, by all vCPUs.
        instructions: u64,
        /// Digest of processors, devices and touched pages.
        digest: u128,
    },
}

/// The kind of an entry: the low bits of its first byte.
mod kind {
    pub const CLOCK_STEP: u8 = 0;
    pub const FRAME: u8 = 1;
    pub const LINK: u8 = 2;
    pub const CONSOLE: u8 = 3;
    pub const POWER_BUTTON: u8 = 4;
    pub const ENTROPY: u8 = 5;
    pub const DISK_FAILED: u8 = 6;
    pub const DIGEST: u8 = 7;

    pub const MASK: u8 = 0x0f;
}

/// It happens at the instruction count of the entry before: no difference follows.
const SAME_COUNT: u8 = 1 << 7;
/// Of a frame: it is the next one in its card's stream; no position follows.
const NEXT_IN_STREAM: u8 = 1 << 4;
/// Of a frame: it leaves nothing open; no header follows.
const NO_OFFLOAD: u8 = 1 << 5;
/// Of a frame: it is for the first card; no number follows.
const FIRST_CARD: u8 = 1 << 6;
/// Of a link: it comes up.
const LINK_UP: u8 = 1 << 4;
/// Of a failed disk request: what it left follows.
const CONTENT_BYTES: u8 = 1 << 4;
/// Of a failed disk request: what it left is not known.
const CONTENT_UNKNOWN: u8 = 1 << 5;

/// Most bytes of console input or entropy in one entry.
const STRING_BYTES_MAX: usize = 512 << 10;

/// What entries are encoded as differences from.
#[derive(Clone, Debug)]
pub(super) struct History {
    instructions: u64,
    cards: Vec<CardHistory>,
}

impl History {
    pub fn new(instructions: u64, positions: &[InputPosition]) -> Self {
        Self { instructions, cards: positions.iter().map(|&position| CardHistory::new(position)).collect() }
    }

    /// The instruction count of the last entry, or of the end of a segment.
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Goes on at the end of a segment.
    pub fn go_on_at(&mut self, instructions: u64) {
        self.instructions = instructions;
    }

    fn put_head(&mut self, out: &mut Vec<u8>, instructions: u64, kind_and_flags: u8) {
        // An engine never goes back.
        let since = instructions.saturating_sub(self.instructions);
        if since == 0 {
            out.push(kind_and_flags | SAME_COUNT);
        } else {
            out.push(kind_and_flags);
            put_varint(out, since);
        }
        self.instructions = self.instructions.max(instructions);
    }

    /// Appends an input.
    pub fn put_input(&mut self, out: &mut Vec<u8>, instructions: u64, input: &Input) {
        match input {
            Input::ClockStep(ticks) => {
                self.put_head(out, instructions, kind::CLOCK_STEP);
                put_varint(out, *ticks);
            }
            Input::Frame { card, frame, offload, position } => {
                self.put_frame(out, instructions, *card, frame, *offload, *position)
            }
            Input::Link { card, up } => {
                self.put_head(out, instructions, kind::LINK | if *up { LINK_UP } else { 0 });
                put_varint(out, *card as u64);
            }
            Input::Console(bytes) => {
                self.put_head(out, instructions, kind::CONSOLE);
                put_bytes(out, bytes);
            }
            Input::PowerButton => self.put_head(out, instructions, kind::POWER_BUTTON),
            Input::Entropy(bytes) => {
                self.put_head(out, instructions, kind::ENTROPY);
                put_bytes(out, bytes);
            }
            Input::DiskFailed { disk, request, content } => {
                let flag = match content {
                    FailedContent::Unchanged => 0,
                    FailedContent::Bytes(_) => CONTENT_BYTES,
                    FailedContent::Unknown => CONTENT_UNKNOWN,
                };
                self.put_head(out, instructions, kind::DISK_FAILED | flag);
                put_varint(out, (*disk).into());
                put_varint(out, *request);
                if let FailedContent::Bytes(bytes) = content {
                    put_bytes(out, bytes);
                }
            }
        }
    }

    fn put_frame(
        &mut self,
        out: &mut Vec<u8>,
        instructions: u64,
        card: usize,
        frame: &[u8],
        offload: FrameOffload,
        position: InputPosition,
    ) {
        let is_next = self.cards.get(card).is_some_and(|history| history.is_next(position));
        let header = offload.to_header();
        let has_offload = header != FrameOffload::default().to_header();
        let flags = [(card == 0, FIRST_CARD), (is_next, NEXT_IN_STREAM), (!has_offload, NO_OFFLOAD)];
        let flags = flags.iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag);
        self.put_head(out, instructions, kind::FRAME | flags);
        if card != 0 {
            put_varint(out, card as u64);
        }
        if !is_next {
            put_varint(out, position.end);
            put_varint(out, position.frames);
        }
        if has_offload {
            out.extend_from_slice(&header);
        }
        match self.cards.get_mut(card) {
            Some(history) => {
                history.put_frame(out, frame);
                history.position = position;
            }
            // No VM has such a card, and no reader takes the segment.
            None => put_bytes(out, frame),
        }
    }

    /// Appends a digest.
    pub fn put_digest(&mut self, out: &mut Vec<u8>, instructions: u64, digest: u128) {
        self.put_head(out, instructions, kind::DIGEST);
        out.extend_from_slice(&digest.to_le_bytes());
    }

    /// Takes the next entry, which must not be beyond `reached`.
    pub fn take(&mut self, bytes: &mut Bytes<'_>, reached: u64) -> Result<Entry, LogError> {
        let head = bytes.byte()?;
        if head & SAME_COUNT == 0 {
            let since = bytes.varint()?;
            let now = self.instructions.checked_add(since).filter(|&now| since > 0 && now <= reached);
            self.instructions = now.ok_or(LogError::Malformed("an entry is not where it can be"))?;
        }
        let instructions = self.instructions;
        let flags = head & !kind::MASK & !SAME_COUNT;
        let allowed = |allowed: u8| {
            if flags & !allowed == 0 { Ok(()) } else { Err(LogError::Malformed("an entry has an unknown flag")) }
        };
        let input = match head & kind::MASK {
            kind::CLOCK_STEP => allowed(0).and_then(|()| bytes.varint()).map(Input::ClockStep)?,
            kind::FRAME => self.take_frame(bytes, flags)?,
            kind::LINK => {
                allowed(LINK_UP)?;
                let card = bytes.length(self.cards.len())?;
                self.cards.get(card).ok_or(LogError::Malformed("the VM has no such card"))?;
                Input::Link { card, up: flags & LINK_UP != 0 }
            }
            kind::CONSOLE => {
                allowed(0).and_then(|()| bytes.string(STRING_BYTES_MAX)).map(|s| Input::Console(s.into()))?
            }
            kind::POWER_BUTTON => allowed(0).map(|()| Input::PowerButton)?,
            kind::ENTROPY => {
                allowed(0).and_then(|()| bytes.string(STRING_BYTES_MAX)).map(|s| Input::Entropy(s.into()))?
            }
            kind::DISK_FAILED => {
                allowed(CONTENT_BYTES | CONTENT_UNKNOWN)?;
                let disk = u32::try_from(bytes.varint()?).map_err(|_| LogError::Malformed("no VM has such a disk"))?;
                let request = bytes.varint()?;
                let content = match flags {
                    0 => FailedContent::Unchanged,
                    CONTENT_BYTES => FailedContent::Bytes(bytes.string(FAILED_CONTENT_BYTES_MAX)?.to_vec()),
                    CONTENT_UNKNOWN => FailedContent::Unknown,
                    _ => return Err(LogError::Malformed("a failed request contradicts itself")),
                };
                Input::DiskFailed { disk, request, content }
            }
            kind::DIGEST => {
                allowed(0)?;
                return Ok(Entry::Digest { instructions, digest: u128::from_le_bytes(bytes.array()?) });
            }
            _ => return Err(LogError::Malformed("an entry is of an unknown kind")),
        };
        Ok(Entry::Input(InputEvent { instructions, input }))
    }

    fn take_frame(&mut self, bytes: &mut Bytes<'_>, flags: u8) -> Result<Input, LogError> {
        let card = if flags & FIRST_CARD != 0 { 0 } else { bytes.length(self.cards.len())? };
        if card == 0 && flags & FIRST_CARD == 0 {
            return Err(LogError::Malformed("the first card is named though it need not be"));
        }
        let history = self.cards.get_mut(card).ok_or(LogError::Malformed("the VM has no such card"))?;
        let position = if flags & NEXT_IN_STREAM != 0 {
            history.next()?
        } else {
            let position = InputPosition { end: bytes.varint()?, frames: bytes.varint()? };
            if history.is_next(position) {
                return Err(LogError::Malformed("a position is spelt out though it need not be"));
            }
            position
        };
        let offload = if flags & NO_OFFLOAD != 0 {
            FrameOffload::default()
        } else {
            let header = bytes.array::<HEADER_LEN>()?;
            let offload = FrameOffload::from_header(&header);
            let offload = offload.map_err(|_| LogError::Malformed("a frame's offload makes no sense"))?;
            if offload.to_header() != header || offload == FrameOffload::default() {
                return Err(LogError::Malformed("a frame's offload is not in its only form"));
            }
            offload
        };
        let frame = history.take_frame(bytes)?;
        history.position = position;
        Ok(Input::Frame { card, frame, offload, position })
    }
}
