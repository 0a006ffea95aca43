//! Rule 4, committed output: what a primary says to have left, and what a secondary sends again when it takes over.

use std::collections::VecDeque;

use super::Epoch;

/// Most bytes of output that are kept to be sent again.
pub const UNRELEASED_BYTES_MAX: usize = 64 << 20;
/// Most frames that are kept to be sent again, and most epochs.
pub const UNRELEASED_FRAMES_MAX: usize = 65_536;

/// Through which epoch all output of a primary has left, when that of epochs up to `released` may leave, and `oldest_waiting` is the epoch of
/// the oldest frame that has found no room in its network end yet. That is what the secondary is told: the rest may be lost with the primary.
pub fn left_through(released: Epoch, oldest_waiting: Option<Epoch>) -> Epoch {
    oldest_waiting.map_or(released, |oldest| released.min(oldest.before()))
}

/// Output of committed epochs that the primary has not said to have left, oldest first: what a new primary sends again. `O` is the output of
/// an epoch.
///
/// If a primary does not tell in time, what is oldest is forgotten: it has most likely left, and a network may lose frames.
#[derive(Clone, Debug)]
pub struct UnreleasedOutput<O> {
    epochs: VecDeque<Output<O>>,
    frames: usize,
    bytes: usize,
    left_through: Epoch,
}

#[derive(Clone, Debug)]
struct Output<O> {
    epoch: Epoch,
    output: O,
    frames: usize,
    bytes: usize,
}

impl<O> Default for UnreleasedOutput<O> {
    fn default() -> Self {
        Self { epochs: VecDeque::new(), frames: 0, bytes: 0, left_through: Epoch::NONE }
    }
}

impl<O> UnreleasedOutput<O> {
    /// Keeps the output of an epoch, so many frames with so many bytes, unless it is known to have left.
    pub fn push(&mut self, epoch: Epoch, output: O, frames: usize, bytes: usize) {
        if epoch <= self.left_through {
            return;
        }
        self.frames += frames;
        self.bytes += bytes;
        self.epochs.push_back(Output { epoch, output, frames, bytes });
        while self.bytes > UNRELEASED_BYTES_MAX
            || self.frames > UNRELEASED_FRAMES_MAX
            || self.epochs.len() > UNRELEASED_FRAMES_MAX
        {
            self.forget_oldest();
        }
    }

    /// What was output through `epoch` has left, says the primary.
    pub fn released(&mut self, through: Epoch) {
        self.left_through = self.left_through.max(through);
        while self.epochs.front().is_some_and(|output| output.epoch <= through) {
            self.forget_oldest();
        }
    }

    /// Adds what came later.
    pub fn append(&mut self, later: Self) {
        for Output { epoch, output, frames, bytes } in later.epochs {
            self.push(epoch, output, frames, bytes);
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(output) = self.epochs.pop_front() {
            self.frames -= output.frames;
            self.bytes -= output.bytes;
        }
    }

    /// Of how many epochs there is output.
    pub fn epochs(&self) -> u64 {
        self.epochs.len() as u64
    }

    /// All of it, to be sent again in this order.
    pub fn into_outputs(self) -> impl Iterator<Item = O> {
        self.epochs.into_iter().map(|output| output.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(unreleased: &mut UnreleasedOutput<u64>, epoch: u64, frames: usize) {
        unreleased.push(Epoch::new(epoch), epoch, frames, frames * 1500);
    }

    #[test]
    fn what_has_left_is_not_kept() {
        let mut unreleased = UnreleasedOutput::default();
        (1..=4).for_each(|epoch| push(&mut unreleased, epoch, epoch as usize));
        unreleased.released(Epoch::new(2));
        assert_eq!(unreleased.epochs(), 2);
        unreleased.released(Epoch::new(1));
        // What is executed late has left before it is here.
        push(&mut unreleased, 2, 1);
        assert_eq!(unreleased.frames, 3 + 4);
        assert_eq!(unreleased.into_outputs().collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn what_waits_for_room_has_not_left() {
        let epoch = Epoch::new;
        assert_eq!(left_through(epoch(7), None), epoch(7));
        assert_eq!(left_through(epoch(7), Some(epoch(5))), epoch(4));
        assert_eq!(left_through(epoch(7), Some(epoch(9))), epoch(7));
    }

    #[test]
    fn a_primary_that_never_tells_what_has_left_costs_bounded_memory() {
        let mut unreleased = UnreleasedOutput::default();
        (1..=200_000).for_each(|epoch| push(&mut unreleased, epoch, 1));
        assert!(unreleased.bytes <= UNRELEASED_BYTES_MAX && unreleased.frames <= UNRELEASED_FRAMES_MAX);
        let newest = unreleased.epochs.back().map(|output| output.epoch);
        assert_eq!(newest, Some(Epoch::new(200_000)), "the newest ones are kept");
        (200_001..=400_000).for_each(|epoch| push(&mut unreleased, epoch, 0));
        assert!(unreleased.epochs.len() <= UNRELEASED_FRAMES_MAX);
        unreleased.released(Epoch::new(u64::MAX));
        assert_eq!((unreleased.frames, unreleased.bytes), (0, 0));
    }
}
