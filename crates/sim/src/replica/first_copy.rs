//! A first copy, carried out: parts are sent and taken in, as [`protocol::FirstCopy`] and [`protocol::CopyTurns`] have it, and the secondary notes what its
//! disk is.

use std::time::Duration;

use protocol::{
    COPY_LOOK_INTERVAL, CopyTurn, DiskCopy, DropReason, Event, Generation, LossReason, RoundEnd, Step, WRITES_KEPT_MAX,
};

use crate::copying::{Copying, HASTE, PART_BYTES, hasty};
use crate::coverage::Occurrence;
use crate::history::{DiskOp, StateId};
use crate::mutation::Mutation;
use crate::network::{ConnectionId, Message, Part};
use crate::process::{Body, Parting, Timer};
use crate::time::{Nanoseconds, nanoseconds};
use crate::violation::Violation;
use crate::world::World;

impl World {
    // The primary.

    pub fn copying(&mut self, host: usize) -> Option<&mut Copying> {
        self.session(host)?.copying.as_deref_mut()
    }

    /// How long so much takes to send.
    pub fn sending_time(&self, bytes: u64) -> Nanoseconds {
        let time = bytes * self.plan.part_duration / PART_BYTES;
        if self.slow_sender_until > self.now { time * 4 } else { time }
    }

    /// Sends what there is to send, and looks what follows.
    pub fn copy_goes_on(&mut self, host: usize, connection: ConnectionId) {
        if !self.has_session(host, connection) || self.look_at_copy(host, connection) != Step::GoOn {
            return;
        }
        let (now, blocks) = (self.clock(host), self.hosts[host].disks.blocks);
        let takes_turns = self.mutation != Some(Mutation::SendWritesAfterRound);
        while let Some(copying) = self.copying(host) {
            let turn = copying.next_turn(&blocks, takes_turns);
            if turn == CopyTurn::Over {
                return self.end_round(host, connection);
            }
            let Some(part) = copying.next_part(turn, &blocks) else { return };
            copying.window.pushed(hasty(now));
            copying.pushed += 1;
            let duration = self.sending_time(part.bytes());
            self.send_in_turn(host, Message::Part { part, heartbeat: 0 }, duration);
        }
    }

    /// Has the course looked at, and does to the guest what that wants.
    fn look_at_copy(&mut self, host: usize, connection: ConnectionId) -> Step {
        let (now, clock) = (self.now, self.clock(host));
        let Some(copying) = self.copying(host) else { return Step::GoOn };
        if let Some((from, until)) = copying.held {
            // Whoever holds the guest looks at nothing else.
            if now < until {
                self.look_at_copy_after(host, connection, until - now);
                return Step::Hold(Duration::ZERO);
            }
            copying.held = None;
            copying.course.held(hasty(from), hasty(clock));
        }
        if copying.has_rounds && copying.course.wants_sample(hasty(clock)) {
            copying.course.dirtied(copying.dirty_bytes, hasty(clock));
        }
        let waiting_bytes = copying.waiting_bytes();
        let step = copying.course.look(copying.taken_in, copying.written_bytes, waiting_bytes, hasty(clock));
        if waiting_bytes > WRITES_KEPT_MAX {
            self.broken(Violation::LogOverflows(self.name(host)));
        }
        match step {
            Step::GiveUp(_) | Step::Hold(_) if self.mutation == Some(Mutation::KeepHopelessCopy) => Step::GoOn,
            Step::GiveUp(_) => {
                self.give_up_copy(host, connection);
                step
            }
            Step::Hold(time) => {
                self.coverage.note(Occurrence::CopySlowed);
                let until = now + nanoseconds(time / HASTE);
                let Some(copying) = self.copying(host) else { return step };
                copying.held = Some((clock, until));
                if let Some(runner) = self.runner(host) {
                    runner.held_until = until;
                }
                self.look_at_copy_after(host, connection, until - now);
                step
            }
            Step::GoOn => {
                self.look_at_copy_after(host, connection, nanoseconds(COPY_LOOK_INTERVAL / HASTE));
                step
            }
        }
    }

    fn look_at_copy_after(&mut self, host: usize, connection: ConnectionId, delay: Nanoseconds) {
        if let Some(copying) = self.copying(host)
            && !std::mem::replace(&mut copying.is_look_due, true)
        {
            self.start_timer(host, delay, Timer::Copy(connection));
        }
    }

    /// It is time to look at the copy.
    pub fn copy_timer(&mut self, host: usize, connection: ConnectionId) {
        if self.has_session(host, connection)
            && let Some(copying) = self.copying(host)
        {
            copying.is_look_due = false;
            self.copy_goes_on(host, connection);
        }
    }

    /// A part is being sent, with a heartbeat behind it; its number.
    pub fn part_is_sent(&mut self, host: usize, part: Part) -> u64 {
        let now = self.clock(host);
        let Some(session) = self.session(host) else { return 0 };
        let number = session.heartbeats.number_next(now);
        if let Some(copying) = &mut session.copying {
            copying.pushed -= 1;
            copying.on_the_way.push_back((number, part.amounts()));
        }
        number
    }

    /// The secondary has heard heartbeat `heard`, and what was sent before.
    pub fn copy_is_taken_in(&mut self, host: usize, connection: ConnectionId, heard: u64) {
        let now = self.clock(host);
        let Some(copying) = self.copying(host) else { return };
        let before = copying.on_the_way.len();
        while let Some(&(heartbeat, part)) = copying.on_the_way.front()
            && heartbeat <= heard
        {
            copying.on_the_way.pop_front();
            copying.taken_in += part;
        }
        copying.window.taken_in(copying.under_way(), hasty(now));
        if copying.on_the_way.len() < before {
            self.copy_goes_on(host, connection);
        }
    }

