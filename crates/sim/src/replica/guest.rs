//! The guest on the primary, and the epochs that it runs in.

use std::time::Duration;

use protocol::{
    AfterFailure, Decision, DropReason, EpochBounds, Event, FailedRequests, Load, RequestFailure, SegmentUnderWay,
    Sending, Standstill,
};
use spec::FtMode;

use super::event_log::LAG_MAX;
use crate::coverage::Occurrence;
use crate::faults::Moment;
use crate::history::{BLOCKS, Deed, DiskOp, StateId};
use crate::mutation::Mutation;
use crate::network::Message;
use crate::process::{Timer, Waiting};
use crate::time::MICROSECOND;
use crate::violation::Violation;
use crate::world::World;

/// As a VM's spec might say; what the simulated guest writes once its first copy is over is never too much.
const BOUNDS: EpochBounds = EpochBounds {
    length_max: Duration::from_millis(50),
    dirty_pages_max: u64::MAX,
    log_bytes_max: u64::MAX,
    lag_max: LAG_MAX,
};

impl World {
    pub fn guest_acts(&mut self, host: usize) {
        let now = self.now;
        let Some(runner) = self.runner(host) else { return };
        if runner.held_until > now {
            let held = runner.held_until - now;
            return self.start_timer(host, held, Timer::Guest);
        }
        let interval = self.random.between(500 * MICROSECOND, self.plan.guest_interval_max);
        self.start_timer(host, interval, Timer::Guest);
        let mut deed = self.deed();
        if self.random.chance(self.plan.frames) {
            self.client_sends(false);
        }
        self.lets_out_late(host);
        match self.standstill(host) {
            Standstill::Over => return self.leaves(host),
            Standstill::HandOver => return self.hands_over(host),
            // They are sound again, and that is not known yet.
            Standstill::DisksBroken if !self.hosts[host].disks.are_broken(self.now) => return,
            Standstill::DisksBroken | Standstill::Epoch => {}
        }
        if self.hosts[host].disks.are_broken(self.now) {
            return self.asks_broken_disks(host, deed.disk);
        }
        match self.decide(host) {
            Decision::Wait => return self.guest_waits(host),
            Decision::Capture | Decision::EndLog => self.consider(host),
            Decision::Run => {}
        }
        self.check_lag(host);
        let Some(runner) = self.runner(host) else { return };
        runner.waited_at = None;
        let (before, is_held) = (runner.state, runner.is_held);
        let inbound = self.takes_frame(host);
        deed.input = inbound.map(|inbound| inbound.position);
        let state = self.history.step(before, deed);
        if let Some(inbound) = inbound {
            self.note_taken(host, before, state, inbound.frame);
        }
        if let Some(op) = deed.disk {
            self.hosts[host].disks.does(state, op);
        }
        let Some(runner) = self.runner(host) else { return };
        runner.state = state;
        if deed.has_output {
            runner.waiting.push_back(Waiting { state, epoch: None, is_released: !is_held });
            if !is_held {
                self.lets_out(host);
            } else if let Some(session) = &mut runner.session {
                session.epochs.output_waits();
                session.output_waits = true;
            }
        }
        self.guest_changes(host, state, deed.disk);
        self.consider(host);
    }

    fn standstill(&mut self, host: usize) -> Standstill {
        self.runner(host).map_or(Standstill::Over, |runner| {
            Standstill::of(runner.leaving.is_some(), runner.is_handing_over, runner.has_broken_disks)
        })
    }

    /// What the guest asks of its disks is not answered.
    fn asks_broken_disks(&mut self, host: usize, op: Option<DiskOp>) {
        let answers = self.mutation == Some(Mutation::AnswerFailedRequests);
        let policy = if answers { FailedRequests::Answered } else { FailedRequests::Held };
        let is_answered = policy.after(RequestFailure::Other) == AfterFailure::Answer;
        if op.is_some() && !self.hosts[host].disks.hang && is_answered {
            self.broken(Violation::SawDiskError(self.name(host)));
        }
    }

    /// What the guest does next.
    fn deed(&mut self) -> Deed {
        let writes = self.plan.writes(self.is_calm);
        let disk = match self.random.between(0, 100) {
            number if number < writes => Some(DiskOp::Write(self.random.below(BLOCKS) as u8)),
            number if number < writes + 10 => Some(DiskOp::Flush),
            _ => None,
        };
        Deed { has_output: self.random.chance(70), disk, input: None }
    }

    /// What it writes concerns a first copy that is under way.
    fn guest_changes(&mut self, host: usize, state: StateId, op: Option<DiskOp>) {
        let (memory_bytes, dirty_bytes) = (self.plan.memory_bytes, self.plan.dirty_bytes(self.is_calm));
        let logs = self.mutation != Some(Mutation::DoNotLogCopy);
        if let Some(copying) = self.copying(host) {
            copying.guest_does(dirty_bytes, memory_bytes, state, op.filter(|_| logs));
            if !logs {
                copying.streamed = state;
            }
            if let (Some(_), Some(connection)) = (op, self.session(host).map(|session| session.connection)) {
                self.copy_goes_on(host, connection);
            }
        }
    }

