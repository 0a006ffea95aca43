//! Events per second, of the last second.

use std::time::Duration;

const SLOT_MS: u128 = 50;
/// One second, and the slot that is being filled.
const SLOTS: usize = 21;

/// Counts events in slots of 50 ms. Times are since any fixed moment and do not go back.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    counts: [u64; SLOTS],
    /// The number of the slot that is being filled.
    slot: u128,
}

impl Rate {
    /// Some events, now.
    pub fn add(&mut self, now: Duration, events: u64) {
        self.advance(now);
        let slot = (self.slot % SLOTS as u128) as usize;
        if let Some(count) = self.counts.get_mut(slot) {
            *count += events;
        }
    }

    /// Events in the second before the slot that is being filled; less than a second after the start, in what there was.
    pub fn per_s(&mut self, now: Duration) -> f64 {
        self.advance(now);
        let current = (self.slot % SLOTS as u128) as usize;
        let events: u64 =
            self.counts.iter().enumerate().filter(|(slot, _)| *slot != current).map(|(_, count)| count).sum();
        let complete = self.slot.min(SLOTS as u128 - 1);
        if complete == 0 { 0.0 } else { events as f64 * 1000.0 / (complete * SLOT_MS) as f64 }
    }

    fn advance(&mut self, now: Duration) {
        let slot = (now.as_millis() / SLOT_MS).max(self.slot);
        for passed in (self.slot + 1..=slot).take(SLOTS) {
            if let Some(count) = self.counts.get_mut((passed % SLOTS as u128) as usize) {
                *count = 0;
            }
        }
        self.slot = slot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_the_last_second_counts() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_s(ms(0)), 0.0);
        for at in (0..3000).step_by(10) {
            rate.add(ms(at), 1);
        }
        assert_eq!(rate.per_s(ms(3000)), 100.0);
        assert_eq!(rate.per_s(ms(3500)), 50.0);
        assert_eq!(rate.per_s(ms(10_000_000)), 0.0);
    }

    #[test]
    fn the_first_second_is_not_diluted() {
        let mut rate = Rate::default();
        for at in (0..500).step_by(10) {
            rate.add(ms(at), 2);
        }
        assert_eq!(rate.per_s(ms(500)), 200.0);
    }
}
