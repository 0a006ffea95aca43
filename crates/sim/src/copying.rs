//! [`Copying`]: a first copy under way.

use std::collections::VecDeque;

use protocol::{Amount, CopyTurn, CopyTurns, CopyWindow, FirstCopy, Left, MonotonicTime, TakenIn};

use crate::history::{BLOCKS, Content, DiskOp, StateId};
use crate::network::Part;
use crate::process::TOO_SLOW_AFTER;
use crate::time::Nanoseconds;

/// First copies take seconds, and no schedule lasts so long: their clock runs so many times faster than all others.
pub(crate) const HASTE: u32 = 10;
/// Bytes of memory that are sent as one part, and those of a block of the disk.
pub(crate) const PART_BYTES: u64 = 8 << 20;
pub(crate) const BLOCK_BYTES: u64 = 16 << 20;

/// A first copy under way, as its primary knows it.
#[derive(Debug)]
pub(crate) struct Copying {
    pub course: FirstCopy,
    /// The secondary's blocks, as it has said.
    summary: Content,
    next_block: u8,
    turns: CopyTurns,
    pub window: CopyWindow,
    /// What the guest asks of its disk, and was not sent; and how much was.
    log: VecDeque<(StateId, DiskOp)>,
    sent_ops: u64,
    /// All that it has asked through this state was sent, or is in the blocks that were.
    pub streamed: StateId,
    pub written_bytes: u64,
    /// Bytes of memory that are to be sent in this round, and those changed since it began.
    due_bytes: u64,
    pub dirty_bytes: u64,
    pub has_rounds: bool,
    /// Parts handed to the sender; those sent, with their heartbeats; and what was taken in.
    pub pushed: usize,
    pub on_the_way: VecDeque<(u64, TakenIn)>,
    pub taken_in: TakenIn,
    /// The guest is held since, and until.
    pub held: Option<(MonotonicTime, Nanoseconds)>,
    pub is_look_due: bool,
}

impl Copying {
    pub fn new(summary: Content, state: StateId, now: MonotonicTime) -> Self {
        Self {
            course: FirstCopy::new(TOO_SLOW_AFTER * HASTE, hasty(now)),
            summary,
            next_block: 0,
            turns: CopyTurns::new(0),
            window: CopyWindow::new(),
            log: VecDeque::new(),
            sent_ops: 0,
            streamed: state,
            written_bytes: 0,
            due_bytes: 0,
            dirty_bytes: 0,
            has_rounds: false,
            pushed: 0,
            on_the_way: VecDeque::new(),
            taken_in: TakenIn::default(),
            held: None,
            is_look_due: false,
        }
    }

    /// The guest writes memory, of which there is so much, and to its disk.
    pub fn guest_does(&mut self, dirty_bytes: u64, memory_bytes: u64, state: StateId, op: Option<DiskOp>) {
        self.dirty_bytes = (self.dirty_bytes + dirty_bytes).min(memory_bytes);
        self.log.extend(op.map(|op| (state, op)));
        if matches!(op, Some(DiskOp::Write(_))) {
            self.written_bytes += BLOCK_BYTES;
        }
    }

    pub fn waiting_bytes(&self) -> u64 {
        self.log.iter().filter(|(_, op)| matches!(op, DiskOp::Write(_))).count() as u64 * BLOCK_BYTES
    }

    /// So many parts are on their way, or wait to be sent.
    pub fn under_way(&self) -> usize {
        self.pushed + self.on_the_way.len()
    }

    /// What is sent next. `takes_turns`: what the guest has written has its turns.
    pub fn next_turn(&mut self, blocks: &Content, takes_turns: bool) -> CopyTurn {
        let has_content = if self.has_rounds { self.due_bytes > 0 } else { self.has_block(blocks) };
        let waiting = if takes_turns || !has_content { self.log.len() as u64 } else { 0 };
        self.turns.next(self.sent_ops, waiting, has_content, &self.window)
    }

    /// The part that has its turn.
    pub fn next_part(&mut self, turn: CopyTurn, blocks: &Content) -> Option<Part> {
        match turn {
            CopyTurn::Writes => self.next_write(),
            CopyTurn::Content if self.has_rounds => self.next_pages(),
            CopyTurn::Content => self.next_block(blocks),
            CopyTurn::Wait | CopyTurn::Over => None,
        }
    }

    fn next_write(&mut self) -> Option<Part> {
        let (state, op) = self.log.pop_front()?;
        self.streamed = state;
        self.sent_ops += 1;
        Some(Part::Write { state, op })
    }

    fn next_pages(&mut self) -> Option<Part> {
        let bytes = self.due_bytes.min(PART_BYTES);
        self.due_bytes -= bytes;
        (bytes > 0).then_some(Part::Pages { bytes })
    }

    /// Passes over blocks that the secondary has; whether there is one that it has not.
    fn has_block(&mut self, blocks: &Content) -> bool {
        let differs = |&block: &usize| blocks[block] != self.summary[block];
        let next = (usize::from(self.next_block)..BLOCKS).find(differs).unwrap_or(BLOCKS);
        self.next_block = next as u8;
        next < BLOCKS
    }

    fn next_block(&mut self, blocks: &Content) -> Option<Part> {
        let number = self.next_block;
        self.next_block += 1;
        blocks.get(usize::from(number)).map(|&state| Part::Block { block: number, state })
    }

    pub fn begin_round(&mut self, bytes: u64, now: MonotonicTime) {
        self.course.begin_round(self.taken_in, hasty(now));
        self.has_rounds = true;
        (self.due_bytes, self.dirty_bytes) = (bytes, 0);
        self.turns = CopyTurns::new(self.sent_ops + self.log.len() as u64);
    }

    pub fn left(&self) -> Left {
        Left { memory_bytes: self.dirty_bytes, disk_bytes: self.waiting_bytes() }
    }

    pub fn left_bytes(&self) -> u64 {
        self.dirty_bytes + self.waiting_bytes()
    }
}

/// The time by the clock of first copies.
pub(crate) fn hasty(now: MonotonicTime) -> MonotonicTime {
    MonotonicTime::new(now.since(MonotonicTime::default()) * HASTE)
}

impl Part {
    pub fn bytes(self) -> u64 {
        match self {
            Self::Pages { bytes } => bytes,
            Self::Block { .. } | Self::Write { op: DiskOp::Write(_), .. } => BLOCK_BYTES,
            Self::Write { op: DiskOp::Flush, .. } => 0,
        }
    }

    pub fn amounts(self) -> TakenIn {
        let amount = Amount { bytes: self.bytes(), wire_bytes: self.bytes() };
        match self {
            Self::Pages { .. } => TakenIn { memory: amount, disks: Amount::default() },
            Self::Block { .. } | Self::Write { .. } => TakenIn { memory: Amount::default(), disks: amount },
        }
    }
}
