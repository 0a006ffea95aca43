//! The longest time without a reply.

use std::time::{Duration, Instant};

/// Watches the time between replies to a client that always waits for one.
#[derive(Clone, Copy, Debug)]
pub struct Gaps {
    last: Instant,
    longest: Duration,
}

impl Gaps {
    /// Begins with a gap that opens now.
    pub fn new(now: Instant) -> Self {
        Self { last: now, longest: Duration::ZERO }
    }

    /// A reply has come.
    pub fn reply(&mut self, now: Instant) {
        self.longest = self.longest.max(self.open(now));
        self.last = now;
    }

    /// How long the gap is that is open now.
    pub fn open(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last)
    }

    /// The longest gap since the last call, the open one included, which the next call will see again.
    pub fn take_longest(&mut self, now: Instant) -> Duration {
        std::mem::take(&mut self.longest).max(self.open(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_found_closed_or_open() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut gaps = Gaps::new(start);
        for ms in [1, 2, 42, 43] {
            gaps.reply(at(ms));
        }
        assert_eq!(gaps.take_longest(at(44)).as_millis(), 40);
        assert_eq!(gaps.take_longest(at(45)).as_millis(), 2, "the mark did not begin anew");
        assert_eq!(gaps.take_longest(at(243)).as_millis(), 200, "an open gap was not seen");
        gaps.reply(at(300));
        assert_eq!(gaps.take_longest(at(301)).as_millis(), 257, "the part before the mark was cut off");
    }
}
