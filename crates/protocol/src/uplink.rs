//! [`Uplink`]: when a VM whose network is gone moves to its secondary.

use std::time::Duration;

use super::MonotonicTime;

/// For how long a network end may be gone before its VM moves: whoever owns it starts it again meanwhile, if that is possible.
pub const UPLINK_PATIENCE: Duration = Duration::from_secs(1);

/// How many times as long it takes until the secondary is asked again after a hand-over that did not come about.
const AGAIN_AFTER: u32 = 10;

/// The network ends of a primary, as far as it can reach them.
#[derive(Clone, Copy, Debug)]
pub struct Uplink {
    patience: Duration,
    lost_since: Option<MonotonicTime>,
    asked_at: Option<MonotonicTime>,
}

impl Uplink {
    /// Network ends that can be reached. The VM moves when one has been gone for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, lost_since: None, asked_at: None }
    }

    /// Whether the VM is to be handed over now. `is_whole`: all of its network ends can be reached. `could_move`: it is protected, and its
    /// secondary says that it reaches all of its own; a VM does not move from one broken network to another.
    pub fn look(&mut self, is_whole: bool, could_move: bool, now: MonotonicTime) -> bool {
        if is_whole {
            (self.lost_since, self.asked_at) = (None, None);
            return false;
        }
        let since = *self.lost_since.get_or_insert(now);
        let was_asked = self.asked_at.is_some_and(|asked| now.since(asked) < self.patience * AGAIN_AFTER);
        let is_due = could_move && !was_asked && now.since(since) >= self.patience;
        if is_due {
            self.asked_at = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_millis(ms))
    }

    #[test]
    fn an_end_that_comes_back_in_time_moves_nothing() {
        let mut uplink = Uplink::new(UPLINK_PATIENCE);
        for ms in [0, 500, 999] {
            assert!(!uplink.look(false, true, at(ms)));
        }
        assert!(!uplink.look(true, true, at(1000)));
        assert!(!uplink.look(false, true, at(1001)), "it is another loss");
        assert!(!uplink.look(false, true, at(2000)));
        assert!(uplink.look(false, true, at(2001)));
    }

    #[test]
    fn nothing_moves_to_where_the_network_is_gone_as_well() {
        let mut uplink = Uplink::new(UPLINK_PATIENCE);
        for ms in [0, 1000, 100_000] {
            assert!(!uplink.look(false, false, at(ms)));
        }
        assert!(uplink.look(false, true, at(100_001)), "as soon as it is back there");
    }

    #[test]
    fn a_secondary_that_did_not_take_over_is_not_asked_all_the_time() {
        let mut uplink = Uplink::new(UPLINK_PATIENCE);
        uplink.look(false, true, at(0));
        let asked: Vec<u64> = (0..25_000).step_by(100).filter(|&ms| uplink.look(false, true, at(ms))).collect();
        assert_eq!(asked, [1000, 11_000, 21_000]);
    }
}
