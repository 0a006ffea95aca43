//! [`CopyTurns`]: what is sent next while a VM is copied.

use super::CopyWindow;

/// What is sent next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyTurn {
    /// A piece of what the guest has written to disks.
    Writes,
    /// A piece of what is copied: of memory, or of the disks as they are.
    Content,
    /// Nothing, before the secondary has taken something in.
    Wait,
    /// Nothing: all of it is taken in.
    Over,
}

/// A part of a first copy in which something is copied once, a round of memory for example, and what the guest writes to disks has its turns, so that
/// neither waits for the other however long it is. Disk writes are counted in whatever whoever drives this counts them in.
#[derive(Clone, Copy, Debug)]
pub struct CopyTurns {
    /// It is not over before so many were sent.
    writes_due: u64,
    /// The last piece was of disk writes.
    had_writes: bool,
}

impl CopyTurns {
    /// It begins, and the guest has written so much since the first copy did. What it writes from now on is sent in its turns, too, but not waited
    /// for: it might go on for ever.
    pub fn new(written: u64) -> Self {
        Self { writes_due: written, had_writes: false }
    }

    /// What is next. Of what the guest has written since the first copy began, `sent` was handed over, and `waiting` was not; `has_content`: there
    /// is something left to be copied.
    pub fn next(&mut self, sent: u64, waiting: u64, has_content: bool, window: &CopyWindow) -> CopyTurn {
        if !has_content && sent >= self.writes_due {
            return if window.on_the_way() == 0 { CopyTurn::Over } else { CopyTurn::Wait };
        }
        if !window.has_room() {
            return CopyTurn::Wait;
        }
        self.had_writes = waiting > 0 && !(has_content && self.had_writes);
        if self.had_writes { CopyTurn::Writes } else { CopyTurn::Content }
    }
}

#[cfg(test)]
mod tests {
    use super::super::MonotonicTime;
    use super::*;

    #[test]
    fn disk_writes_and_content_take_turns() {
        let mut turns = CopyTurns::new(5);
        let window = CopyWindow::new();
        let mut next = |sent, waiting, has_content| turns.next(sent, waiting, has_content, &window);
        assert_eq!(next(0, 5, true), CopyTurn::Writes);
        assert_eq!(next(1, 4, true), CopyTurn::Content);
        assert_eq!(next(1, 4, true), CopyTurn::Writes);
        assert_eq!(next(5, 0, true), CopyTurn::Content);
        assert_eq!(next(5, 0, true), CopyTurn::Content, "nothing is written meanwhile");
        assert_eq!(next(5, 3, true), CopyTurn::Writes);
        assert_eq!(next(5, 3, false), CopyTurn::Over, "what was written later is not waited for");
    }

    #[test]
    fn what_was_written_before_is_sent_to_its_end() {
        let mut turns = CopyTurns::new(5);
        let window = CopyWindow::new();
        for sent in 0..5 {
            assert_eq!(turns.next(sent, 7 - sent, false, &window), CopyTurn::Writes);
        }
        assert_eq!(turns.next(5, 2, false, &window), CopyTurn::Over);
    }

    #[test]
    fn nothing_is_over_before_it_is_taken_in_and_nothing_sent_without_room() {
        let (mut turns, mut window) = (CopyTurns::new(0), CopyWindow::new());
        let now = MonotonicTime::default();
        window.pushed(now);
        assert_eq!(turns.next(0, 0, false, &window), CopyTurn::Wait);
        while window.has_room() {
            window.pushed(now);
        }
        assert_eq!(turns.next(0, 9, true, &window), CopyTurn::Wait);
        window.taken_in(0, now);
        assert_eq!(turns.next(0, 0, false, &window), CopyTurn::Over);
    }
}
