//! [`CopyWindow`]: how much of a first copy is on its way.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::MonotonicTime;

/// Pieces on their way: at least and in the beginning so many, and never more than those.
const PIECES_MIN: usize = 8;
const PIECES_MAX: usize = 128;
/// There are too many if the last one is taken in later than this: what comes up meanwhile waits behind them.
const TAKEN_IN_WITHIN: Duration = Duration::from_millis(250);

/// The pieces of a first copy that were handed to whoever sends them, and that the secondary has not said to have taken in.
///
/// There may be as many as it takes in within a quarter of a second: enough that a long way does not stand empty, and so few on a slow one that
/// what the guest writes meanwhile need not wait for long behind them.
#[derive(Clone, Debug)]
pub struct CopyWindow {
    /// When each was handed over, the oldest first.
    on_the_way: VecDeque<MonotonicTime>,
    pieces_max: usize,
}

impl CopyWindow {
    /// Nothing is on its way.
    pub fn new() -> Self {
        Self { on_the_way: VecDeque::new(), pieces_max: PIECES_MIN }
    }

    /// A piece is handed over to be sent.
    pub fn pushed(&mut self, now: MonotonicTime) {
        self.on_the_way.push_back(now);
    }

    /// The secondary has taken in all pieces but the newest `left`.
    pub fn taken_in(&mut self, left: usize, now: MonotonicTime) {
        while self.on_the_way.len() > left {
            let Some(pushed_at) = self.on_the_way.pop_front() else { return };
            let is_fast = now.since(pushed_at) < TAKEN_IN_WITHIN;
            let wanted = if is_fast { self.pieces_max + 1 } else { self.pieces_max / 2 };
            self.pieces_max = wanted.clamp(PIECES_MIN, PIECES_MAX);
        }
    }

    /// So many pieces are on their way.
    pub fn on_the_way(&self) -> usize {
        self.on_the_way.len()
    }

    /// Whether another one may be handed over.
    pub fn has_room(&self) -> bool {
        self.on_the_way.len() < self.pieces_max
    }
}

impl Default for CopyWindow {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_millis(ms))
    }

    /// Fills the window again and again, and has it taken in after `ms`; how many pieces there is room for then.
    fn room_when_taken_in_after(ms: u64) -> usize {
        let mut window = CopyWindow::new();
        let mut pushed = 0;
        for turn in 0..100 {
            pushed = 0;
            while window.has_room() {
                window.pushed(at(turn * 1000));
                pushed += 1;
            }
            window.taken_in(0, at(turn * 1000 + ms));
        }
        pushed
    }

    #[test]
    fn as_many_pieces_are_on_their_way_as_are_taken_in_soon() {
        assert_eq!(room_when_taken_in_after(249), PIECES_MAX);
        assert_eq!(room_when_taken_in_after(250), PIECES_MIN);
    }

    #[test]
    fn a_way_that_becomes_slow_has_its_room_halved_with_each_piece() {
        let mut window = CopyWindow::new();
        (0..40).for_each(|_| window.pushed(at(0)));
        window.taken_in(4, at(10));
        assert_eq!((window.on_the_way(), window.pieces_max), (4, PIECES_MIN + 36));
        window.taken_in(3, at(1000));
        assert_eq!(window.pieces_max, (PIECES_MIN + 36) / 2);
        window.taken_in(9, at(1000));
        assert_eq!(window.on_the_way(), 3, "what was said before takes nothing back");
    }
}