    /// The guest stands still, since its secondary is slow.
    fn guest_waits(&mut self, host: usize) {
        let now = self.clock(host);
        if self.session(host).is_some_and(|session| session.epochs.follows_log()) {
            self.coverage.note(Occurrence::LagWaited);
            // What waits in the gate should not wait for this as well.
            if self.runner(host).is_some_and(|runner| runner.waited_at.is_none()) {
                self.close_segment(host);
            }
        }
        let Some(runner) = self.runner(host) else { return };
        let from = runner.waited_at.replace(now).unwrap_or(now);
        if runner.patience.waited(from, now) {
            self.gives_up(host);
        }
    }

    /// The guest stands still, since its secondary has been asked to take over.
    fn hands_over(&mut self, host: usize) {
        let now = self.clock(host);
        let Some(runner) = self.runner(host) else { return };
        if runner.patience.hands_over(now)
            && let Some(session) = &runner.session
        {
            if !runner.has_asked && runner.hands_over_after.is_some_and(|last| last <= session.acknowledged) {
                self.broken(Violation::NeverAsked(self.name(host)));
            }
            self.coverage.note(Occurrence::HandOverTooSlow);
            self.gives_up(host);
        }
    }

    fn gives_up(&mut self, host: usize) {
        let connection = self.session(host).map(|session| session.connection);
        self.primary_event(host, connection, Event::DropSecondary { reason: DropReason::TooSlow });
    }

    fn sending(&mut self, host: usize) -> Option<Sending> {
        let now = self.clock(host);
        let session = self.session(host)?;
        let lag = session.log_lag.age(now);
        Some(Sending { is_idle: session.outgoing.is_empty(), is_full: false, lag })
    }

    fn decide(&mut self, host: usize) -> Decision {
        let (now, waits) = (self.clock(host), self.mutation != Some(Mutation::DoNotWait));
        let wanted = if self.wants_log { FtMode::Lockstep } else { FtMode::Mirror };
        let Some(sending) = self.sending(host) else { return Decision::Run };
        let Some(session) = self.session(host) else { return Decision::Run };
        match session.epochs.decide(&BOUNDS, wanted, Load::default(), &sending, now) {
            Decision::Wait if session.epochs.follows_log() && !waits => Decision::Run,
            decision => decision,
        }
    }

    /// Does what is due, if it is.
    pub fn consider(&mut self, host: usize) {
        if self.standstill(host) != Standstill::Epoch {
            return;
        }
        match self.decide(host) {
            Decision::Capture => self.take_checkpoint(host),
            Decision::EndLog => self.end_log(host),
            Decision::Run | Decision::Wait => self.consider_segment(host),
        }
    }

    pub fn take_checkpoint(&mut self, host: usize) {
        let (now, then_log) = (self.clock(host), self.wants_log);
        let mut duration = self.random.between(50, 2000) * MICROSECOND;
        if self.slow_sender_until > self.now {
            duration += self.random.between(0, self.slow_sender_extra);
        }
        let Some(runner) = self.runner(host) else { return };
        runner.epoch = runner.epoch.next();
        let (epoch, state) = (runner.epoch, runner.state);
        // What has found no room yet, from before there was this secondary.
        let is_of_none = |waiting: &&mut Waiting| waiting.is_released && waiting.epoch.is_none();
        let stuck = runner.waiting.front().filter(|waiting| waiting.is_released && waiting.epoch.is_none()).copied();
        runner.waiting.iter_mut().take_while(is_of_none).for_each(|waiting| waiting.epoch = Some(epoch));
        let is_of_it = |waiting: &&mut Waiting| !waiting.is_released && waiting.epoch.is_none();
        runner.waiting.iter_mut().rev().take_while(is_of_it).for_each(|waiting| waiting.epoch = Some(epoch));
        let stuck_base = stuck.map(|stuck| self.history.before(stuck.state));
        let Some(runner) = self.runner(host) else { return };
        let Some(session) = &mut runner.session else { return };
        // What was left for the first checkpoint.
        let copying = session.copying.take();
        let then = if then_log { FtMode::Lockstep } else { FtMode::Mirror };
        session.epochs.captured(epoch, then, now, now);
        session.output_waits = false;
        session.segment = SegmentUnderWay::new(now);
        let base = std::mem::replace(&mut session.base, state);
        let disk_base = copying.as_ref().map_or(base, |copying| copying.streamed);
        duration += copying.map_or(0, |copying| self.sending_time(copying.left_bytes()));
        let output_base = stuck_base.map_or(base, |stuck| stuck.min(base));
        if self.mutation == Some(Mutation::ForwardWithCheckpoint) {
            self.forward_late(host);
        }
        let checkpoint = Message::Checkpoint { epoch, heartbeat: 0, base, state, disk_base, output_base, then_log };
        self.send_in_turn(host, checkpoint, duration);
        if then_log {
            if let Some(session) = self.session(host) {
                session.log_base = epoch;
            }
            self.coverage.note(Occurrence::LogBegan);
            self.moment(Moment::ModeChanged);
        }
        if self.mutation == Some(Mutation::ReleaseOnCapture) {
            self.release_through(host, epoch);
        }
    }
}
