//! Rule 4, inbound frames: which way a frame for the guest goes, which ones a secondary keeps, which ones it feeds to its guest when it takes
//! over, and which ones a network end hands out.

mod forwarded;
mod handed_out;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Generation;

pub use forwarded::{FED_FRAMES_MAX, ForwardedFrames, Kept};
pub use handed_out::HandedOut;

/// A place in the stream of frames towards a guest. It outlives the VM process: another one can go on there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InputPosition {
    /// Identity of the network end, drawn anew when its process starts; 0 for backends that have none.
    pub end: u64,
    /// Number of the last frame taken from it; the first has the number 1. Numbers may be skipped, never repeated.
    pub frames: u64,
}

impl InputPosition {
    /// Whether whoever stands here has taken the frame at `other`, of the same network end.
    pub fn covers(self, other: Self) -> bool {
        self.end == other.end && other.frames <= self.frames
    }

    /// Whether the frame here comes right after `before`. A frame of another network end does: that one was begun with anew, and what the end
    /// before still had can be had from nobody.
    pub fn follows(self, before: Self) -> bool {
        self.end != before.end || before.frames.checked_add(1) == Some(self.frames)
    }
}

/// How the secondary comes to know of a frame that the primary takes from a network end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputPath {
    /// It need not: what it is to take over from is yet to come.
    Unshared,
    /// The primary passes it on at once, before the guest sees it and apart from checkpoints.
    Forwarded,
    /// It is in the log.
    Logged,
}

/// How long a frame may have waited in a network end for a VM process to connect: longer than it takes to suspect a primary and to take over,
/// nobody waits for what it answers. Only an end on a bridge (`is_bridged`) takes what is sent to everybody, and what was sent to a guest that
/// ran elsewhere; all that a user-mode end has was sent to this guest, over connections that it keeps.
pub fn waiting_max(suspicion: Duration, is_bridged: bool) -> Option<Duration> {
    is_bridged.then_some(suspicion)
}

/// Whether a network end to which a VM process has connected in generation `highest` lets one of `generation` take its place: else that one was
/// superseded.
pub fn may_attach(highest: Generation, generation: Generation) -> bool {
    generation >= highest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_superseded_does_not_get_a_network_end_back() {
        let may = |highest, generation| may_attach(Generation::new(highest), Generation::new(generation));
        assert!(may(4, 5) && may(4, 4) && !may(4, 3));
        assert!(may(0, 0), "VMs without replicas have no generation");
    }

    #[test]
    fn only_an_end_on_a_bridge_has_frames_that_grow_too_old() {
        let suspicion = Duration::from_millis(100);
        assert_eq!(waiting_max(suspicion, true), Some(suspicion));
        assert_eq!(waiting_max(suspicion, false), None);
    }

    #[test]
    fn frames_follow_each_other_within_an_end_and_begin_anew_with_another() {
        let at = |end, frames| InputPosition { end, frames };
        assert!(at(7, 4).follows(at(7, 3)) && !at(7, 5).follows(at(7, 3)) && !at(7, 3).follows(at(7, 3)));
        assert!(at(8, 9).follows(at(7, 3)));
        assert!(!at(7, 0).follows(at(7, u64::MAX)));
        assert!(at(7, 3).covers(at(7, 3)) && !at(7, 3).covers(at(7, 4)) && !at(7, 3).covers(at(8, 1)));
    }
}
