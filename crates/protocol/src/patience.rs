//! [`Patience`]: whether a secondary is too slow to be kept.

use std::time::Duration;

use super::MonotonicTime;

/// A guest that ran so long without having to wait is not slowed down any more.
const RECOVERED_AFTER: Duration = Duration::from_secs(1);

/// How much the guest had to wait for its secondary lately.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    too_slow_after: Duration,
    spell: Option<Spell>,
    handing_over_since: Option<MonotonicTime>,
}

/// A time in which the guest has to wait again and again.
#[derive(Clone, Copy, Debug)]
struct Spell {
    since: MonotonicTime,
    waited: Duration,
    /// When the last wait ended.
    last: MonotonicTime,
}

impl Patience {
    /// With a secondary for which the guest has not waited yet, and which is too slow if it has to for `too_slow_after`.
    pub fn new(too_slow_after: Duration) -> Self {
        Self { too_slow_after, spell: None, handing_over_since: None }
    }

    /// The guest has waited from `from` to `to`, and may still. Whether its secondary is to be given up as
    /// [too slow](super::DropReason::TooSlow): that has gone on for long, and has taken half of the guest's time or more.
    pub fn waited(&mut self, from: MonotonicTime, to: MonotonicTime) -> bool {
        let is_same = |spell: &Spell| from.since(spell.last) < RECOVERED_AFTER;
        let mut spell = self.spell.filter(is_same).unwrap_or(Spell { since: from, waited: Duration::ZERO, last: from });
        spell.waited += to.since(from);
        spell.last = to;
        self.spell = Some(spell);
        let length = to.since(spell.since);
        length >= self.too_slow_after && spell.waited * 2 >= length
    }

    /// The guest stands still for a hand-over. Whether the secondary is to be given up as too slow: one that says that it lives, but does
    /// not take over, would hold the guest for ever.
    pub fn hands_over(&mut self, now: MonotonicTime) -> bool {
        let since = *self.handing_over_since.get_or_insert(now);
        now.since(since) > self.too_slow_after
    }

    /// The guest does not stand still for a hand-over any more.
    pub fn goes_on(&mut self) {
        self.handing_over_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOO_SLOW: Duration = Duration::from_secs(10);

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_millis(ms))
    }

    /// Lets the guest wait and run in turn, in milliseconds; after how long it is too slow.
    fn after(wait_ms: u64, run_ms: u64) -> Option<u64> {
        let mut patience = Patience::new(TOO_SLOW);
        let mut now = 0;
        while now < 60_000 {
            if patience.waited(at(now), at(now + wait_ms)) {
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

    #[test]
    fn one_that_does_not_take_over_as_asked_is_too_slow() {
        let mut patience = Patience::new(TOO_SLOW);
        assert!(!patience.hands_over(at(5_000)) && !patience.hands_over(at(15_000)));
        assert!(patience.hands_over(at(15_001)));
        patience.goes_on();
        assert!(!patience.hands_over(at(16_000)), "the next hand-over has its own time");
    }
}
