//! [`EarlyRounds`]: how much of a checkpoint is copied before the pause, where the guest cannot be stopped at its first write to a page.

/// Pages that may be left for the pause: about a tenth of a millisecond of copying.
pub const EARLY_PAGES_LEFT: u64 = 128;
/// Rounds of copying, beyond which the rest is copied in the pause however much it is.
const ROUNDS_MAX: u32 = 4;

/// Whether so many dirty pages are too many to be copied in the pause, so that some are copied before it.
pub fn are_copied_early(dirty_pages: u64) -> bool {
    dirty_pages > EARLY_PAGES_LEFT
}

/// Rounds of copying what the guest has written while it goes on. Each leaves what was written during it.
#[derive(Clone, Copy, Debug, Default)]
pub struct EarlyRounds {
    rounds: u32,
    /// Pages that were dirty when the last one began.
    pages_before: Option<u64>,
}

impl EarlyRounds {
    /// So many pages are dirty. Whether another round is worth it, which begins now then: there are many, and less than half of those before.
    pub fn goes_on(&mut self, dirty_pages: u64) -> bool {
        let got_somewhere = self.pages_before.is_none_or(|before| dirty_pages <= before / 2);
        let goes_on = self.rounds < ROUNDS_MAX && are_copied_early(dirty_pages) && got_somewhere;
        if goes_on {
            self.rounds += 1;
            self.pages_before = Some(dirty_pages);
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many rounds it is over, if each finds so many dirty pages.
    fn rounds(dirty_pages: &[u64]) -> usize {
        let mut rounds = EarlyRounds::default();
        dirty_pages.iter().take_while(|&&pages| rounds.goes_on(pages)).count()
    }

    #[test]
    fn rounds_go_on_while_they_leave_much_less_than_there_was() {
        assert_eq!(rounds(&[1000, 500, 250, 128]), 3, "little is left");
        assert_eq!(rounds(&[1000, 501]), 1, "another one would not leave much less");
        assert_eq!(rounds(&[EARLY_PAGES_LEFT]), 0);
        assert_eq!(rounds(&[1 << 20, 1 << 19, 1 << 18, 1 << 17, 1 << 16]), 4, "the rest is copied in the pause");
    }
}
