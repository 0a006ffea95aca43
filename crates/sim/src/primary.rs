//! What `replication::mirror`'s primary does around the protocol.

use protocol::{Command, DropReason, Epoch, Event, LossReason, Protection, Reason, Role, Status, StopReason, Verdict};

use crate::coverage::Occurrence;
use crate::faults::{FAULTS_END, Moment};
use crate::mutation::Mutation;
use crate::network::{Arrival, ConnectionId, Message, Side};
use crate::process::{Body, Input, ProcessId, Runner, Session, Timer, Waiting};
use crate::store::Request;
use crate::time::{MICROSECOND, MILLISECOND, Nanoseconds};
use crate::violation::Violation;
use crate::world::{Death, RETRY_INTERVAL, World};

const IN_FLIGHT_MAX: usize = 3;
/// So much of the suspicion time a heartbeat counts as fresh.
const FRESH_EIGHTHS: u64 = 7;
const EPOCH_LENGTH_MAX: Nanoseconds = 50 * MILLISECOND;
/// How many times its length an epoch may last before the guest waits.
const PATIENCE: u64 = 4;
/// Shorter than the real one, or no schedule would last so long.
pub(crate) const TOO_SLOW_AFTER: Nanoseconds = 300 * MILLISECOND;
const CONNECT_TIMEOUT: Nanoseconds = 200 * MILLISECOND;
pub(crate) const HEARTBEATS_PER_SUSPICION: u64 = 5;
/// How often either side looks whether the other one is silent.
pub(crate) const SILENCE_CHECKS_PER_SUSPICION: u64 = 4;

impl World {
    pub fn runner(&mut self, host: usize) -> Option<&mut Runner> {
        match &mut self.hosts[host].process.as_mut()?.body {
            Body::Running(runner) => Some(runner),
            _ => None,
        }
    }

    pub fn session(&mut self, host: usize) -> Option<&mut Session> {
        self.runner(host)?.session.as_mut()
    }

    fn has_session(&mut self, host: usize, connection: ConnectionId) -> bool {
        self.session(host).is_some_and(|session| session.connection == connection)
    }

    // Protocol.

    /// As `mirror::Primary`: events of a session that has ended do not count.
    pub fn primary_event(&mut self, host: usize, session: Option<ConnectionId>, event: Event) {
        let current = self.session(host).map(|session| session.connection);
        if session.is_some() && session != current {
            return;
        }
        let event = self.mutate_answer(event);
        self.note_event(host, &event);
        let is_answer = matches!(event, Event::Arbitrated(_));
        let Some(process) = &mut self.hosts[host].process else { return };
        let id = process.id;
        let commands = process.replica.handle(event);
        for command in commands {
            if self.home(id).is_some() {
                self.tell(|world| format!("{}: {command:?}", world.name(host)));
                if is_answer && command == Command::OpenOutput {
                    self.coverage.note(Occurrence::PrimaryWins);
                }
                self.primary_does(host, command);
            }
        }
        if self.runner(host).is_some_and(|runner| !runner.is_held && runner.hand_over.is_some()) {
            self.broken(Violation::StandsStill(self.name(host)));
        }
        self.note_protected(host);
    }

    pub fn mutate_answer(&self, event: Event) -> Event {
        match (&event, self.mutation) {
            (Event::Arbitrated(Verdict::Lost(_)), Some(Mutation::LoserGoesOn))
            | (Event::StoreUnreachable, Some(Mutation::UnreachableGoesOn)) => Event::Arbitrated(Verdict::Won),
            _ => event,
        }
    }

