//! [`ForwardedFrames`]: what the primary has passed on and no commit has consumed.

use std::collections::VecDeque;

use super::InputPosition;

/// Most memory that frames take which are kept, in bytes.
const BYTES_MAX: usize = 16 << 20;
/// Frames that are fed to a card at takeover, and their bytes. A card of a guest that does not take them yet holds 256 frames and 1 MiB,
/// some of which may be taken; what does not fit there is lost, and what is not fed can be had from the network end.
pub const FED_FRAMES_MAX: usize = 128;
const FED_BYTES_MAX: usize = 512 << 10;

/// A frame that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept<F> {
    /// The card that it is for, from 0.
    pub card: usize,
    /// Where the stream stands once it is taken.
    pub position: InputPosition,
    /// How long it is, in bytes.
    pub len: usize,
    /// The frame itself.
    pub frame: F,
}

/// The frames that a secondary has been passed and that are not known to be consumed, in the order in which they came. It feeds them to its
/// guest when it takes over.
#[derive(Clone, Debug)]
pub struct ForwardedFrames<F> {
    frames: VecDeque<Kept<F>>,
    bytes: usize,
    /// How far each card had been fed at the last commit.
    committed: Vec<InputPosition>,
}

impl<F> Default for ForwardedFrames<F> {
    fn default() -> Self {
        Self { frames: VecDeque::new(), bytes: 0, committed: Vec::new() }
    }
}

impl<F> ForwardedFrames<F> {
    /// Keeps a frame if there is room; one that is missing ends what can be fed at takeover, and the network end is asked for the rest.
    pub fn push(&mut self, kept: Kept<F>) {
        if self.bytes + memory_bytes(&kept) <= BYTES_MAX {
            self.bytes += memory_bytes(&kept);
            self.frames.push_back(kept);
        }
    }

    /// Forgets what a commit has consumed, which is how far each card was fed: the frame there, and all that came before it. Frames that came
    /// later may be here already, as they pass checkpoints.
    pub fn consumed(&mut self, positions: &[InputPosition]) {
        for (card, &position) in positions.iter().enumerate() {
            let of_card = |kept: &Kept<F>| kept.card == card;
            let is_later =
                |kept: &Kept<F>| of_card(kept) && kept.position.end == position.end && !position.covers(kept.position);
            let last = self.frames.iter().rposition(|kept| of_card(kept) && position.covers(kept.position));
            // Before the first commit nothing comes that it could have consumed.
            let is_new_end = self.committed.get(card).is_some_and(|committed| committed.end != position.end);
            // From another end than before, of which nothing came: whatever is here came from ends that the card had before.
            let end = match (last, self.frames.iter().position(is_later)) {
                (Some(last), _) => last + 1,
                (None, Some(first)) => first,
                (None, None) if is_new_end => self.frames.len(),
                (None, None) => 0,
            };
            let mut index = 0;
            self.frames.retain(|kept| {
                index += 1;
                index > end || !of_card(kept)
            });
        }
        self.bytes = self.frames.iter().map(memory_bytes).sum();
        self.committed.clear();
        self.committed.extend_from_slice(positions);
    }

