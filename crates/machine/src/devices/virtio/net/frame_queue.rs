//! Frames that wait.

use std::collections::VecDeque;

use network::{FRAME_LEN_MAX, FrameOffload};

use super::state::{FrameState, NetRestoreError};

/// Most frames that wait in one direction.
pub const FRAMES_MAX: usize = 256;
/// Most bytes that wait in one direction.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// A bounded first-in, first-out queue of frames.
#[derive(Debug, Default)]
pub(super) struct FrameQueue {
    frames: VecDeque<(Box<[u8]>, FrameOffload)>,
    bytes: usize,
}

impl FrameQueue {
    pub fn restore(saved: Vec<FrameState>) -> Result<Self, NetRestoreError> {
        let mut queue = Self::default();
        for frame in saved {
            let offload = FrameOffload::from_header(&frame.header)?;
            offload.check(frame.bytes.len())?;
            if frame.bytes.len() > FRAME_LEN_MAX || !queue.push(&frame.bytes, offload) {
                return Err(NetRestoreError::TooManyFrames);
            }
        }
        Ok(queue)
    }

    pub fn save(&self) -> Vec<FrameState> {
        let save = |(bytes, offload): &(Box<[u8]>, FrameOffload)| FrameState {
            header: offload.to_header(),
            bytes: bytes.to_vec(),
        };
        self.frames.iter().map(save).collect()
    }

    /// Appends a frame; false if there is no room.
    pub fn push(&mut self, frame: &[u8], offload: FrameOffload) -> bool {
        let fits = self.frames.len() < FRAMES_MAX && self.bytes.saturating_add(frame.len()) <= FRAME_BYTES_MAX;
        if fits {
            self.bytes += frame.len();
            self.frames.push_back((frame.into(), offload));
        }
        fits
    }

    pub fn front(&self) -> Option<(&[u8], FrameOffload)> {
        self.frames.front().map(|(bytes, offload)| (&**bytes, *offload))
    }

    pub fn pop(&mut self) {
        if let Some((bytes, _)) = self.frames.pop_front() {
            self.bytes -= bytes.len();
        }
    }

    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_bytes_are_bounded() {
        let mut queue = FrameQueue::default();
        while queue.push(&[0; 60], FrameOffload::default()) {}
        assert_eq!(queue.len(), FRAMES_MAX);
        queue.clear();
        while queue.push(&[0; FRAME_LEN_MAX], FrameOffload::default()) {}
        assert_eq!(queue.len(), FRAME_BYTES_MAX / FRAME_LEN_MAX);
        queue.pop();
        assert!(queue.push(&[0; FRAME_LEN_MAX], FrameOffload::default()));
    }

    #[test]
    fn a_saved_queue_comes_back_and_a_forged_one_does_not() {
        let mut queue = FrameQueue::default();
        assert!(queue.push(&[1; 60], FrameOffload::default()) && queue.push(&[2; 61], FrameOffload::default()));
        let saved = queue.save();
        assert_eq!(FrameQueue::restore(saved.clone()).unwrap().save(), saved);
        let long = FrameState { header: saved[0].header, bytes: vec![0; FRAME_LEN_MAX + 1] };
        assert!(FrameQueue::restore(vec![long]).is_err());
        let many = vec![saved[0].clone(); FRAMES_MAX + 1];
        assert!(FrameQueue::restore(many).is_err());
        let odd = FrameState { header: [0xff; 12], bytes: vec![0; 60] };
        assert!(FrameQueue::restore(vec![odd]).is_err());
    }
}