    fn note_event(&mut self, host: usize, event: &Event) {
        let occurrence = match event {
            Event::Acknowledged { fresh: false, .. } => Occurrence::StaleAck,
            Event::DropSecondary { reason: DropReason::TooSlow } => Occurrence::TooSlow,
            Event::SyncFinished { .. } => {
                if let Some(process) = &self.hosts[host].process
                    && matches!(
                        process.replica.status().reason,
                        Some(Reason::Arbitrating(_) | Reason::StoreUnreachable)
                    )
                {
                    self.coverage.note(Occurrence::JoinedUndecided);
                }
                self.moment(Moment::Copied);
                return;
            }
            Event::PeerLost { .. } => return self.moment(Moment::Lost),
            Event::HandOverSent => return self.moment(Moment::HandOverSent),
            _ => return,
        };
        self.coverage.note(occurrence);
    }

    fn note_protected(&mut self, host: usize) {
        let Some(process) = &mut self.hosts[host].process else { return };
        let Body::Running(runner) = &mut process.body else { return };
        let is_protected = runner.session.is_some() && process.replica.status().is_protected();
        let was_protected = std::mem::replace(&mut runner.was_protected, is_protected);
        if is_protected && !was_protected {
            if process.replica.status().generation > 2 {
                self.coverage.note(Occurrence::Reprotected);
            }
            self.moment(Moment::Protected);
        }
    }

    fn primary_does(&mut self, host: usize, command: Command) {
        match command {
            Command::HoldOutput => {
                if self.mutation != Some(Mutation::DoNotHold)
                    && let Some(runner) = self.runner(host)
                {
                    runner.is_held = true;
                }
            }
            Command::OpenOutput => {
                self.check_consent(host);
                self.open_output(host);
            }
            Command::Release { through } => {
                self.release_through(host, through);
                self.send_to_secondary(host, Message::Released(through));
            }
            Command::TellEntitled { generation } => self.tell_entitled(host, generation),
            Command::CompareAndSwap { claim } => {
                match self.mutation {
                    Some(Mutation::OpenBeforeArbitration) if claim.secondary.is_none() => self.open_output(host),
                    Some(Mutation::EntitleBeforeSwap) if claim.secondary.is_some() => {
                        self.tell_entitled(host, claim.generation);
                    }
                    _ => {}
                }
                let secondary = claim.secondary.as_ref().and(self.session(host).map(|session| session.peer));
                self.ask_store(host, Request::CompareAndSwap { claim, secondary });
            }
            Command::CloseChannel => self.close_session(host),
            Command::StartRetryTimer => {
                if self.mutation != Some(Mutation::DoNotRetry) {
                    self.start_timer(host, RETRY_INTERVAL, Timer::Retry);
                }
            }
            Command::Resume => {
                if self.mutation != Some(Mutation::DoNotResume)
                    && let Some(runner) = self.runner(host)
                    && runner.hand_over.take().is_some()
                {
                    self.coverage.note(Occurrence::HandOverUndone);
                }
            }
            Command::Stop { reason } => self.primary_stops(host, reason),
            Command::Acknowledge { .. } | Command::ReadClaim | Command::TakeOver { .. } => {
                self.broken(Violation::Undone(self.name(host), format!("{command:?}")));
            }
        }
    }

    fn primary_stops(&mut self, host: usize, reason: StopReason) {
        self.coverage.note(Occurrence::PrimaryLoses);
        self.check_superseded(host, reason);
        if self.mutation == Some(Mutation::DoNotStop) {
            self.open_output(host);
        } else {
            self.end_process(host, Death::Stopped, true);
        }
    }

    fn tell_entitled(&mut self, host: usize, generation: u64) {
        let peer = self.session(host).map(|session| session.peer);
        let entry = self.store.entry(generation);
        if peer.is_none() || entry.is_none_or(|entry| entry.secondary != peer) {
            let name = peer.map_or(0, |peer| self.homes[peer.0 as usize]);
            self.broken(Violation::NotNamed(self.name(name), generation));
        }
        if self.mutation != Some(Mutation::EntitleBeforeFirstAck) {
            self.send_to_secondary(host, Message::Entitled(generation));
        }
    }