    /// At takeover, takes the frames that follow `positions` without a gap, in the order in which they came, as many as a card surely takes;
    /// `positions` are moved along: the network end is asked for what follows them.
    pub fn take_following(&mut self, positions: &mut [InputPosition]) -> Vec<Kept<F>> {
        let mut following = Vec::new();
        let mut fed = vec![(0, 0); positions.len()];
        for kept in std::mem::take(&mut self.frames) {
            let (Some(position), Some((frames, bytes))) = (positions.get_mut(kept.card), fed.get_mut(kept.card)) else {
                continue;
            };
            if !kept.position.follows(*position) {
                continue;
            }
            (*frames, *bytes) = (*frames + 1, *bytes + kept.len);
            // Once there is no room, nothing of the card follows any more.
            if *frames <= FED_FRAMES_MAX && *bytes <= FED_BYTES_MAX {
                *position = kept.position;
                following.push(kept);
            }
        }
        self.bytes = 0;
        following
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

fn memory_bytes<F>(kept: &Kept<F>) -> usize {
    size_of::<Kept<F>>() + kept.len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(end: u64, frames: u64) -> InputPosition {
        InputPosition { end, frames }
    }

    fn store(frames: &[(usize, u64, u64)]) -> ForwardedFrames<()> {
        let mut store = ForwardedFrames::default();
        store.consumed(&[at(7, 0)]);
        for &(card, end, number) in frames {
            store.push(Kept { card, position: at(end, number), len: 60, frame: () });
        }
        store
    }

    fn fed(store: &mut ForwardedFrames<()>, positions: &mut [InputPosition]) -> Vec<(u64, u64)> {
        let fed = store.take_following(positions);
        fed.into_iter().map(|kept| (kept.position.end, kept.position.frames)).collect()
    }

    #[test]
    fn frames_that_a_commit_consumed_are_not_fed_again() {
        let mut store = store(&[(0, 7, 1), (0, 7, 2), (0, 7, 3), (0, 7, 4), (0, 7, 5)]);
        let mut positions = [at(7, 3)];
        store.consumed(&positions);
        assert_eq!(store.len(), 2);
        assert_eq!(fed(&mut store, &mut positions), [(7, 4), (7, 5)]);
        assert_eq!(positions, [at(7, 5)]);
        assert!(store.is_empty());
    }

    #[test]
    fn a_gap_ends_what_can_be_fed() {
        let mut positions = [at(7, 0)];
        assert_eq!(fed(&mut store(&[(0, 7, 1), (0, 7, 2), (0, 7, 4)]), &mut positions).len(), 2);
        assert_eq!(positions, [at(7, 2)]);
    }

    #[test]
    fn no_more_is_fed_than_a_card_takes_and_nothing_after_that() {
        let mut frames: Vec<_> = (1..=1000).map(|number| (0, 7, number)).collect();
        frames.push((0, 8, 1));
        let mut positions = [at(7, 0)];
        assert_eq!(fed(&mut store(&frames), &mut positions).len(), FED_FRAMES_MAX);
        assert_eq!(positions, [at(7, FED_FRAMES_MAX as u64)], "the network end is asked for the rest");
    }

    #[test]
    fn frames_of_the_end_that_came_in_place_of_a_dead_one_are_fed() {
        let frames = [(0, 7, 1), (0, 7, 2), (0, 8, 4), (0, 8, 5)];
        let mut positions = [at(7, 1)];
        let mut passed = store(&frames);
        passed.consumed(&positions);
        assert_eq!(fed(&mut passed, &mut positions), [(7, 2), (8, 4), (8, 5)]);
        assert_eq!(positions, [at(8, 5)]);
    }

    #[test]
    fn frames_of_a_dead_end_are_consumed_by_a_commit_that_knows_its_successor() {
        let frames = [(0, 7, 1), (0, 7, 2), (0, 8, 4), (0, 8, 5)];
        for (position, left) in [(at(8, 4), 1), (at(8, 5), 0), (at(8, 3), 2), (at(7, 2), 2), (at(7, 0), 4)] {
            let mut passed = store(&frames);
            passed.consumed(&[position]);
            assert_eq!(passed.len(), left, "{position:?}");
        }
        // Nothing has come from the end that the card has now.
        let mut passed = store(&[(0, 7, 1), (0, 7, 2)]);
        passed.consumed(&[at(9, 3)]);
        assert!(passed.is_empty());
        // Nothing has come from the end that the card had at the commit, and something from its successor.
        let mut passed = store(&[(0, 8, 1)]);
        passed.consumed(&[at(7, 0)]);
        assert_eq!(passed.len(), 1);
    }

    #[test]
    fn each_card_has_a_stream_of_its_own() {
        let mut passed = store(&[(1, 9, 1), (0, 7, 1), (1, 9, 2), (5, 7, 1), (0, 7, 2)]);
        let mut positions = [at(7, 1), at(9, 0)];
        passed.consumed(&positions);
        assert_eq!(fed(&mut passed, &mut positions), [(9, 1), (9, 2), (7, 2)]);
        assert_eq!(positions, [at(7, 2), at(9, 2)]);
    }

    #[test]
    fn frames_without_content_cost_bounded_memory_too() {
        let mut store = ForwardedFrames::default();
        for number in 0..2_000_000 {
            store.push(Kept { card: 0, position: at(7, number), len: 0, frame: [0u8; 100] });
        }
        assert!(store.len() * size_of::<Kept<[u8; 100]>>() <= BYTES_MAX);
    }

    #[test]
    fn positions_that_cannot_go_on_do_no_harm() {
        let mut positions = [at(7, u64::MAX)];
        assert!(fed(&mut store(&[(0, 7, u64::MAX), (0, 7, 0)]), &mut positions).is_empty());
    }
}
