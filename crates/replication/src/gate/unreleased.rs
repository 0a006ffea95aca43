//! What a new primary sends again.

use std::collections::VecDeque;

use protocol::Epoch;

use super::{GATE_BYTES_MAX, GATE_FRAMES_MAX, GatedFrame};

/// Most bytes that are kept. A gate holds no more at a time than a fourth of it; the rest is for what has left and is not known to have.
const BYTES_MAX: usize = 4 * GATE_BYTES_MAX;
/// Most frames that are kept, and most epochs.
const COUNT_MAX: usize = 4 * GATE_FRAMES_MAX;

/// Output of committed epochs that the primary has not said to have left, oldest first.
///
/// If a primary does not tell in time, what is oldest is forgotten: it has most likely left, and a network may lose frames.
#[derive(Default)]
pub(crate) struct UnreleasedOutput {
    epochs: VecDeque<(Epoch, Vec<GatedFrame>)>,
    frames: usize,
    bytes: usize,
}

impl UnreleasedOutput {
    pub fn push(&mut self, epoch: Epoch, output: Vec<GatedFrame>) {
        self.frames += output.len();
        self.bytes += bytes_of(&output);
        self.epochs.push_back((epoch, output));
        while self.bytes > BYTES_MAX || self.frames > COUNT_MAX || self.epochs.len() > COUNT_MAX {
            self.forget_oldest();
        }
    }

    /// What was output through `epoch` has left.
    pub fn released(&mut self, through: Epoch) {
        while self.epochs.front().is_some_and(|&(epoch, _)| epoch <= through) {
            self.forget_oldest();
        }
    }

    /// Adds what came later.
    pub fn append(&mut self, later: Self) {
        for (epoch, output) in later.epochs {
            self.push(epoch, output);
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, output)) = self.epochs.pop_front() {
            self.frames -= output.len();
            self.bytes -= bytes_of(&output);
        }
    }

    pub fn epochs(&self) -> u64 {
        self.epochs.len() as u64
    }

    pub fn into_frames(self) -> Vec<GatedFrame> {
        self.epochs.into_iter().flat_map(|(_, output)| output).collect()
    }
}

fn bytes_of(output: &[GatedFrame]) -> usize {
    output.iter().map(|frame| frame.bytes().len()).sum()
}

#[cfg(test)]
mod tests {
    use network::FrameOffload;

    use super::*;

    fn frames(count: usize, len: usize) -> Vec<GatedFrame> {
        let frame = GatedFrame::new(0, &vec![0; len], FrameOffload::default()).unwrap();
        vec![frame; count]
    }

    #[test]
    fn what_has_left_is_not_kept() {
        let mut unreleased = UnreleasedOutput::default();
        (1..=4).for_each(|epoch| unreleased.push(Epoch::new(epoch), frames(epoch as usize, 60)));
        unreleased.released(Epoch::new(2));
        assert_eq!(unreleased.epochs(), 2);
        unreleased.released(Epoch::new(1));
        assert_eq!(unreleased.into_frames().len(), 3 + 4);
    }

    #[test]
    fn a_primary_that_never_tells_what_has_left_costs_bounded_memory() {
        let mut unreleased = UnreleasedOutput::default();
        for epoch in 1..=200_000 {
            unreleased.push(Epoch::new(epoch), frames(1, 1500));
        }
        assert!(unreleased.bytes <= BYTES_MAX && unreleased.frames <= COUNT_MAX);
        assert_eq!(
            unreleased.epochs.back().map(|&(epoch, _)| epoch),
            Some(Epoch::new(200_000)),
            "the newest ones are kept"
        );
        for epoch in 200_001..=400_000 {
            unreleased.push(Epoch::new(epoch), Vec::new());
        }
        assert!(unreleased.epochs.len() <= COUNT_MAX);
        unreleased.released(Epoch::new(u64::MAX));
        assert_eq!((unreleased.frames, unreleased.bytes), (0, 0));
    }
}