    /// Whoever lets output pass without acks needs a claim that it wrote, and that names it alone.
    pub fn check_consent(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        let generation = process.replica.status().generation;
        let has_consent = self.store.entry(generation).is_some_and(|entry| {
            entry.author == process.id
                && entry.claim.secondary.is_none()
                && entry.claim.primary == self.hosts[host].name
        });
        if !has_consent {
            self.broken(Violation::NoConsent(self.name(host), generation));
        }
    }

    /// Whoever stops for another one is right only if there is one.
    pub fn check_superseded(&mut self, host: usize, reason: StopReason) {
        if !matches!(reason, StopReason::Superseded | StopReason::HandedOver) {
            return;
        }
        let Some(process) = &self.hosts[host].process else { return };
        if self.store.current().author == process.id {
            self.broken(Violation::StoppedForNobody(self.name(host)));
        }
    }

    // The guest.

    fn guest_acts(&mut self, host: usize) {
        let interval = self.random.between(500 * MICROSECOND, self.plan.guest_interval_max);
        self.start_timer(host, interval, Timer::Guest);
        let has_output = self.random.chance(70);
        let (now, clock) = (self.now, self.hosts[host].clock);
        if self.is_lagging(host) {
            return self.wait_for_execution(host);
        }
        let Some(runner) = self.runner(host) else { return };
        if runner.hand_over.is_some() {
            return;
        }
        let is_late = runner.session.as_ref().is_some_and(|session| {
            session.is_mirroring
                && !session.has_log
                && clock.measures(now - session.epoch_since) >= PATIENCE * EPOCH_LENGTH_MAX
        });
        if is_late {
            let since = *runner.waits_since.get_or_insert(now);
            if clock.measures(now - since) > TOO_SLOW_AFTER {
                let connection = runner.session.as_ref().map(|session| session.connection);
                runner.waits_since = None;
                self.primary_event(host, connection, Event::DropSecondary { reason: DropReason::TooSlow });
            }
            self.consider(host);
            return;
        }
        runner.waits_since = None;
        let (before, is_held) = (runner.state, runner.is_held);
        self.check_lag(host);
        let state = self.history.step(before, has_output);
        let Some(runner) = self.runner(host) else { return };
        runner.state = state;
        if has_output {
            if is_held {
                runner.waiting.push_back(Waiting { state, epoch: None });
                if let Some(session) = &mut runner.session {
                    session.output_waits = true;
                }
            } else {
                self.release(host, state);
            }
        }
        self.consider(host);
    }

    /// Takes a checkpoint if it is time, and there is room.
    pub fn consider(&mut self, host: usize) {
        let (now, clock) = (self.now, self.hosts[host].clock);
        let Some(runner) = self.runner(host) else { return };
        let Some(session) = &runner.session else { return };
        if session.has_log {
            return self.consider_log(host);
        }
        let wants_log = self.wants_log;
        let Some(session) = self.session(host) else { return };
        let is_due = wants_log || session.output_waits || clock.measures(now - session.epoch_since) >= EPOCH_LENGTH_MAX;
        let has_room = session.outgoing.is_empty() && session.in_flight.len() < IN_FLIGHT_MAX;
        let is_mirroring = session.is_mirroring;
        let is_handing_over = self.runner(host).is_some_and(|runner| runner.hand_over.is_some());
        if is_mirroring && !is_handing_over && is_due && has_room {
            self.take_checkpoint(host);
        }
    }

    fn take_checkpoint(&mut self, host: usize) {
        let (now, then_log) = (self.now, self.wants_log);
        let mut duration = self.random.between(50, 2000) * MICROSECOND;
        if self.slow_sender_until > now {
            duration += self.random.between(0, self.slow_sender_extra);
        }
        let Some(runner) = self.runner(host) else { return };
        runner.epoch += 1;
        let (epoch, state) = (runner.epoch, runner.state);
        for waiting in runner.waiting.iter_mut().rev().take_while(|waiting| waiting.epoch.is_none()) {
            waiting.epoch = Some(epoch);
        }
        let Some(session) = &mut runner.session else { return };
        session.in_flight.push_back(epoch);
        session.output_waits = false;
        session.epoch_since = now;
        let base = std::mem::replace(&mut session.base, state);
        session.has_log = then_log;
        self.send_in_turn(host, Message::Checkpoint { epoch, heartbeat: 0, base, state, then_log }, duration);
        if then_log {
            self.coverage.note(Occurrence::LogBegan);
            self.moment(Moment::ModeChanged);
        }
        if self.mutation == Some(Mutation::ReleaseOnCapture) {
            self.release_through(host, epoch);
        }
    }

