//! Frames that were handed to a VM process and may have died with it.

use std::collections::VecDeque;

use protocol::{HandedOut, InputPosition};

use crate::offload::FrameOffload;

/// Frames kept at most.
const FRAMES_MAX: usize = 4096;
/// Frame bytes kept at most.
const BYTES_MAX: usize = 4 << 20;

/// The frames handed out last. Which of them are handed out again is for [`HandedOut`] to say.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    frames: VecDeque<(Vec<u8>, FrameOffload)>,
    bytes: usize,
    handed_out: HandedOut,
    resent: u64,
}

impl Retained {
    /// Number of the frame that is handed out next, an old one or a new one.
    pub fn next_number(&self) -> u64 {
        self.handed_out.next_number()
    }

    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames handed out again since the start.
    pub fn resent(&self) -> u64 {
        self.resent
    }

    /// Frames since the start that were to be handed out again and were no longer there.
    pub fn missed(&self) -> u64 {
        self.handed_out.missed()
    }

    /// A new receiver has come to the end of this identity, and goes on at `resume`.
    pub fn attach(&mut self, end: u64, resume: Option<InputPosition>) {
        self.handed_out.attach(end, resume);
    }

    /// The next frame to hand out again, with its number.
    pub fn front_again(&mut self) -> Option<(u64, &mut Vec<u8>, &mut FrameOffload)> {
        let (frame, offload) = self.frames.get_mut(self.handed_out.next_again()?)?;
        Some((self.handed_out.next_number(), frame, offload))
    }

    /// [`Self::front_again`] was handed out, or cannot be: on to the next.
    pub fn pass_again(&mut self, resent: bool) {
        self.handed_out.pass_again();
        self.resent += u64::from(resent);
    }

    /// Keeps a new frame that was just handed out, after all that had to be handed out again.
    pub fn keep(&mut self, frame: Vec<u8>, offload: FrameOffload) {
        self.bytes += frame.len();
        self.frames.push_back((frame, offload));
        self.handed_out.keep();
        while self.frames.len() > FRAMES_MAX || self.bytes > BYTES_MAX {
            let Some((oldest, _)) = self.frames.pop_front() else { break };
            self.bytes -= oldest.len();
            self.handed_out.forget_oldest();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers_again(retained: &mut Retained) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some((number, frame, _)) = retained.front_again() {
            assert_eq!(u64::from(frame[0]), number % 256);
            numbers.push(number);
            retained.pass_again(true);
        }
        numbers
    }

    fn keep(retained: &mut Retained, frames: u64, len: usize) {
        for _ in 0..frames {
            let number = retained.next_number();
            retained.keep(vec![(number % 256) as u8; len], FrameOffload::default());
        }
    }

    fn resume_after(retained: &mut Retained, frames: u64) {
        retained.attach(7, Some(InputPosition { end: 7, frames }));
    }

    #[test]
    fn frames_are_handed_out_again_with_their_numbers() {
        let mut retained = Retained::default();
        keep(&mut retained, 10, 60);
        resume_after(&mut retained, 7);
        assert_eq!(numbers_again(&mut retained), [8, 9, 10]);
        keep(&mut retained, 1, 60);
        resume_after(&mut retained, 9);
        assert_eq!(numbers_again(&mut retained), [10, 11]);
        assert_eq!((retained.resent(), retained.missed()), (5, 0));
    }

    #[test]
    fn retention_is_bounded_and_what_is_gone_is_counted() {
        let mut retained = Retained::default();
        keep(&mut retained, 20_000, 60);
        assert_eq!(retained.frames(), FRAMES_MAX);
        resume_after(&mut retained, 0);
        assert_eq!(retained.missed(), 20_000 - FRAMES_MAX as u64);
        assert_eq!(numbers_again(&mut retained).len(), FRAMES_MAX);
        keep(&mut retained, 20_000, 1500);
        assert!(retained.bytes() <= BYTES_MAX && retained.bytes() > BYTES_MAX - 1500);
        assert_eq!(retained.bytes(), retained.frames() * 1500);
        resume_after(&mut retained, 0);
        assert_eq!(numbers_again(&mut retained).len(), retained.frames(), "frames and numbers go together");
    }
}
