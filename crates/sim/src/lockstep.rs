//! What `replication::mirror` does in lockstep: the log in place of checkpoints, and its execution.

use protocol::{DropReason, Event, LossReason};

use crate::coverage::Occurrence;
use crate::faults::Moment;
use crate::mutation::Mutation;
use crate::network::{ConnectionId, Message, Side};
use crate::primary::TOO_SLOW_AFTER;
use crate::process::{Held, Parting, Timer, Waiting};
use crate::time::{MICROSECOND, MILLISECOND, Nanoseconds};
use crate::violation::Violation;
use crate::world::World;

/// A segment ends after so long.
const SEGMENT_LENGTH_MAX: Nanoseconds = 5 * MILLISECOND;
/// How far the secondary may be behind.
const LAG_MAX: Nanoseconds = 30 * MILLISECOND;

impl World {
    // The primary.

    /// The secondary is behind by more than it may be, as far as this primary knows.
    pub fn is_lagging(&mut self, host: usize) -> bool {
        let (now, clock) = (self.now, self.hosts[host].clock);
        let waits = self.mutation != Some(Mutation::DoNotWait);
        let is_handing_over = self.runner(host).is_some_and(|runner| runner.hand_over.is_some());
        let Some(session) = self.session(host) else { return false };
        let oldest = session.unexecuted.front().filter(|_| session.has_log && waits && !is_handing_over);
        oldest.is_some_and(|&(_, closed_at)| clock.measures(now - closed_at) > LAG_MAX)
    }

    /// The guest does nothing; if that lasts, the secondary is given up.
    pub fn wait_for_execution(&mut self, host: usize) {
        self.coverage.note(Occurrence::LagWaited);
        let (now, clock) = (self.now, self.hosts[host].clock);
        let Some(runner) = self.runner(host) else { return };
        let since = *runner.waits_since.get_or_insert(now);
        if clock.measures(now - since) > TOO_SLOW_AFTER {
            runner.waits_since = None;
            let connection = runner.session.as_ref().map(|session| session.connection);
            self.primary_event(host, connection, Event::DropSecondary { reason: DropReason::TooSlow });
        }
        self.consider(host);
    }

    /// Whatever this primary knows, its guest must not run while the secondary is far behind.
    pub fn check_lag(&mut self, host: usize) {
        let (now, clock) = (self.now, self.hosts[host].clock);
        let Some(peer) = self.session(host).filter(|session| session.has_log).map(|session| session.peer) else {
            return;
        };
        let Some(secondary) = self.home(peer) else { return };
        let execution = self.follower(secondary).and_then(|follower| follower.execution.as_ref());
        let oldest = execution.and_then(|execution| execution.waiting.front()).map(|&(_, closed_at)| closed_at);
        if oldest.is_some_and(|closed_at| clock.measures(now - closed_at) > LAG_MAX) {
            self.broken(Violation::TooFarAhead(self.name(host)));
        }
    }

    /// Ends the segment under way if it is time, or the log if checkpoints are wanted.
    pub fn consider_log(&mut self, host: usize) {
        let (now, clock, wants_log) = (self.now, self.hosts[host].clock, self.wants_log);
        let is_handing_over = self.runner(host).is_some_and(|runner| runner.hand_over.is_some());
        let Some(session) = self.session(host).filter(|_| !is_handing_over) else { return };
        let is_due = session.output_waits || clock.measures(now - session.epoch_since) >= SEGMENT_LENGTH_MAX;
        if !wants_log {
            self.close_segment(host);
            self.send_log(host, Message::EndOfLog);
            if let Some(session) = self.session(host) {
                session.has_log = false;
                session.unexecuted.clear();
            }
            self.coverage.note(Occurrence::LogEnded);
            self.moment(Moment::ModeChanged);
        } else if is_due {
            self.close_segment(host);
        }
    }

    /// Ends the segment under way; its output waits for it.
    pub fn close_segment(&mut self, host: usize) {
        let now = self.now;
        let Some(runner) = self.runner(host) else { return };
        runner.epoch += 1;
        let (epoch, state) = (runner.epoch, runner.state);
        let is_of_it = |waiting: &&mut Waiting| waiting.epoch.is_none();
        runner.waiting.iter_mut().rev().take_while(is_of_it).for_each(|waiting| waiting.epoch = Some(epoch));
        let Some(session) = &mut runner.session else { return };
        session.in_flight.push_back(epoch);
        session.unexecuted.push_back((epoch, now));
        session.output_waits = false;
        session.epoch_since = now;
        let base = std::mem::replace(&mut session.base, state);
        self.send_log(host, Message::Segment { epoch, base, state, closed_at: now });
        if self.mutation == Some(Mutation::ReleaseOnCapture) {
            self.release_through(host, epoch);
        }
    }

    fn send_log(&mut self, host: usize, message: Message) {
        let duration = self.random.between(5, 50) * MICROSECOND;
        self.send_in_turn(host, message, duration);
    }

    pub fn heard_of_execution(&mut self, host: usize, executed: Option<u64>) {
        if let Some(session) = self.session(host) {
            session.unexecuted.retain(|&(epoch, _)| executed.is_none_or(|executed| epoch > executed));
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
            follower.unreleased.push_back(segment);
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
        if has_more {
            return self.execute_next(host, connection);
        }
        if let Some(event) = self.follower(host).and_then(|follower| follower.after_run_out.take()) {
            self.secondary_event(host, event);
        }
    }

    /// Executing `segment` has led to another state, and the secondary has found out.
    fn diverges(&mut self, host: usize, segment: Held) {
        self.coverage.note(Occurrence::Diverged);
        self.tell(|world| format!("{}: finds that its state differs", world.name(host)));
        let other = self.history.step(segment.base, false);
        let Some(follower) = self.follower(host) else { return };
        let connection = follower.connection;
        let is_parted = follower.parting.is_some();
        follower.after_run_out = None;
        if let Some(execution) = &mut follower.execution {
            execution.state = other;
            execution.waiting.clear();
        }
        let goes_on = self.mutation == Some(Mutation::DivergedGoesOn);
        let reason = if goes_on { LossReason::Closed } else { LossReason::Diverged };
        if !goes_on {
            self.send(connection, Side::Secondary, Message::Diverged);
        }
        let event = Event::PeerLost { reason };
        if is_parted { self.secondary_event(host, event) } else { self.part(host, Parting::Otherwise, event) }
    }

    /// What was received of the log is executed before anything else happens: checkpoints follow.
    pub fn end_of_log(&mut self, host: usize) {
        let too_early = self.mutation == Some(Mutation::MirrorTooEarly);
        let Some(follower) = self.follower(host) else { return };
        let Some(mut execution) = follower.execution.take() else {
            return self.part(host, Parting::Otherwise, Event::PeerLost { reason: LossReason::Protocol });
        };
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
    }

    /// What the protocol is to hear at once: nothing, if there is some of the log to be executed before.
    pub fn after_run_out(&mut self, host: usize, event: Event) -> Option<Event> {
        let runs_out = self.mutation != Some(Mutation::DoNotRunOut);
        let is_final = matches!(event, Event::PeerLost { reason: LossReason::Failed | LossReason::Diverged });
        let Some(follower) = self.follower(host) else { return Some(event) };
        let waits = follower.execution.as_ref().is_some_and(|execution| !execution.waiting.is_empty());
        if !waits || !runs_out || is_final {
            return Some(event);
        }
        follower.after_run_out = Some(event);
        self.coverage.note(Occurrence::RanOut);
        None
    }
}
