//! Whether a secondary is too slow to be kept.

use std::time::{Duration, Instant};

/// A guest that ran so long without having to wait is not slowed down any more.
const RECOVERED_AFTER: Duration = Duration::from_secs(1);

/// How much the guest had to wait for its secondary lately.
#[derive(Debug, Default)]
pub(super) struct Slowness(Option<Spell>);

/// A time in which the guest has to wait again and again.
#[derive(Clone, Copy, Debug)]
struct Spell {
    since: Instant,
    waited: Duration,
    /// When the last wait ended.
    last: Instant,
}

impl Slowness {
    /// The guest has waited from `from` to `to`, and may still. Whether that has gone on for `too_slow_after`, and has taken half of the
    /// guest's time or more.
    pub fn waited(&mut self, from: Instant, to: Instant, too_slow_after: Duration) -> bool {
        let is_same = |spell: &Spell| from.saturating_duration_since(spell.last) < RECOVERED_AFTER;
        let mut spell = self.0.filter(is_same).unwrap_or(Spell { since: from, waited: Duration::ZERO, last: from });
        spell.waited += to.saturating_duration_since(from);
        spell.last = to;
        self.0 = Some(spell);
        let length = to.saturating_duration_since(spell.since);
        length >= too_slow_after && spell.waited * 2 >= length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOO_SLOW: Duration = Duration::from_secs(10);

    /// Lets the guest wait and run in turn, in milliseconds; after how long it is too slow.
    fn after(wait_ms: u64, run_ms: u64) -> Option<u64> {
        let (mut slowness, start) = (Slowness::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let mut now = 0;
        while now < 60_000 {
            if slowness.waited(at(now), at(now + wait_ms), TOO_SLOW) {
                return Some(now + wait_ms);
            }
            now += wait_ms + run_ms;
        }
        None
    }

    #[test]
    fn one_that_stands_still_is_too_slow_after_the_time_given() {
        assert_eq!(after(5, 0), Some(10_000));
    }

    #[test]
    fn one_that_takes_most_of_the_guests_time_is_too_slow_though_each_wait_is_short() {
        assert!(after(250, 40).is_some_and(|ms| (10_000..11_000).contains(&ms)));
    }

    #[test]
    fn one_that_costs_less_than_half_of_the_time_is_kept() {
        assert_eq!(after(40, 60), None);
    }

    #[test]
    fn one_that_recovers_in_between_is_kept() {
        assert_eq!(after(9_000, 1_100), None);
    }
}
