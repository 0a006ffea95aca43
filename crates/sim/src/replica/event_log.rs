//! Lockstep: the log in place of checkpoints, sent segment by segment, and its execution.

use std::time::Duration;

use protocol::{Epoch, Event, LogLag, LossReason, ReadyStep, SegmentLoad, SegmentUnderWay, StepEnd};

use crate::coverage::Occurrence;
use crate::faults::Moment;
use crate::history::Deed;
use crate::mutation::Mutation;
use crate::network::{ConnectionId, Message, Side};
use crate::process::{Held, OutputRange, Parting, Timer, Waiting};
use crate::time::{MICROSECOND, MILLISECOND, Nanoseconds};
use crate::violation::Violation;
use crate::world::World;

/// How far the secondary may be behind.
pub(crate) const LAG_MAX: Duration = Duration::from_millis(30);

impl World {
    // The primary.

    /// Whatever this primary knows, its guest must not run while the secondary is far behind.
    pub fn check_lag(&mut self, host: usize) {
        let (now, clock) = (self.now, self.hosts[host].clock);
        let Some(session) = self.session(host).filter(|session| session.epochs.follows_log()) else { return };
        let (peer, log_base) = (session.peer, session.log_base);
        let Some(secondary) = self.home(peer) else { return };
        let execution = self.follower(secondary).and_then(|follower| follower.execution.as_ref());
        // What is left of an earlier log is bounded with the checkpoints after it.
        let is_of_it = |(segment, _): &&(Held, Nanoseconds)| segment.epoch > log_base;
        let oldest = execution.and_then(|execution| execution.waiting.iter().find(is_of_it));
        let oldest = oldest.map(|&(_, closed_at)| closed_at);
        if oldest.is_some_and(|closed_at| clock.reads(now).since(clock.reads(closed_at)) > LAG_MAX) {
            self.broken(Violation::TooFarAhead(self.name(host)));
        }
    }

    /// Ends the segment under way if it is time.
    pub fn consider_segment(&mut self, host: usize) {
        let now = self.clock(host);
        let Some(session) = self.session(host).filter(|session| session.epochs.follows_log()) else { return };
        let load = SegmentLoad { is_new: true, output_waits: session.output_waits, is_full: false };
        if session.segment.is_due(load, now) {
            self.close_segment(host);
        }
    }

    /// Checkpoints follow the log.
    pub fn end_log(&mut self, host: usize) {
        let now = self.clock(host);
        self.close_segment(host);
        self.send_log(host, Message::EndOfLog);
        if let Some(session) = self.session(host) {
            session.epochs.log_ended(now);
            session.log_lag = LogLag::default();
        }
        self.coverage.note(Occurrence::LogEnded);
        self.moment(Moment::ModeChanged);
    }

    /// Ends the segment under way; its output waits for it.
    pub fn close_segment(&mut self, host: usize) {
        let (now, closed_at) = (self.clock(host), self.now);
        let Some(runner) = self.runner(host) else { return };
        runner.epoch = runner.epoch.next();
        let (epoch, state) = (runner.epoch, runner.state);
        let is_of_it = |waiting: &&mut Waiting| !waiting.is_released && waiting.epoch.is_none();
        runner.waiting.iter_mut().rev().take_while(is_of_it).for_each(|waiting| waiting.epoch = Some(epoch));
        let Some(session) = &mut runner.session else { return };
        session.epochs.segment_closed(epoch, now);
        session.log_lag.sent(epoch.number(), now);
        session.output_waits = false;
        session.segment = SegmentUnderWay::new(now);
        let base = std::mem::replace(&mut session.base, state);
        self.send_log(host, Message::Segment { epoch, base, state, closed_at });
        if self.mutation == Some(Mutation::ReleaseOnCapture) {
            self.release_through(host, epoch);
        }
    }

    fn send_log(&mut self, host: usize, message: Message) {
        let duration = self.random.between(5, 50) * MICROSECOND;
        self.send_in_turn(host, message, duration);
    }

    pub fn heard_of_execution(&mut self, host: usize, executed: Option<Epoch>) {
        if let Some(session) = self.session(host) {
            session.log_lag.executed(executed.unwrap_or(Epoch::NONE).number());
        }
    }

    // The secondary.

