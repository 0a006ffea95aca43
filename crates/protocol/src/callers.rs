//! [`Callers`]: those who connect to a secondary, of whom one may be its primary.

use std::collections::VecDeque;

/// Most connections that a secondary greets at a time.
pub const CALLERS_MAX: usize = 16;

/// Those who have connected to a secondary that has no primary yet, by number. Each may take its time to say who it is, and none keeps others
/// waiting by that; as soon as one [is admitted](super::admits), all others are turned away.
#[derive(Clone, Debug, Default)]
pub struct Callers {
    /// Those who have not said who they are, the one that came first foremost.
    waiting: VecDeque<u64>,
    admitted: Option<u64>,
}

impl Callers {
    /// How many are greeted.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Somebody has connected. Answers whom to hang up on: the one that has said nothing for longest, where too many are being greeted, as the
    /// primary says at once who it is; or the new one, where there is a primary already.
    pub fn comes(&mut self, caller: u64) -> Option<u64> {
        if self.admitted.is_some() {
            return Some(caller);
        }
        self.waiting.push_back(caller);
        if self.waiting.len() > CALLERS_MAX { self.waiting.pop_front() } else { None }
    }

    /// A caller has proved to be the primary. False if another one has before, or this one was hung up on.
    pub fn admit(&mut self, caller: u64) -> bool {
        let is_waiting = self.waiting.contains(&caller);
        if self.admitted.is_some() || !is_waiting {
            return false;
        }
        self.leaves(caller);
        self.admitted = Some(caller);
        true
    }

    /// A caller was turned away, or has hung up: also one that was admitted, which may come again.
    pub fn leaves(&mut self, caller: u64) {
        self.waiting.retain(|&waiting| waiting != caller);
        if self.admitted == Some(caller) {
            self.admitted = None;
        }
    }

    /// Takes those who are to be hung up on, as the primary was found.
    pub fn turn_away(&mut self) -> impl Iterator<Item = u64> {
        std::mem::take(&mut self.waiting).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_says_nothing_makes_room_for_others() {
        let mut callers = Callers::default();
        for caller in 0..CALLERS_MAX as u64 {
            assert_eq!(callers.comes(caller), None);
        }
        callers.leaves(3);
        assert_eq!(callers.comes(100), None);
        assert_eq!(callers.comes(101), Some(0));
        assert_eq!(callers.comes(102), Some(1));
        assert_eq!(callers.waiting(), CALLERS_MAX);
        assert!(!callers.admit(1), "nobody listens to it any more");
        assert!(callers.admit(102));
    }

    #[test]
    fn one_primary_is_followed_and_all_others_are_turned_away() {
        let mut callers = Callers::default();
        (0..3).for_each(|caller| _ = callers.comes(caller));
        assert!(callers.admit(1));
        assert!(!callers.admit(2));
        assert_eq!(callers.comes(7), Some(7));
        // It was gone before it heard of it.
        callers.leaves(1);
        assert!(callers.admit(2));
        assert_eq!(callers.turn_away().collect::<Vec<_>>(), [0]);
    }
}
