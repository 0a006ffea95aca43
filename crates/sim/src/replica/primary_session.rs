//! A primary's connection to its secondary: what is sent and received on it, and timers.

use protocol::{
    Ack, AckSays, Epoch, Epochs, Event, Generation, Heartbeats, LogLag, Look, LossReason, Patience, Protection, Reason,
    Role, SegmentUnderWay, Silence, Status, heartbeat_interval,
};

use crate::copying::Copying;
use crate::coverage::Occurrence;
use crate::history::Content;
use crate::mutation::Mutation;
use crate::network::{Arrival, ConnectionId, Message, Side};
use crate::process::{Body, Input, ProcessId, Runner, Session, TOO_SLOW_AFTER, Timer};
use crate::time::{MILLISECOND, Nanoseconds, nanoseconds};
use crate::world::World;

/// How long a secondary may take to answer. Shorter than the product's, or no schedule would last so long.
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

    pub fn send_to_secondary(&mut self, host: usize, message: Message) {
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
            reaches_network: true,
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
                    Message::Ack { ack, executed, reaches_network } => {
                        self.heard_of_execution(host, executed);
                        if let Some(session) = self.session(host) {
                            session.reaches_network = reaches_network;
                        }
                        self.copy_is_taken_in(host, connection, ack.heard);
                        self.acknowledged(host, connection, ack);
                    }
                    Message::Diverged => self.end_session(host, connection, LossReason::Diverged),
                    Message::Failed => self.end_session(host, connection, LossReason::Failed),
                    _ => self.end_session(host, connection, LossReason::Protocol),
                }
            }
            Arrival::Closed => self.end_session(host, connection, LossReason::Closed),
        }
    }

    fn acknowledged(&mut self, host: usize, connection: ConnectionId, mut ack: Ack) {
        if self.mutation == Some(Mutation::CountOnLongest) {
            ack.patience = self.plan.suspicion().max();
        }
        let (now, accepts_stale) = (self.clock(host), self.mutation == Some(Mutation::AcceptStaleAcks));
        let Some(session) = self.session(host) else { return };
        let says = match ack.says(&session.heartbeats, &mut session.epochs, now) {
            Ok(AckSays::Stale) if accepts_stale => {
                let committed = session.epochs.acknowledged(ack.epoch.unwrap_or(Epoch::NONE));
                committed
                    .map(|committed| if committed.is_empty() { AckSays::Nothing } else { AckSays::Commits(committed) })
            }
            says => says,
        };
        match (says, ack.epoch) {
            (Err(_), _) => self.end_session(host, connection, LossReason::Protocol),
            (Ok(AckSays::Stale), _) => self.coverage.note(Occurrence::StaleAck),
            (Ok(AckSays::Commits(_)), Some(epoch)) if !self.is_calm && self.random.chance(self.plan.stalls) => {
                self.stall(host, Timer::Checked { connection, epoch });
            }
            (Ok(AckSays::Commits(_)), Some(epoch)) => self.release_acknowledged(host, connection, epoch),
            (Ok(AckSays::Commits(_) | AckSays::Nothing), _) => {}
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
}