    /// A segment was received: it is acknowledged now, and executed later.
    pub fn segment(&mut self, host: usize, segment: Held, closed_at: Nanoseconds) {
        let loses_it = self.mutation == Some(Mutation::LoseSegment) && self.random.chance(10);
        let Some(follower) = self.follower(host) else { return };
        let follows = follower.held.is_some_and(|held| held.epoch < segment.epoch);
        let (Some(execution), true) = (&mut follower.execution, follows) else {
            return self.part(host, Parting::Otherwise, Event::PeerLost { reason: LossReason::Protocol });
        };
        let (is_idle, connection) = (execution.waiting.is_empty(), follower.connection);
        if !loses_it {
            execution.waiting.push_back((segment, closed_at));
            follower.held = Some(segment);
            let output = OutputRange { base: segment.base, state: segment.state };
            follower.unreleased.push(segment.epoch, output, 0, 0);
        }
        self.secondary_event(host, Event::CheckpointHeld { epoch: segment.epoch });
        if is_idle && !loses_it {
            self.execute_next(host, connection);
        }
    }

    fn execute_next(&mut self, host: usize, connection: ConnectionId) {
        let longest = if self.slow_execution_until > self.now { 20 * MILLISECOND } else { 2 * MILLISECOND };
        let duration = self.random.between(20 * MICROSECOND, longest);
        self.start_timer(host, duration, Timer::Executed(connection));
    }

    /// The first segment that waited was executed.
    pub fn executed(&mut self, host: usize, connection: ConnectionId) {
        let diverges = !self.is_calm && self.random.below(1000) < self.plan.diverges as usize;
        let Some(follower) = self.follower(host).filter(|follower| follower.connection == connection) else { return };
        let Some(execution) = &mut follower.execution else { return };
        let Some((segment, _)) = execution.waiting.pop_front() else { return };
        if segment.base != execution.state {
            return self.broken(Violation::Differs(self.name(host)));
        }
        (execution.state, execution.executed) = (segment.state, Some(segment.epoch));
        let has_more = !execution.waiting.is_empty();
        if diverges {
            return self.diverges(host, segment);
        }
        let is_listening = follower.parting.is_none();
        if is_listening && !self.writes_disks(host) {
            return;
        }
        self.apply_to_disk(host, segment.base, segment.state);
        if has_more {
            return self.execute_next(host, connection);
        }
        if self.follower(host).is_some_and(|follower| std::mem::take(&mut follower.is_getting_ready)) {
            self.log_is_executed(host);
        }
    }

    /// Executing `segment` has led to another state, and the secondary has found out.
    fn diverges(&mut self, host: usize, segment: Held) {
        self.coverage.note(Occurrence::Diverged);
        self.tell(|world| format!("{}: finds that its state differs", world.name(host)));
        let other = self.history.step(segment.base, Deed::default());
        let Some(follower) = self.follower(host) else { return };
        let connection = follower.connection;
        let was_getting_ready = std::mem::take(&mut follower.is_getting_ready);
        follower.has_failed = true;
        if let Some(execution) = &mut follower.execution {
            execution.state = other;
            execution.waiting.clear();
        }
        let goes_on = self.mutation == Some(Mutation::DivergedGoesOn);
        if !goes_on {
            self.send(connection, Side::Secondary, Message::Diverged);
        }
        match (was_getting_ready, goes_on) {
            (true, true) => self.secondary_event(host, Event::Ready),
            (true, false) => self.step_is_over(host, ReadyStep::ExecuteLog, StepEnd::Failed(LossReason::Diverged)),
            (false, _) => {
                let reason = if goes_on { LossReason::Closed } else { LossReason::Diverged };
                self.part(host, Parting::Otherwise, Event::PeerLost { reason });
            }
        }
    }

    /// What was received of the log is executed before anything else happens: checkpoints follow.
    pub fn end_of_log(&mut self, host: usize) {
        let too_early = self.mutation == Some(Mutation::MirrorTooEarly);
        let Some(follower) = self.follower(host) else { return };
        let Some(mut execution) = follower.execution.take() else {
            return self.part(host, Parting::Otherwise, Event::PeerLost { reason: LossReason::Protocol });
        };
        let begun = execution.state;
        if !too_early {
            for (segment, _) in execution.waiting.drain(..) {
                if segment.base != execution.state {
                    return self.broken(Violation::Differs(self.name(host)));
                }
                execution.state = segment.state;
            }
        }
        if let Some(held) = &mut follower.held {
            held.state = execution.state;
        }
        self.inbound_is_consumed(host, execution.state);
        self.apply_to_disk(host, begun, execution.state);
    }
}
