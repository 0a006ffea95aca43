//! Frames that were handed to a VM process and may have died with it.

use std::collections::VecDeque;

use crate::offload::FrameOffload;

/// Frames kept at most.
const FRAMES_MAX: usize = 4096;
/// Frame bytes kept at most.
const BYTES_MAX: usize = 4 << 20;

/// The frames handed out last, by their numbers, and which of them are to be handed out again.
#[derive(Debug)]
pub(crate) struct Retained {
    frames: VecDeque<(Vec<u8>, FrameOffload)>,
    bytes: usize,
    /// Number that the next new frame gets.
    next: u64,
    /// Number of the next frame to hand out again; `next` if there is none.
    again: u64,
    resent: u64,
    missed: u64,
}

impl Default for Retained {
    fn default() -> Self {
        Self { frames: VecDeque::new(), bytes: 0, next: 1, again: 1, resent: 0, missed: 0 }
    }
}

impl Retained {
    /// Number of the frame that is handed out next, an old one or a new one.
    pub fn next_number(&self) -> u64 {
        self.again
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
        self.missed
    }

    /// A new receiver has taken all up to frame `taken`. A number that no frame has had yet says nothing.
    pub fn resume_after(&mut self, taken: u64) {
        if taken >= self.next {
            return self.start_anew();
        }
        let first = self.first();
        let wanted = taken.saturating_add(1);
        self.missed += first.saturating_sub(wanted);
        self.again = wanted.max(first);
    }

    /// A new receiver wants new frames only.
    pub fn start_anew(&mut self) {
        self.again = self.next;
    }

    /// The next frame to hand out again, with its number.
    pub fn front_again(&mut self) -> Option<(u64, &mut Vec<u8>, &mut FrameOffload)> {
        let index = usize::try_from(self.again.checked_sub(self.first())?).ok()?;
        let (frame, offload) = self.frames.get_mut(index)?;
        Some((self.again, frame, offload))
    }

    /// [`Self::front_again`] was handed out, or cannot be: on to the next.
    pub fn pass_again(&mut self, resent: bool) {
        self.again = self.next.min(self.again + 1);
        self.resent += u64::from(resent);
    }

    /// Keeps a new frame that was just handed out, after all that had to be handed out again.
    pub fn keep(&mut self, frame: Vec<u8>, offload: FrameOffload) {
        self.bytes += frame.len();
        self.frames.push_back((frame, offload));
        self.next += 1;
        while self.frames.len() > FRAMES_MAX || self.bytes > BYTES_MAX {
            let Some((oldest, _)) = self.frames.pop_front() else { break };
            self.bytes -= oldest.len();
        }
        self.again = self.next;
    }

    fn first(&self) -> u64 {
        self.next - self.frames.len() as u64
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

    #[test]
    fn what_follows_a_position_is_handed_out_again_once_per_receiver() {
        let mut retained = Retained::default();
        keep(&mut retained, 10, 60);
        assert_eq!((retained.next_number(), retained.front_again().is_none()), (11, true));
        retained.resume_after(7);
        assert_eq!(retained.next_number(), 8);
        assert_eq!(numbers_again(&mut retained), [8, 9, 10]);
        assert!(numbers_again(&mut retained).is_empty());
        keep(&mut retained, 1, 60);
        assert!(numbers_again(&mut retained).is_empty());
        retained.resume_after(9);
        assert_eq!(numbers_again(&mut retained), [10, 11]);
        assert_eq!((retained.resent(), retained.missed()), (5, 0));
    }

    #[test]
    fn impossible_positions_resend_nothing() {
        let mut retained = Retained::default();
        keep(&mut retained, 10, 60);
        for taken in [10, 11, u64::MAX] {
            retained.resume_after(taken);
            assert_eq!((retained.next_number(), numbers_again(&mut retained)), (11, vec![]));
        }
    }

    #[test]
    fn retention_is_bounded_and_what_is_gone_is_counted() {
        let mut retained = Retained::default();
        keep(&mut retained, 20_000, 60);
        assert_eq!(retained.frames(), FRAMES_MAX);
        retained.resume_after(0);
        assert_eq!(retained.missed(), 20_000 - FRAMES_MAX as u64);
        assert_eq!(numbers_again(&mut retained).len(), FRAMES_MAX);
        keep(&mut retained, 20_000, 1500);
        assert!(retained.bytes() <= BYTES_MAX && retained.bytes() > BYTES_MAX - 1500);
        assert_eq!(retained.bytes(), retained.frames() * 1500);
    }
}