    fn end_round(&mut self, host: usize, connection: ConnectionId) {
        let (now, memory_bytes) = (self.clock(host), self.plan.memory_bytes);
        let Some(copying) = self.copying(host) else { return };
        if !copying.has_rounds {
            copying.begin_round(memory_bytes, now);
            return self.copy_goes_on(host, connection);
        }
        let (taken_in, left) = (copying.taken_in, copying.left());
        let end = match (copying.course.end_round(taken_in, left, hasty(now)), self.mutation) {
            (_, Some(Mutation::CopyForEver)) => RoundEnd::Again,
            (_, Some(Mutation::FinishAtOnce)) => RoundEnd::Finish,
            (end, _) => end,
        };
        match end {
            RoundEnd::Again => {
                self.coverage.note(Occurrence::CopyRound);
                let Some(copying) = self.copying(host) else { return };
                let (bytes, is_empty) = (copying.dirty_bytes, copying.left_bytes() == 0);
                copying.begin_round(bytes, now);
                // What is over at once would follow itself without any time going by.
                if !is_empty {
                    self.copy_goes_on(host, connection);
                }
            }
            RoundEnd::Finish => self.begin_mirroring(host, connection),
            RoundEnd::GiveUp(_) => self.give_up_copy(host, connection),
        }
    }

    /// The guest is too fast for the first copy.
    fn give_up_copy(&mut self, host: usize, connection: ConnectionId) {
        self.coverage.note(Occurrence::CopyGivenUp);
        self.tell(|world| format!("{}: the first copy is given up", world.name(host)));
        self.primary_event(host, Some(connection), Event::DropSecondary { reason: DropReason::TooSlow });
    }

    /// What is left for the first checkpoint must not keep the guest's output, or the guest, waiting for long.
    pub fn check_last_pause(&mut self, host: usize) {
        let part_duration = self.plan.part_duration;
        let Some(copying) = self.copying(host) else { return };
        // A part may have been on its way when the rounds began.
        let time = copying.left_bytes().saturating_sub(PART_BYTES) * part_duration / PART_BYTES;
        if time * Nanoseconds::from(HASTE) > protocol::LAST_PAUSE_MAX.as_nanos() as Nanoseconds {
            self.broken(Violation::LongPause(self.name(host)));
        }
    }

    // The secondary.

    /// Part of a first copy, before which the disk is noted to be incomplete.
    pub fn part_arrives(&mut self, host: usize, part: Part, heartbeat: u64) {
        let Some(follower) = self.follower(host) else { return };
        if follower.held.is_some() {
            let event = Event::PeerLost { reason: LossReason::Protocol };
            return self.part(host, Parting::Otherwise, event);
        }
        follower.has_heard(heartbeat);
        if !matches!(part, Part::Pages { .. }) {
            if !self.writes_disks(host) {
                return;
            }
            let notes_it = self.mutation != Some(Mutation::TakePartsForCopy);
            let Some(follower) = self.follower(host) else { return };
            let noted = follower.notes.before_part().filter(|_| notes_it);
            let disks = &mut self.hosts[host].disks;
            disks.noted = noted.unwrap_or(disks.noted);
            match part {
                Part::Block { block, state } => disks.write(block, state),
                // Of the stream, a flush says nothing yet.
                Part::Write { state, op: DiskOp::Write(block) } => disks.write(block, state),
                Part::Write { op: DiskOp::Flush, .. } | Part::Pages { .. } => {}
            }
        }
        self.send_ack(host);
    }

    /// A checkpoint says what the guest did to its disk from `base` to `state`; after the first one the copy is whole.
    pub fn apply_to_disk(&mut self, host: usize, base: StateId, state: StateId) {
        let ops = self.history.disk_ops_between(base, state);
        let keeps_order = self.mutation != Some(Mutation::MergeFlushes);
        let is_stable = self.mutation != Some(Mutation::NoteUnflushedCopy);
        let disks = &mut self.hosts[host].disks;
        ops.into_iter().for_each(|(state, op)| disks.apply(state, op, keeps_order));
        if let Some(process) = &mut self.hosts[host].process
            && let Body::Following(follower) = &mut process.body
            && let Some(copy) = follower.notes.after_checkpoint()
        {
            let disks = &mut self.hosts[host].disks;
            if is_stable {
                disks.flush();
            }
            disks.noted = copy;
        }
    }

    /// The store names the secondary, in this generation.
    pub fn note_entitled(&mut self, host: usize, generation: Generation) {
        let Some(follower) = self.follower(host) else { return };
        let copy = follower.notes.after_entitled(generation);
        let disks = &mut self.hosts[host].disks;
        disks.flush();
        disks.noted = copy;
    }

    /// What is noted to be a copy must be one.
    pub fn check_copy(&mut self, host: usize) {
        let disks = &self.hosts[host].disks;
        match disks.noted {
            DiskCopy::Consistent { .. } if !self.history.could_be_a_disk(&disks.blocks) => {
                self.broken(Violation::TornCopy(self.name(host)));
            }
            DiskCopy::Incomplete { generation } if generation > Generation::NONE => {
                self.coverage.note(Occurrence::CopyTorn);
            }
            DiskCopy::Consistent { .. } | DiskCopy::Incomplete { .. } => {}
        }
    }
}
