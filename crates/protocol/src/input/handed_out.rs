//! [`HandedOut`]: what a network end has handed out to the VM processes that came to it.

use super::InputPosition;

/// Which frames a network end has handed out, by number, and with which it goes on: for a VM process that takes the place of another one, with
/// those that the other one had taken and the new one has not, as far as they are kept. The frames themselves are kept by whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandedOut {
    /// Number of the oldest frame that is kept; `next` if there is none.
    first: u64,
    /// Number that the next new frame gets.
    next: u64,
    /// Number of the next frame to hand out again; `next` if there is none.
    again: u64,
    missed: u64,
}

impl Default for HandedOut {
    fn default() -> Self {
        Self { first: 1, next: 1, again: 1, missed: 0 }
    }
}

impl HandedOut {
    /// Number of the frame that is handed out next, an old one or a new one.
    pub fn next_number(&self) -> u64 {
        self.again
    }

    /// Frames since the start that were to be handed out again and were no longer kept.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// A VM process connects to the end of this identity, and has taken frames as far as `resume` says. Without that, or with the position of
    /// another end, or one that no frame has had yet, it begins with the next new frame.
    pub fn attach(&mut self, end: u64, resume: Option<InputPosition>) {
        let taken = resume.filter(|position| position.end == end).map(|position| position.frames);
        self.again = match taken.filter(|&taken| taken < self.next) {
            Some(taken) => {
                self.missed += self.first.saturating_sub(taken + 1);
                self.first.max(taken + 1)
            }
            None => self.next,
        };
    }

    /// Which of the frames that are kept, counted from the oldest, is to be handed out again next; none if a new one is.
    pub fn next_again(&self) -> Option<usize> {
        usize::try_from(self.again - self.first).ok().filter(|_| self.again < self.next)
    }

    /// The frame of [`Self::next_again`] was handed out, or cannot be: on to the next.
    pub fn pass_again(&mut self) {
        self.again = self.next.min(self.again + 1);
    }

    /// A new frame was handed out, after all that had to be handed out again, and is kept.
    pub fn keep(&mut self) {
        self.next += 1;
        self.again = self.next;
    }

    /// The oldest frame is kept no more.
    pub fn forget_oldest(&mut self) {
        self.first = self.next.min(self.first + 1);
        self.again = self.again.max(self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 7;

    fn kept(frames: usize) -> HandedOut {
        let mut handed_out = HandedOut::default();
        (0..frames).for_each(|_| handed_out.keep());
        handed_out
    }

    fn after(handed_out: &mut HandedOut, frames: u64) -> Vec<u64> {
        handed_out.attach(END, Some(InputPosition { end: END, frames }));
        let mut numbers = Vec::new();
        while handed_out.next_again().is_some() {
            numbers.push(handed_out.next_number());
            handed_out.pass_again();
        }
        numbers
    }

    #[test]
    fn what_follows_a_position_is_handed_out_again_once_per_receiver() {
        let mut handed_out = kept(10);
        assert_eq!((handed_out.next_number(), handed_out.next_again()), (11, None));
        assert_eq!(after(&mut handed_out, 7), [8, 9, 10]);
        assert_eq!(handed_out.next_number(), 11);
        handed_out.keep();
        assert_eq!(after(&mut handed_out, 9), [10, 11]);
        assert_eq!(handed_out.missed(), 0);
    }

    #[test]
    fn what_is_kept_no_more_is_missed() {
        let mut handed_out = kept(10);
        (0..4).for_each(|_| handed_out.forget_oldest());
        assert_eq!(after(&mut handed_out, 2), (5..=10).collect::<Vec<_>>());
        assert_eq!(handed_out.missed(), 2);
        (0..10).for_each(|_| handed_out.forget_oldest());
        assert_eq!((after(&mut handed_out, 8), handed_out.missed()), (vec![], 4));
    }

    #[test]
    fn a_position_that_says_nothing_begins_anew() {
        let mut handed_out = kept(10);
        for frames in [10, 11, u64::MAX] {
            assert!(after(&mut handed_out, frames).is_empty());
        }
        for resume in [None, Some(InputPosition { end: END + 1, frames: 3 })] {
            handed_out.attach(END, resume);
            assert_eq!((handed_out.next_number(), handed_out.next_again()), (11, None));
        }
    }
}
