//! What waits, for which commit, in which order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use network::{BackendError, FrameOffload};
use protocol::{Epoch, UNRELEASED_BYTES_MAX, UNRELEASED_FRAMES_MAX};

use super::frame::GatedFrame;
use super::status::GateStatus;
use super::wait_times::WaitTimes;

/// Most bytes of frames that wait, of all cards together: a fourth of what a secondary keeps, the rest of which is for what has left and is not
/// known to have.
pub const GATE_BYTES_MAX: usize = UNRELEASED_BYTES_MAX / 4;
/// Most frames that wait, of all cards together, likewise.
pub const GATE_FRAMES_MAX: usize = UNRELEASED_FRAMES_MAX / 4;

/// What a frame waits for. Along a card's queue this never goes back to one further up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Only for room in its backend.
    Released,
    /// For the commit of its epoch.
    Closed(Epoch),
    /// For the end of the epoch under way.
    Current,
}

/// A frame that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub frame: GatedFrame,
    standing: Standing,
    /// The epoch that it was part of, once that has ended.
    epoch: Option<Epoch>,
    since: Instant,
}

/// What is to be done with a frame that a card offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// It was taken, and waits; `first` if nothing of the epoch under way waited before.
    Waits { first: bool },
    /// There is no room.
    Full,
    /// It need not wait for a commit, but released frames go first.
    Behind,
    /// It need not wait.
    Passes,
}

/// The waiting frames of all cards, each card's in order.
#[derive(Debug, Default)]
pub(super) struct OutputQueue {
    held: bool,
    cards: BTreeMap<usize, VecDeque<Waiting>>,
    frames: usize,
    bytes: usize,
    /// Frames with [`Standing::Current`].
    current: usize,
    /// Cards that found no room.
    refused: BTreeSet<usize>,
    passed: u64,
    released: u64,
    dropped: u64,
    wait_times: WaitTimes,
}

impl OutputQueue {
    /// Makes a card known.
    pub fn add_card(&mut self, card: usize) {
        self.cards.entry(card).or_default();
    }

    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Nothing waits for a commit any more.
    pub fn open(&mut self) {
        self.held = false;
        self.current = 0;
        // Whoever held copies of an epoch's is no secondary any more.
        self.cards.values_mut().flatten().for_each(|waiting| {
            (waiting.standing, waiting.epoch) = (Standing::Released, None);
        });
    }

    /// A card offers a frame.
    ///
    /// # Errors
    /// When it would have to wait and is no sound frame.
    pub fn offer(&mut self, card: usize, bytes: &[u8], offload: FrameOffload) -> Result<Offer, BackendError> {
        if !self.held {
            let behind = self.cards.get(&card).is_some_and(|queue| !queue.is_empty());
            return Ok(if behind { Offer::Behind } else { Offer::Passes });
        }
        let frame = GatedFrame::new(u32::try_from(card).unwrap_or(u32::MAX), bytes, offload)?;
        if !self.has_room_for(&frame) {
            self.refused.insert(card);
            return Ok(Offer::Full);
        }
        let first = self.current == 0;
        self.current += 1;
        self.count_in(&frame);
        let queue = self.cards.entry(card).or_default();
        queue.push_back(Waiting { frame, standing: Standing::Current, epoch: None, since: Instant::now() });
        Ok(Offer::Waits { first })
    }

    /// A card was told that there is no room behind frames that need no commit.
    pub fn refuse(&mut self, card: usize) {
        self.refused.insert(card);
    }

    /// A frame that [`Offer::Passes`] was sent.
    pub fn passed(&mut self) {
        self.passed += 1;
    }

    /// Ends the epoch under way, and returns copies of its frames. What may leave and is of no epoch, as it comes from before there was this
    /// secondary or from the replica before, and has found no room yet, becomes part of it: else it would be lost with this replica.
    pub fn close_epoch(&mut self, epoch: Epoch) -> Vec<GatedFrame> {
        let mut closed = Vec::with_capacity(self.current);
        for queue in self.cards.values_mut() {
            let is_of_none = |waiting: &&mut Waiting| waiting.standing == Standing::Released && waiting.epoch.is_none();
            for waiting in queue.iter_mut().take_while(is_of_none) {
                waiting.epoch = Some(epoch);
                closed.push(waiting.frame.clone());
            }
            let first =
                queue.iter().rposition(|waiting| waiting.standing != Standing::Current).map_or(0, |last| last + 1);
            for waiting in queue.range_mut(first..) {
                (waiting.standing, waiting.epoch) = (Standing::Closed(epoch), Some(epoch));
                closed.push(waiting.frame.clone());
            }
        }
        self.current = 0;
        closed
    }

