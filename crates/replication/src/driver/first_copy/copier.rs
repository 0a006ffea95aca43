//! The thread `first-copy`: measures, and carries out what [`FirstCopy`] decides.

use std::iter;
use std::sync::Arc;
use std::sync::mpsc::Receiver as Inbox;
use std::thread;

use machine::vm::{Vm, VmError};
use memory::encoding::CapturedPages;
use memory::{GuestRam, Harvest, PAGE_BYTES};
use protocol::{
    COPY_LOOK_INTERVAL, CopyTurn, CopyTurns, CopyWindow, FirstCopy, Left, LinkWatch, LossReason, Pace, RoundEnd,
    SlowLink, Step,
};

use super::super::clock;
use super::super::outbox::{Bulk, Piece};
use super::super::pause_queue::VmStopped;
use super::super::primary::Shared;
use super::super::progress::{Phase, Progress};
use super::super::session::Session;
use crate::disk::{DiskCopy, DiskProgress, DiskSummary, DiskSyncError, LogStream, SummaryReader};

/// Pages sent as one piece.
const PAGES_PER_PIECE: usize = 32;
/// Bytes of encoded disk writes that are enough for a piece, about as many as of its pages, and most messages of one.
const WRITES_PIECE_BYTES: usize = PAGES_PER_PIECE * PAGE_BYTES as usize;
const WRITES_PIECE_MESSAGES_MAX: usize = 256;
/// Pages that a checkpoint's buffer has room for from the start.
const BUFFER_PAGES_MIN: u64 = 2048;
const BUFFER_PAGES_MAX: u64 = 65_536;

/// Why a first copy did not get to its end.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("the connection to the secondary is closed")]
    Closed,
    #[error(transparent)]
    Disk(#[from] DiskSyncError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Stopped(#[from] VmStopped),
    #[error(
        "{pace}; {}protect the VM over a faster network, or while its guest does less; it is tried again and again",
        link.map(|link| format!("{link}; ")).unwrap_or_default()
    )]
    Outpaced { pace: Pace, link: Option<SlowLink> },
}

/// Copies the VM to the secondary of `session`, whose summary of its disks comes in pieces, up to the first checkpoint.
pub(super) fn copy(shared: &Arc<Shared>, session: &Arc<Session>, summary: Inbox<Vec<u8>>) {
    let course = FirstCopy::new(shared.options.too_slow_after, clock::now());
    let copier = Copier { shared, session, course, link: LinkWatch::default(), pushed: 0, window: CopyWindow::new() };
    match copier.copy(summary) {
        Ok(()) => {}
        Err(error @ CopyError::Outpaced { .. }) => shared.give_up_copy(session.id, &format!("first copy: {error}")),
        Err(error) => shared.end_session(session.id, LossReason::Protocol, &format!("first copy: {error}")),
    }
}

struct Copier<'a> {
    shared: &'a Arc<Shared>,
    session: &'a Arc<Session>,
    course: FirstCopy,
    link: LinkWatch,
    /// Pieces handed to the sender, and how many of them may be on their way.
    pushed: u64,
    window: CopyWindow,
}