    // The session.

    /// Sends a message behind those that wait, which takes `duration`.
    pub fn send_in_turn(&mut self, host: usize, message: Message, duration: Nanoseconds) {
        let now = self.now;
        let Some(session) = self.session(host) else { return };
        session.outgoing.push_back(message);
        session.sent_at = session.sent_at.max(now) + duration;
        let (connection, delay) = (session.connection, session.sent_at - now);
        self.start_timer(host, delay, Timer::Sent(connection));
    }

    fn first_was_sent(&mut self, host: usize, connection: ConnectionId) {
        let now = self.now;
        let Some(session) = self.session(host) else { return };
        let Some(mut message) = session.outgoing.pop_front() else { return };
        if let Message::Checkpoint { heartbeat, .. } = &mut message {
            session.heartbeats.push(now);
            *heartbeat = session.heartbeats.len() as u64;
        }
        self.send(connection, Side::Primary, message);
        if self.mutation == Some(Mutation::EntitleBeforeFirstAck)
            && let Some(process) = &self.hosts[host].process
            && let Status { reason: Some(Reason::FirstCheckpoint), generation, .. } = process.replica.status()
        {
            self.send(connection, Side::Primary, Message::Entitled(generation));
        }
        self.consider(host);
    }

    fn send_to_secondary(&mut self, host: usize, message: Message) {
        if let Some(connection) = self.session(host).map(|session| session.connection) {
            self.send(connection, Side::Primary, message);
        }
    }

    fn close_session(&mut self, host: usize) {
        if let Some(session) = self.runner(host).and_then(|runner| runner.session.take()) {
            self.close(session.connection, Side::Primary);
        }
    }

    fn end_session(&mut self, host: usize, connection: ConnectionId, reason: LossReason) {
        if !self.has_session(host, connection) {
            return;
        }
        self.tell(|world| format!("{}: the secondary is lost: {reason}", world.name(host)));
        self.primary_event(host, Some(connection), Event::PeerLost { reason });
        if self.has_session(host, connection) {
            self.close_session(host);
        }
    }

    /// The daemon of `host` wants its VM protected by the secondary on another one.
    pub fn protect(&mut self, host: usize, secondary: usize) {
        let (Some(own), Some(peer)) = (self.process_id(host), self.process_id(secondary)) else { return };
        let connection = self.network.connect(own, peer);
        let Some(runner) = self.runner(host) else { return };
        runner.connecting = Some(connection);
        self.send(connection, Side::Primary, Message::Hello);
        self.start_timer(host, CONNECT_TIMEOUT, Timer::Connect(connection));
    }

    /// Whether a session can be made.
    pub fn wants_secondary(&mut self, host: usize) -> bool {
        let Some(process) = &self.hosts[host].process else { return false };
        let Body::Running(runner) = &process.body else { return false };
        let status = process.replica.status();
        !process.is_paused
            && runner.session.is_none()
            && runner.connecting.is_none()
            && status.role == Role::Primary
            && matches!(status.protection, Protection::NeedSecondary | Protection::Disabled)
    }

