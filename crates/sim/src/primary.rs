//! What `replication::driver`'s primary does around the protocol.

use std::time::Duration;

use protocol::{
    Claim, Command, DropReason, Epoch, Epochs, Event, Generation, Heartbeats, LogLag, Look, LossReason, Patience,
    Protection, RETRY_INTERVAL, Reason, Role, SegmentUnderWay, Silence, Status, StopReason, Verdict,
    heartbeat_interval,
};

use crate::copying::Copying;
use crate::coverage::Occurrence;
use crate::faults::Moment;
use crate::history::Content;
use crate::mutation::Mutation;
use crate::network::{Arrival, ConnectionId, Message, Side};
use crate::process::{Body, Input, ProcessId, Runner, Session, TOO_SLOW_AFTER, Timer};
use crate::store::Request;
use crate::time::{MILLISECOND, Nanoseconds, nanoseconds};
use crate::violation::Violation;
use crate::world::{Death, World};

const CONNECT_TIMEOUT: Nanoseconds = 200 * MILLISECOND;

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

    pub fn has_session(&mut self, host: usize, connection: ConnectionId) -> bool {
        self.session(host).is_some_and(|session| session.connection == connection)
    }

    // Protocol.

    /// As `driver::Primary`: events of a session that has ended do not count.
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
        // Where output never waits, that says nothing.
        let holds = self.mutation != Some(Mutation::DoNotHold);
        if self.runner(host).is_some_and(|runner| holds && !runner.is_held && runner.is_handing_over) {
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
            _ => return,
        };
        self.coverage.note(occurrence);
    }

    fn note_protected(&mut self, host: usize) {
        let Some(process) = &mut self.hosts[host].process else { return };
        let Body::Running(runner) = &mut process.body else { return };
        let is_protected = runner.session.is_some() && process.replica.is_protected();
        let was_protected = std::mem::replace(&mut runner.was_protected, is_protected);
        if is_protected && !was_protected {
            if process.replica.status().generation > Generation::new(2) {
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
                let left = self.release_through(host, through);
                if left < through {
                    self.coverage.note(Occurrence::ReleasedLate);
                }
                let told = if self.mutation == Some(Mutation::TellUnleftReleased) { through } else { left };
                self.send_to_secondary(host, Message::Released(told));
            }
            Command::TellEntitled { generation } => self.tell_entitled(host, generation),
            Command::ReadClaim => {
                self.coverage.note(Occurrence::WithheldForDisks);
                self.ask_store(host, Request::Read);
            }
            Command::CompareAndSwap { claim } => {
                self.check_may_compete(host, &claim);
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
                    self.start_timer(host, nanoseconds(RETRY_INTERVAL), Timer::Retry);
                }
            }
            Command::Resume => {
                if self.mutation != Some(Mutation::DoNotResume)
                    && let Some(runner) = self.runner(host)
                    && std::mem::take(&mut runner.is_handing_over)
                {
                    runner.patience.goes_on();
                    self.coverage.note(Occurrence::HandOverUndone);
                }
            }
            Command::AskToTakeOver => {
                if let Some(runner) = self.runner(host) {
                    runner.has_asked = true;
                }
                self.send_to_secondary(host, Message::HandOver);
                self.moment(Moment::HandOverSent);
            }
            Command::Stop { reason } => self.primary_stops(host, reason),
            Command::Acknowledge { .. } | Command::GetReady | Command::TakeOver { .. } => {
                self.broken(Violation::Undone(self.name(host), format!("{command:?}")));
            }
        }
    }

    /// Whoever knows that it could not run the VM leaves it to the other one.
    fn check_may_compete(&mut self, host: usize, claim: &Claim) {
        let Some(process) = &self.hosts[host].process else { return };
        let is_lost = matches!(process.replica.status().reason, Some(Reason::Arbitrating(_) | Reason::HandOver));
        let knows = matches!(&process.body, Body::Running(runner) if runner.has_broken_disks);
        if claim.secondary.is_none() && is_lost && knows {
            self.broken(Violation::TookWithBrokenDisks(self.name(host)));
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

    fn tell_entitled(&mut self, host: usize, generation: Generation) {
        let peer = self.session(host).map(|session| session.peer);
        // One that was told that the guest is off has gone, and the protocol has not heard of that.
        if peer.is_none() && self.runner(host).is_some_and(|runner| runner.leaving.is_some()) {
            return;
        }
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
        let now = self.clock(host);
        let Some(session) = self.session(host) else { return };
        let Some(mut message) = session.outgoing.pop_front() else { return };
        match &mut message {
            Message::Checkpoint { epoch, heartbeat, .. } => {
                session.epochs.sent(*epoch);
                *heartbeat = session.heartbeats.number_next(now);
            }
            Message::Part { part, heartbeat } => {
                let part = *part;
                *heartbeat = self.part_is_sent(host, part);
            }
            _ => {}
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

    pub fn close_session(&mut self, host: usize) {
        if let Some(session) = self.runner(host).and_then(|runner| runner.session.take()) {
            self.close(session.connection, Side::Primary);
        }
    }

    pub fn end_session(&mut self, host: usize, connection: ConnectionId, reason: LossReason) {
        if !self.has_session(host, connection) {
            return;
        }
        self.tell(|world| format!("{}: the secondary is lost: {reason}", world.name(host)));
        // One that was told that the guest is off closes the connection, which is no loss.
        if self.runner(host).is_none_or(|runner| runner.leaving.is_none_or(|leaving| !leaving.farewell.is_told())) {
            self.primary_event(host, Some(connection), Event::PeerLost { reason });
        }
        if self.has_session(host, connection) {
            self.close_session(host);
        }
    }

    /// The daemon of `host` wants its VM protected by this secondary on another one.
    pub fn protect(&mut self, host: usize, peer: ProcessId) {
        let Some(own) = self.process_id(host) else { return };
        let connection = self.network.connect(own, peer);
        self.primary_calls(peer, connection);
        let Some(runner) = self.runner(host) else { return };
        runner.connecting = Some(connection);
        let generation = self.generation(host);
        self.send(connection, Side::Primary, Message::Hello { generation });
        self.start_timer(host, CONNECT_TIMEOUT, Timer::Connect(connection));
    }

    /// In which it acts.
    pub fn generation(&self, host: usize) -> Generation {
        self.hosts[host].process.as_ref().map_or(Generation::NONE, |process| process.replica.status().generation)
    }

    /// Whether a session can be made.
    pub fn wants_secondary(&mut self, host: usize) -> bool {
        let Some(process) = &self.hosts[host].process else { return false };
        let Body::Running(runner) = &process.body else { return false };
        let status = process.replica.status();
        !process.is_paused
            && !self.hosts[host].disks.are_broken(self.now)
            && runner.session.is_none()
            && runner.connecting.is_none()
            && status.role == Role::Primary
            && matches!(status.protection, Protection::NeedSecondary | Protection::Disabled)
    }

    fn open_session(&mut self, host: usize, connection: ConnectionId, blocks: Content) {
        let (now, sent_at, suspicion) = (self.clock(host), self.now, self.plan.suspicion());
        let peer = self.network.end(connection, Side::Secondary).process;
        let secondary = self.homes[peer.0 as usize];
        let Some(runner) = self.runner(host) else { return };
        runner.connecting = None;
        runner.session = Some(Session {
            connection,
            secondary,
            peer,
            heartbeats: Heartbeats::new(suspicion),
            silence: Silence::new(suspicion, now),
            epochs: Epochs::default(),
            copying: Some(Box::new(Copying::new(blocks, runner.state, now))),
            output_waits: false,
            segment: SegmentUnderWay::new(now),
            log_base: Epoch::NONE,
            outgoing: Default::default(),
            sent_at,
            base: runner.state,
            log_lag: LogLag::default(),
            acknowledged: Epoch::NONE,
            unforwarded: Vec::new(),
        });
        self.start_timer(host, 0, Timer::Heartbeat(connection));
        self.start_timer(host, 0, Timer::Silence(connection));
        self.copy_goes_on(host, connection);
    }

    /// The end of the first copy, with the guest paused.
    pub fn begin_mirroring(&mut self, host: usize, connection: ConnectionId) {
        if !self.has_session(host, connection) {
            return;
        }
        self.check_last_pause(host);
        let Some(secondary) = self.session(host).map(|session| session.secondary) else { return };
        let secondary = self.hosts[secondary].name.clone();
        self.primary_event(host, Some(connection), Event::SyncFinished { secondary });
        let now = self.clock(host);
        if let Some(runner) = self.runner(host)
            && let Some(session) = &mut runner.session
        {
            runner.patience = Patience::new(TOO_SLOW_AFTER);
            session.epochs.begin(now);
            session.base = runner.state;
            self.take_checkpoint(host);
        }
    }

    pub fn primary_timer(&mut self, host: usize, timer: Timer) {
        let (now, suspicion) = (self.clock(host), self.plan.suspicion());
        match timer {
            Timer::Guest => self.guest_acts(host),
            Timer::Heartbeat(connection) if self.has_session(host, connection) => {
                if let Some(session) = self.session(host) {
                    let number = session.heartbeats.number_next(now);
                    self.send(connection, Side::Primary, Message::Heartbeat(number));
                    self.start_timer(host, nanoseconds(heartbeat_interval(suspicion)), timer);
                }
            }
            Timer::Silence(connection) | Timer::LastLook(connection) if self.has_session(host, connection) => {
                let Some(look) = self.session(host).map(|session| session.silence.look(now)) else { return };
                match (look, timer) {
                    (Look::For(wait), _) => self.start_timer(host, nanoseconds(wait), Timer::Silence(connection)),
                    (Look::Last, Timer::Silence(_)) => self.start_timer(host, 0, Timer::LastLook(connection)),
                    (Look::Last, _) => self.end_session(host, connection, LossReason::Silent),
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
            Timer::Copy(connection) => self.copy_timer(host, connection),
            Timer::Sent(connection) if self.has_session(host, connection) => self.first_was_sent(host, connection),
            Timer::Checked { connection, epoch } => {
                // What was committed may be released late: nothing is undone by that.
                self.is_behind = true;
                self.release_acknowledged(host, connection, epoch);
                self.is_behind = false;
            }
            Timer::Retry => self.primary_event(host, None, Event::RetryDue),
            Timer::Heartbeat(_) | Timer::Silence(_) | Timer::LastLook(_) | Timer::Sent(_) | Timer::Executed(_) => {}
        }
    }

    pub fn primary_receives(&mut self, host: usize, connection: ConnectionId, arrival: Arrival) {
        let now = self.clock(host);
        if self.runner(host).is_some_and(|runner| runner.connecting == Some(connection)) {
            match arrival {
                Arrival::Message(Message::Welcome { blocks }) => self.open_session(host, connection, blocks),
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
                    session.silence.heard(now);
                }
                match message {
                    Message::Ack { epoch, heard, patience, executed } => {
                        self.heard_of_execution(host, executed);
                        self.copy_is_taken_in(host, connection, heard);
                        if let Some(epoch) = epoch {
                            self.acknowledged(host, connection, epoch, (heard, patience));
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

    fn acknowledged(
        &mut self,
        host: usize,
        connection: ConnectionId,
        epoch: Epoch,
        (heard, patience): (u64, Duration),
    ) {
        let counts_on_longest = self.mutation == Some(Mutation::CountOnLongest);
        let patience = if counts_on_longest { self.plan.suspicion().max() } else { patience };
        let (now, accepts_stale) = (self.clock(host), self.mutation == Some(Mutation::AcceptStaleAcks));
        let Some(session) = self.session(host) else { return };
        if !session.heartbeats.is_fresh(heard, patience, now) && !accepts_stale {
            return self.coverage.note(Occurrence::StaleAck);
        }
        match session.epochs.acknowledged(epoch) {
            Err(_) => self.end_session(host, connection, LossReason::Protocol),
            Ok(committed) if committed.is_empty() => {}
            Ok(_) if !self.is_calm && self.random.chance(self.plan.stalls) => {
                self.stall(host, Timer::Checked { connection, epoch });
            }
            Ok(_) => self.release_acknowledged(host, connection, epoch),
        }
    }

    /// The process stands still just after it has seen that an ack is fresh.
    fn stall(&mut self, host: usize, timer: Timer) {
        let duration = self.random.between(MILLISECOND, 3 * self.plan.suspicion).min(self.plan.faults_end - self.now);
        let Some(process) = &mut self.hosts[host].process else { return };
        process.is_paused = true;
        process.pile.insert(0, Input::Timer(timer));
        let id = process.id;
        self.coverage.note(Occurrence::Stall);
        self.wake_after(id, duration);
    }

    fn release_acknowledged(&mut self, host: usize, connection: ConnectionId, epoch: Epoch) {
        if let Some(session) = self.session(host).filter(|session| session.connection == connection) {
            session.acknowledged = epoch;
        }
        if self.mutation == Some(Mutation::NoteHandOverLate) && self.notes_hand_over_late(host, epoch) {
            return;
        }
        self.primary_event(host, Some(connection), Event::Acknowledged { epoch });
        self.consider(host);
    }

    // The user.

    pub fn unprotect(&mut self, host: usize, reason: DropReason) {
        self.primary_event(host, None, Event::DropSecondary { reason });
        if let Some(connection) =
            self.session(host).filter(|session| !session.epochs.has_begun()).map(|session| session.connection)
        {
            self.end_session(host, connection, LossReason::Closed);
        }
    }

    pub fn switch_over(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else { return };
        if !process.replica.is_protected() || self.session(host).is_none() {
            return;
        }
        self.coverage.note(Occurrence::SwitchOver);
        self.tell(|world| format!("{}: hands over", world.name(host)));
        let Some(runner) = self.runner(host) else { return };
        runner.is_handing_over = true;
        let last = runner.epoch.next();
        (runner.hands_over_after, runner.has_asked) = (Some(last), false);
        if self.mutation != Some(Mutation::NoteHandOverLate) {
            self.primary_event(host, None, Event::SwitchOver { last });
        }
        if self.session(host).is_some_and(|session| session.epochs.follows_log()) {
            self.close_segment(host);
        } else {
            self.take_checkpoint(host);
        }
        self.moment(Moment::HandOverBegun);
    }

    /// [`Mutation::NoteHandOverLate`]: what ends the last epoch is acknowledged already. Whether it was that.
    fn notes_hand_over_late(&mut self, host: usize, epoch: Epoch) -> bool {
        let last = self.runner(host).and_then(|runner| runner.hands_over_after).filter(|&last| last == epoch);
        let (Some(last), Some(connection)) = (last, self.session(host).map(|session| session.connection)) else {
            return false;
        };
        self.primary_event(host, Some(connection), Event::Acknowledged { epoch });
        self.primary_event(host, Some(connection), Event::SwitchOver { last });
        true
    }

    /// The primary that is the VM's as far as the store knows.
    pub fn primary_host(&self) -> Option<usize> {
        let author: ProcessId = self.store.current().author;
        self.home(author)
    }
}
