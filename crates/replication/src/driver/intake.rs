//! [`Intake`]: what the secondary has taken in of the first copy.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::TakenIn;

/// What the secondary has taken in of the first copy. A heartbeat follows each piece, and an ack that names it says that the piece is not on
/// its way any more: what lies in buffers of this host, or of the network, does not count.
#[derive(Default)]
pub(super) struct Intake {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    /// Pieces on their way, each with the number of its heartbeat.
    on_the_way: VecDeque<(u64, TakenIn)>,
    taken: Taken,
}

/// All that the secondary has taken in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    pub pieces: u64,
    pub amounts: TakenIn,
}

impl Intake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece was sent, and heartbeat `number` is about to be.
    pub fn sent(&self, number: u64, piece: TakenIn) {
        self.state().on_the_way.push_back((number, piece));
    }

    /// The secondary has heard heartbeat `number`.
    pub fn heard(&self, number: u64) {
        let mut state = self.state();
        let before = state.taken.pieces;
        while let Some(&(heartbeat, piece)) = state.on_the_way.front()
            && heartbeat <= number
        {
            state.on_the_way.pop_front();
            state.taken.pieces += 1;
            state.taken.amounts += piece;
        }
        if state.taken.pieces > before {
            drop(state);
            self.grown.notify_all();
        }
    }

    /// What it has taken in so far.
    pub fn taken(&self) -> Taken {
        self.state().taken
    }

    /// Waits until it has taken in more than `pieces`, but not for long.
    pub fn wait_for_more(&self, pieces: u64, time_max: Duration) {
        let state = self.state();
        let is_waiting = |state: &mut State| state.taken.pieces <= pieces;
        drop(self.grown.wait_timeout_while(state, time_max, is_waiting));
    }
}

#[cfg(test)]
mod tests {
    use protocol::Amount;

    use super::*;

    fn piece(bytes: u64) -> TakenIn {
        TakenIn { memory: Amount { bytes, wire_bytes: bytes / 2 }, disks: Amount::default() }
    }

    #[test]
    fn a_piece_counts_when_the_heartbeat_after_it_was_heard() {
        let intake = Intake::default();
        [(3, 100), (5, 10), (9, 1)].into_iter().for_each(|(number, bytes)| intake.sent(number, piece(bytes)));
        for (heard, pieces, bytes) in [(2, 0, 0), (4, 1, 100), (4, 1, 100), (5, 2, 110), (u64::MAX, 3, 111)] {
            intake.heard(heard);
            let taken = intake.taken();
            assert_eq!((taken.pieces, taken.amounts.memory.bytes), (pieces, bytes), "heard {heard}");
        }
        intake.wait_for_more(2, Duration::from_secs(3600));
    }
}