    fn open_session(&mut self, host: usize, connection: ConnectionId) {
        let now = self.now;
        let peer = self.network.end(connection, Side::Secondary).process;
        let copied = self.random.between(MILLISECOND, self.plan.copy_duration_max);
        let secondary = self.homes[peer.0 as usize];
        let Some(runner) = self.runner(host) else { return };
        runner.connecting = None;
        runner.session = Some(Session {
            connection,
            secondary,
            peer,
            heartbeats: Vec::new(),
            last_heard: now,
            is_mirroring: false,
            in_flight: Default::default(),
            output_waits: false,
            epoch_since: now,
            outgoing: Default::default(),
            sent_at: now,
            base: runner.state,
            has_log: false,
            unexecuted: Default::default(),
        });
        self.start_timer(host, 0, Timer::Heartbeat(connection));
        self.start_timer(host, 0, Timer::Silence(connection));
        self.start_timer(host, copied, Timer::Copied(connection));
    }

    /// The end of the first copy, with the guest paused.
    fn begin_mirroring(&mut self, host: usize, connection: ConnectionId) {
        if !self.has_session(host, connection) {
            return;
        }
        let Some(secondary) = self.session(host).map(|session| session.secondary) else { return };
        let secondary = self.hosts[secondary].name.clone();
        self.primary_event(host, Some(connection), Event::SyncFinished { secondary });
        let now = self.now;
        if let Some(runner) = self.runner(host)
            && let Some(session) = &mut runner.session
        {
            session.is_mirroring = true;
            session.epoch_since = now;
            session.base = runner.state;
            self.take_checkpoint(host);
        }
    }

    pub fn primary_timer(&mut self, host: usize, timer: Timer) {
        let (now, clock, suspicion) = (self.now, self.hosts[host].clock, self.plan.suspicion);
        match timer {
            Timer::Guest => self.guest_acts(host),
            Timer::Heartbeat(connection) if self.has_session(host, connection) => {
                if let Some(session) = self.session(host) {
                    session.heartbeats.push(now);
                    let number = session.heartbeats.len() as u64;
                    self.send(connection, Side::Primary, Message::Heartbeat(number));
                    self.start_timer(host, suspicion / HEARTBEATS_PER_SUSPICION, timer);
                }
            }
            Timer::Silence(connection) if self.has_session(host, connection) => {
                let silence = self.session(host).map_or(0, |session| clock.measures(now - session.last_heard));
                if silence > suspicion {
                    self.end_session(host, connection, LossReason::Silent);
                } else {
                    self.start_timer(host, suspicion / SILENCE_CHECKS_PER_SUSPICION, timer);
                }
            }
            Timer::Connect(connection) => {
                if let Some(runner) = self.runner(host)
                    && runner.connecting == Some(connection)
                {
                    runner.connecting = None;
                    self.close(connection, Side::Primary);
                }
            }
            Timer::Copied(connection) => self.begin_mirroring(host, connection),
            Timer::Sent(connection) if self.has_session(host, connection) => self.first_was_sent(host, connection),
            Timer::Checked { connection, epoch, fresh } => {
                // What was committed may be released late: nothing is undone by that.
                self.is_behind = true;
                self.release_acknowledged(host, connection, epoch, fresh);
                self.is_behind = false;
            }
            Timer::Retry => self.primary_event(host, None, Event::RetryDue),
            Timer::Heartbeat(_) | Timer::Silence(_) | Timer::Sent(_) | Timer::Executed(_) => {}
        }
    }

    pub fn primary_receives(&mut self, host: usize, connection: ConnectionId, arrival: Arrival) {
        let now = self.now;
        if self.runner(host).is_some_and(|runner| runner.connecting == Some(connection)) {
            match arrival {
                Arrival::Message(Message::Welcome) => self.open_session(host, connection),
                _ => {
                    self.close(connection, Side::Primary);
                    if let Some(runner) = self.runner(host) {
                        runner.connecting = None;
                    }
                }
            }
            return;
        }
        if !self.has_session(host, connection) {
            return;
        }
        match arrival {
            Arrival::Message(message) => {
                if let Some(session) = self.session(host) {
                    session.last_heard = now;
                }
                match message {
                    Message::Ack { epoch, heard, executed } => {
                        self.heard_of_execution(host, executed);
                        if let Some(epoch) = epoch {
                            self.acknowledged(host, connection, epoch, heard);
                        }
                    }
                    Message::Diverged => self.end_session(host, connection, LossReason::Diverged),
                    Message::Failed => self.end_session(host, connection, LossReason::Failed),
                    _ => self.end_session(host, connection, LossReason::Protocol),
                }
            }
            Arrival::Closed => self.end_session(host, connection, LossReason::Closed),
        }
    }