    /// The epochs up to `through` are committed.
    pub fn release(&mut self, through: Epoch) {
        for queue in self.cards.values_mut() {
            for waiting in queue {
                match waiting.standing {
                    Standing::Released => {}
                    Standing::Closed(epoch) if epoch <= through => waiting.standing = Standing::Released,
                    // What comes later must not overtake.
                    Standing::Closed(_) | Standing::Current => break,
                }
            }
        }
    }

    /// The oldest epoch of which a frame may leave and has not.
    pub fn oldest_released(&self) -> Option<Epoch> {
        let oldest_of = |queue: &VecDeque<Waiting>| {
            queue.iter().take_while(|waiting| waiting.standing == Standing::Released).find_map(|waiting| waiting.epoch)
        };
        self.cards.values().filter_map(oldest_of).min()
    }

    /// Puts in a frame that needs no commit, before those that do. One for an unknown card, or without room, is
    /// dropped.
    pub fn insert_released(&mut self, frame: GatedFrame) {
        let room = self.has_room_for(&frame);
        match self.cards.get_mut(&frame.card()).filter(|_| room) {
            Some(queue) => {
                let waiting = Waiting { frame, standing: Standing::Released, epoch: None, since: Instant::now() };
                self.frames += 1;
                self.bytes += waiting.frame.bytes().len();
                let at = queue.iter().position(|other| other.standing != Standing::Released).unwrap_or(queue.len());
                queue.insert(at, waiting);
            }
            None => self.dropped += 1,
        }
    }

    /// Takes a card's first frame, if it may leave.
    pub fn take_released(&mut self, card: usize) -> Option<Waiting> {
        let queue = self.cards.get_mut(&card)?;
        queue.front().filter(|waiting| waiting.standing == Standing::Released)?;
        let waiting = queue.pop_front()?;
        self.frames -= 1;
        self.bytes -= waiting.frame.bytes().len();
        Some(waiting)
    }

    /// A frame that was taken found no room.
    pub fn put_back(&mut self, waiting: Waiting) {
        self.count_in(&waiting.frame);
        self.cards.entry(waiting.frame.card()).or_default().push_front(waiting);
    }

    /// A frame that was taken has left.
    pub fn left(&mut self, waiting: &Waiting) {
        self.released += 1;
        self.wait_times.add(waiting.since.elapsed());
    }

    /// A frame that was taken was refused.
    pub fn dropped(&mut self) {
        self.dropped += 1;
    }

    /// Takes the cards that found no room and should try again. Not at the first frame that leaves: what they have to
    /// offer should fit, and may not overtake.
    pub fn take_refused(&mut self) -> BTreeSet<usize> {
        let refused = std::mem::take(&mut self.refused);
        let is_behind = |card: &usize| self.cards.get(card).is_some_and(|queue| !queue.is_empty());
        let (room, no_room) = if self.held {
            let has_room = self.frames <= GATE_FRAMES_MAX / 2 && self.bytes <= GATE_BYTES_MAX / 2;
            if has_room { (refused, BTreeSet::new()) } else { (BTreeSet::new(), refused) }
        } else {
            refused.into_iter().partition(|card| !is_behind(card))
        };
        self.refused = no_room;
        room
    }

    pub fn status(&self) -> GateStatus {
        let oldest = self.cards.values().filter_map(VecDeque::front).map(|waiting| waiting.since).min();
        GateStatus {
            held: self.held,
            waiting_frames: self.frames as u64,
            waiting_bytes: self.bytes as u64,
            oldest_wait_us: oldest.map_or(0, |since| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)),
            passed_frames: self.passed,
            released_frames: self.released,
            dropped_frames: self.dropped,
            wait_us_p50: self.wait_times.quantile_us(50),
            wait_us_p99: self.wait_times.quantile_us(99),
        }
    }

    fn has_room_for(&self, frame: &GatedFrame) -> bool {
        self.frames < GATE_FRAMES_MAX && self.bytes + frame.bytes().len() <= GATE_BYTES_MAX
    }

    fn count_in(&mut self, frame: &GatedFrame) {
        self.frames += 1;
        self.bytes += frame.bytes().len();
    }
}