impl Copier<'_> {
    fn copy(mut self, summary: Inbox<Vec<u8>>) -> Result<(), CopyError> {
        *self.session.progress() = Progress { phase: Phase::ComparingDisks, ..Progress::default() };
        let summary = read_summary(self.shared, summary)?;
        let stream = self.copy_disks(summary)?;
        let left_pages = self.copy_memory(stream)?;
        if !self.shared.engine.can_freeze_pages() {
            // Checkpoints will copy their pages in the pause: not into memory that is touched for the first time then.
            let mut buffer = CapturedPages::new();
            buffer.reserve((2 * left_pages).clamp(BUFFER_PAGES_MIN, BUFFER_PAGES_MAX) as usize);
            self.shared.recycle(buffer);
        }
        let (own, joined) = (self.shared.clone(), self.session.clone());
        Ok(self.shared.pause.run(&self.shared.control, move |vm| own.begin_mirroring(vm, &joined))??)
    }

    fn copy_disks(&mut self, summary: DiskSummary) -> Result<LogStream, CopyError> {
        let mut copy = DiskCopy::new(&self.shared.disks, summary)?;
        loop {
            self.look(copy.stream(), copy.differing_bytes())?;
            let DiskProgress { done_bytes, total_bytes } = copy.progress();
            self.show(Phase::CopyingDisks, done_bytes, total_bytes);
            if !self.way().has_room() {
                self.wait()?;
                continue;
            }
            let mut message = Vec::new();
            let before = copy.stream().sent_bytes();
            let more = copy.next_piece(&mut message)?;
            if !message.is_empty() {
                let bytes = copy.stream().sent_bytes() - before;
                self.push(Piece::Writes { messages: vec![message], bytes })?;
            }
            if !more {
                let (compared_bytes, differing_bytes) = (copy.compared_bytes(), copy.differing_bytes());
                tracing::debug!(total_bytes, compared_bytes, differing_bytes, "the disks are compared");
                return Ok(copy.into_stream());
            }
        }
    }

    /// Copies memory in rounds. Returns how many pages are left for the first checkpoint, as far as is known; of disk writes, the log has
    /// what is left.
    fn copy_memory(&mut self, mut stream: LogStream) -> Result<u64, CopyError> {
        let mut phase = Phase::CopyingMemory;
        loop {
            let (own, id) = (self.shared.clone(), self.session.id);
            let harvest = self.shared.pause.run(&self.shared.control, move |vm| harvest(vm, &own, id))??;
            self.course.begin_round(self.session.intake.taken().amounts, clock::now());
            // A secondary's memory begins with zeros, like all that was never touched here.
            let pages: Vec<u64> = if phase == Phase::CopyingMemory {
                allocated_pages(&self.shared.ram)
            } else {
                harvest.pages().collect()
            };
            // Whatever becomes of this session: the next one begins with all pages.
            harvest.acknowledge();
            self.send_round(phase, &pages, &mut stream)?;
            let dirty_pages = self.shared.dirty_pages();
            let left = Left { memory_bytes: dirty_pages * PAGE_BYTES, disk_bytes: stream.waiting_bytes() };
            let taken_in = self.session.intake.taken().amounts;
            match self.course.end_round(taken_in, left, clock::now()) {
                RoundEnd::Again => {
                    tracing::debug!(sent_pages = pages.len(), dirty_pages, "another round of copying memory")
                }
                RoundEnd::GiveUp(pace) => return Err(self.outpaced(pace)),
                RoundEnd::Finish => return Ok(dirty_pages),
            }
            phase = Phase::CopyingChanges;
        }
    }

    /// Sends these pages, and at least the disk writes that wait now, in turns; returns when the secondary has taken them in.
    fn send_round(&mut self, phase: Phase, pages: &[u64], stream: &mut LogStream) -> Result<(), CopyError> {
        let total_bytes = pages.len() as u64 * PAGE_BYTES;
        let before = self.session.intake.taken().amounts.memory.bytes;
        let mut turns = CopyTurns::new(stream.sent_bytes() + stream.waiting_bytes());
        let mut pieces = pages.chunks(PAGES_PER_PIECE).peekable();
        loop {
            self.look(stream, 0)?;
            if self.course.wants_sample(clock::now()) {
                self.course.dirtied(self.shared.dirty_pages() * PAGE_BYTES, clock::now());
            }
            self.show(phase, self.session.intake.taken().amounts.memory.bytes - before, total_bytes);
            let has_pages = pieces.peek().is_some();
            match turns.next(stream.sent_bytes(), stream.waiting_bytes(), has_pages, self.way()) {
                CopyTurn::Writes => self.push_writes(stream)?,
                CopyTurn::Content => {
                    if let Some(pages) = pieces.next() {
                        self.push(Piece::Pages(pages.to_vec()))?;
                    }
                }
                CopyTurn::Wait => self.wait()?,
                CopyTurn::Over => return Ok(()),
            }
        }
    }

    /// A piece of what the guest has written to disks.
    fn push_writes(&mut self, stream: &mut LogStream) -> Result<(), CopyError> {
        let (mut messages, mut encoded, before) = (Vec::new(), 0, stream.sent_bytes());
        while encoded < WRITES_PIECE_BYTES && messages.len() < WRITES_PIECE_MESSAGES_MAX {
            let mut message = Vec::new();
            if !stream.next_piece(&mut message)? {
                break;
            }
            encoded += message.len();
            messages.push(message);
        }
        if messages.is_empty() {
            return Ok(());
        }
        self.push(Piece::Writes { messages, bytes: stream.sent_bytes() - before })
    }

    /// Has the course looked at, and does to the guest what that wants. `copied_bytes` went through the stream and were not written by the
    /// guest.
    fn look(&mut self, stream: &LogStream, copied_bytes: u64) -> Result<(), CopyError> {
        let taken_in = self.session.intake.taken().amounts;
        if self.way().on_the_way() > 0 {
            self.link.is_busy(taken_in.memory.wire_bytes + taken_in.disks.wire_bytes, clock::now());
        }
        let waiting_bytes = stream.waiting_bytes();
        let written_bytes = (stream.sent_bytes() + waiting_bytes).saturating_sub(copied_bytes);
        match self.course.look(taken_in, written_bytes, waiting_bytes, clock::now()) {
            Step::GoOn => Ok(()),
            Step::Hold(time) => {
                let hold = move |_: &mut Vm| {
                    let from = clock::now();
                    thread::sleep(time);
                    (from, clock::now())
                };
                let (from, to) = self.shared.pause.run(&self.shared.control, hold)?;
                self.course.held(from, to);
                self.shared.meter.throttled(to.since(from));
                Ok(())
            }
            Step::GiveUp(pace) => Err(self.outpaced(pace)),
        }
    }

    fn outpaced(&self, pace: Pace) -> CopyError {
        CopyError::Outpaced { pace, link: self.link.slow() }
    }

    fn show(&self, phase: Phase, done_bytes: u64, total_bytes: u64) {
        let (slowed, slow_link) = (self.course.slowed(), self.link.slow());
        *self.session.progress() = Progress { phase, done_bytes, total_bytes, slowed, slow_link };
    }

    fn push(&mut self, piece: Piece) -> Result<(), CopyError> {
        if !self.session.outbox.push_bulk(Bulk::Piece(piece)) {
            return Err(CopyError::Closed);
        }
        self.pushed += 1;
        self.window.pushed(clock::now());
        Ok(())
    }

    /// The pieces that the secondary is not known to have taken in.
    fn way(&mut self) -> &CopyWindow {
        let left = usize::try_from(self.pushed - self.session.intake.taken().pieces).unwrap_or(usize::MAX);
        self.window.taken_in(left, clock::now());
        &self.window
    }

    /// Waits until the secondary has taken something in, but not for long.
    fn wait(&self) -> Result<(), CopyError> {
        if self.session.outbox.is_closed() {
            return Err(CopyError::Closed);
        }
        self.session.intake.wait_for_more(self.session.intake.taken().pieces, COPY_LOOK_INTERVAL);
        Ok(())
    }
}

/// The pieces' end is dropped here: a secondary that goes on sending them is not heard.
fn read_summary(shared: &Shared, pieces: Inbox<Vec<u8>>) -> Result<DiskSummary, CopyError> {
    let mut reader = SummaryReader::new(&shared.disks)?;
    loop {
        // The other end is dropped with the session.
        let piece = pieces.recv().map_err(|_| CopyError::Closed)?;
        if let Some(summary) = reader.push(&piece)? {
            return Ok(summary);
        }
    }
}

/// Which pages came up since the last round, in a pause.
fn harvest(vm: &mut Vm, shared: &Shared, session: u64) -> Result<Harvest, CopyError> {
    // A later session may be under way by now, which needs what there is to harvest.
    if !shared.has_session(session) {
        return Err(CopyError::Closed);
    }
    Ok(vm.harvest()?)
}

/// All pages that may hold anything but zeros.
fn allocated_pages(ram: &GuestRam) -> Vec<u64> {
    let ranges = iter::successors(ram.allocated_pages(0), |range| ram.allocated_pages(range.end));
    ranges.flatten().collect()
}
