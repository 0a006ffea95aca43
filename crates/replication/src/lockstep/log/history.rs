//! What a card's frames are encoded as differences from.

use network::{FRAME_LEN_MAX, InputPosition};

use super::LogError;
use super::bytes::{Bytes, put_varint};

/// First bytes of a frame that are encoded as a difference: the headers of Ethernet, IP and TCP, for the most part.
const HEAD_BYTES: usize = 64;

/// The last frame of one card.
#[derive(Clone, Debug)]
pub(super) struct CardHistory {
    /// Where the card's stream of frames stood after it.
    pub position: InputPosition,
    /// Its first bytes; zeros where it was shorter, or where there was none.
    head: [u8; HEAD_BYTES],
}

impl CardHistory {
    pub fn new(position: InputPosition) -> Self {
        Self { position, head: [0; HEAD_BYTES] }
    }

    /// Whether a frame that leaves its stream at `position` is the next one.
    pub fn is_next(&self, position: InputPosition) -> bool {
        position.end == self.position.end && self.position.frames.checked_add(1) == Some(position.frames)
    }

    /// The position after the next frame.
    pub fn next(&self) -> Result<InputPosition, LogError> {
        let frames = self.position.frames.checked_add(1).ok_or(LogError::Malformed("a stream of frames has no end"))?;
        Ok(InputPosition { end: self.position.end, frames })
    }

    /// Appends a frame: its length, which of its first bytes differ from the last frame's, those, and the rest.
    pub fn put_frame(&mut self, out: &mut Vec<u8>, frame: &[u8]) {
        put_varint(out, frame.len() as u64);
        let (head, rest) = frame.split_at(frame.len().min(HEAD_BYTES));
        let mask_at = out.len();
        out.extend_from_slice(&[0; 8]);
        let mut mask = 0u64;
        for (index, (&byte, last)) in head.iter().zip(&mut self.head).enumerate() {
            if byte != *last {
                mask |= 1 << index;
                out.push(byte);
                *last = byte;
            }
        }
        if let Some(place) = out.get_mut(mask_at..mask_at + 8) {
            place.copy_from_slice(&mask.to_le_bytes());
        }
        out.extend_from_slice(rest);
        self.clear_beyond(head.len());
    }

    pub fn take_frame(&mut self, bytes: &mut Bytes<'_>) -> Result<Vec<u8>, LogError> {
        let len = bytes.length(FRAME_LEN_MAX)?;
        let mask = u64::from_le_bytes(bytes.array()?);
        let head_len = len.min(HEAD_BYTES);
        if head_len < HEAD_BYTES && mask >> head_len != 0 {
            return Err(LogError::Malformed("a frame differs beyond its end"));
        }
        for (index, byte) in self.head.iter_mut().enumerate() {
            if mask >> index & 1 != 0 {
                let new = bytes.byte()?;
                if new == *byte {
                    return Err(LogError::Malformed("a frame differs where it does not"));
                }
                *byte = new;
            }
        }
        // Before anything of this length is allocated.
        let rest = bytes.take(len - head_len)?;
        let mut frame = Vec::with_capacity(len);
        frame.extend(self.head.iter().take(head_len));
        frame.extend_from_slice(rest);
        self.clear_beyond(head_len);
        Ok(frame)
    }

    fn clear_beyond(&mut self, len: usize) {
        self.head.iter_mut().skip(len).for_each(|byte| *byte = 0);
    }
}