    fn acknowledged(&mut self, host: usize, connection: ConnectionId, epoch: Epoch, heard: u64) {
        let (now, clock, suspicion) = (self.now, self.hosts[host].clock, self.plan.suspicion);
        let accepts_stale = self.mutation == Some(Mutation::AcceptStaleAcks);
        let leaves_stale = self.plan.leaves_stale_acks;
        let Some(session) = self.session(host) else { return };
        let sent = heard.checked_sub(1).and_then(|index| session.heartbeats.get(usize::try_from(index).ok()?));
        let is_fresh = sent.is_some_and(|&sent| clock.measures(now - sent) < suspicion * FRESH_EIGHTHS / 8);
        let fresh = is_fresh || accepts_stale;
        if !fresh && leaves_stale {
            self.coverage.note(Occurrence::StaleAckLeft);
            return;
        }
        let count = session.in_flight.len();
        session.in_flight.retain(|&waiting| waiting > epoch);
        if session.in_flight.len() == count {
            return;
        }
        if !self.is_calm && self.random.chance(self.plan.stalls) {
            self.stall(host, Timer::Checked { connection, epoch, fresh });
        } else {
            self.release_acknowledged(host, connection, epoch, fresh);
        }
    }

    /// The process stands still just after it has seen that an ack is fresh.
    fn stall(&mut self, host: usize, timer: Timer) {
        let duration = self.random.between(MILLISECOND, 3 * self.plan.suspicion).min(FAULTS_END - self.now);
        let Some(process) = &mut self.hosts[host].process else { return };
        process.is_paused = true;
        process.pile.insert(0, Input::Timer(timer));
        let id = process.id;
        self.coverage.note(Occurrence::Stall);
        self.wake_after(id, duration);
    }

    fn release_acknowledged(&mut self, host: usize, connection: ConnectionId, epoch: Epoch, fresh: bool) {
        self.primary_event(host, Some(connection), Event::Acknowledged { epoch, fresh });
        let handed_over = self.runner(host).is_some_and(|runner| runner.hand_over.is_some_and(|last| last <= epoch));
        if handed_over && self.has_session(host, connection) {
            self.send(connection, Side::Primary, Message::HandOver);
            self.primary_event(host, Some(connection), Event::HandOverSent);
        }
        self.consider(host);
    }

    // The user.

    pub fn unprotect(&mut self, host: usize, reason: DropReason) {
        self.primary_event(host, None, Event::DropSecondary { reason });
        if let Some(connection) =
            self.session(host).filter(|session| !session.is_mirroring).map(|session| session.connection)
        {
            self.end_session(host, connection, LossReason::Closed);
        }
    }

    pub fn switch_over(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        if !process.replica.status().is_protected() || self.session(host).is_none() {
            return;
        }
        self.coverage.note(Occurrence::SwitchOver);
        self.tell(|world| format!("{}: hands over", world.name(host)));
        if self.session(host).is_some_and(|session| session.has_log) {
            self.close_segment(host);
        } else {
            self.take_checkpoint(host);
        }
        if let Some(runner) = self.runner(host) {
            runner.hand_over = Some(runner.epoch);
        }
        self.moment(Moment::HandOverBegun);
    }

    /// The primary that is the VM's as far as the store knows.
    pub fn primary_host(&self) -> Option<usize> {
        let author: ProcessId = self.store.current().author;
        self.home(author)
    }
}
