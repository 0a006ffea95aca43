//! A secondary's connection to its primary: what is received and said on it, and timers.

use protocol::{Ack, CopyNotes, Event, Look, LossReason, Silence, Suspicion, heartbeat_interval};

use crate::coverage::Occurrence;
use crate::faults::Moment;
use crate::history::StateId;
use crate::mutation::Mutation;
use crate::network::{Arrival, ConnectionId, Message, Side};
use crate::process::{Body, Execution, Follower, Held, OutputRange, Parting, Timer};
use crate::time::nanoseconds;
use crate::violation::Violation;
use crate::world::World;

impl World {
    pub fn follower(&mut self, host: usize) -> Option<&mut Follower> {
        match &mut self.hosts[host].process.as_mut()?.body {
            Body::Following(follower) => Some(follower),
            _ => None,
        }
    }

    /// The follower, while it listens to this connection.
    fn listener(&mut self, host: usize, connection: ConnectionId) -> Option<&mut Follower> {
        self.follower(host).filter(|follower| follower.connection == connection && follower.parting.is_none())
    }

    pub fn secondary_receives(&mut self, host: usize, connection: ConnectionId, arrival: Arrival) {
        let now = self.clock(host);
        let suspicion = self.plan.suspicion();
        let early = self.mutation == Some(Mutation::SuspectEarly);
        let half = || Suspicion::between(suspicion.min() / 2, suspicion.max() / 2).learned_after(2 * suspicion.max());
        let suspicion = if early { half() } else { suspicion };
        let Some(process) = &mut self.hosts[host].process else { return };
        if matches!(process.body, Body::Listening { .. }) {
            if let Arrival::Message(Message::Hello { generation }) = arrival {
                if !self.greets(host, connection, generation) {
                    self.coverage.note(Occurrence::NotAdmitted);
                    return self.close(connection, Side::Secondary);
                }
                let Some(process) = &mut self.hosts[host].process else { return };
                process.body = Body::Following(Box::new(Follower {
                    connection,
                    silence: Silence::new(suspicion, now),
                    ack: Ack::default(),
                    notes: CopyNotes::new(generation),
                    held: None,
                    unreleased: Default::default(),
                    inbound: Default::default(),
                    execution: None,
                    parting: None,
                    is_getting_ready: false,
                    is_unready: false,
                    has_broken_disks: false,
                    has_failed: false,
                }));
                let blocks = self.hosts[host].disks.blocks;
                self.send(connection, Side::Secondary, Message::Welcome { blocks });
                self.start_timer(host, 0, Timer::Heartbeat(connection));
                self.start_timer(host, 0, Timer::Silence(connection));
            }
            return;
        }
        let Some(follower) = self.listener(host, connection) else {
            if self.mutation == Some(Mutation::AcknowledgeAfterLoss) {
                self.acknowledge_blindly(host, arrival);
            }
            return;
        };
        let Arrival::Message(message) = arrival else {
            self.part(host, Parting::Otherwise, Event::PeerLost { reason: LossReason::Closed });
            return;
        };
        follower.silence.heard(now);
        self.network.note_arrived(connection);
        let Some(follower) = self.follower(host) else { return };
        match message {
            Message::Heartbeat(number) => follower.has_heard(number),
            Message::Part { part, heartbeat } => self.part_arrives(host, part, heartbeat),
            Message::Checkpoint { epoch, heartbeat, base, state, disk_base, output_base, then_log } => {
                self.checkpoint(host, heartbeat, Held { epoch, base, state }, (disk_base, output_base), then_log);
            }
            Message::Inbound { frame, position } => self.inbound_arrives(host, frame, position),
            Message::Segment { epoch, base, state, closed_at } => {
                self.segment(host, Held { epoch, base, state }, closed_at);
            }
            Message::EndOfLog => self.end_of_log(host),
            Message::Released(through) => follower.unreleased.released(through),
            Message::Entitled(generation) => {
                self.secondary_event(host, Event::Entitled { generation });
                self.note_entitled(host, generation);
            }
            Message::Ended => self.guest_has_ended(host),
            Message::HandOver => self.part(host, Parting::HandOver, Event::HandOver),
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Ack { .. }
            | Message::Failed
            | Message::Diverged => {
                self.part(host, Parting::Otherwise, Event::PeerLost { reason: LossReason::Protocol });
            }
        }
    }

    fn checkpoint(
        &mut self,
        host: usize,
        heartbeat: u64,
        complete: Held,
        (disk_base, output_base): (StateId, StateId),
        then_log: bool,
    ) {
        let loses_it = self.mutation == Some(Mutation::AcknowledgeUnheld) && self.random.chance(10);
        let Some(follower) = self.follower(host) else { return };
        if follower.held.is_some_and(|held| held.epoch >= complete.epoch) {
            return self.part(host, Parting::Otherwise, Event::PeerLost { reason: LossReason::Protocol });
        }
        let follows = follower.held.is_none_or(|held| held.state == complete.base) && follower.execution.is_none();
        if !follows && self.mutation != Some(Mutation::AcknowledgeUnheld) {
            return self.broken(Violation::Differs(self.name(host)));
        }
        let Some(follower) = self.follower(host) else { return };
        let keeps_it = !loses_it || follower.held.is_none();
        if keeps_it {
            follower.held = Some(complete);
            let output = OutputRange { base: output_base, state: complete.state };
            follower.unreleased.push(complete.epoch, output, 0, 0);
        }
        if then_log {
            follower.execution = Some(Execution { state: complete.state, executed: None, waiting: Default::default() });
        }
        follower.has_heard(heartbeat);
        if keeps_it {
            self.inbound_is_consumed(host, complete.state);
        }
        self.secondary_event(host, Event::CheckpointHeld { epoch: complete.epoch });
        if self.writes_disks(host) && keeps_it {
            self.apply_to_disk(host, disk_base, complete.state);
        }
    }

    /// A secondary writes its disks; whether it could.
    pub fn writes_disks(&mut self, host: usize) -> bool {
        let fails = self.hosts[host].disks.are_broken(self.now) && self.mutation != Some(Mutation::RunOnBrokenDisk);
        if fails {
            self.secondary_fails(host);
        }
        !fails
    }

    /// [`Mutation::AcknowledgeAfterLoss`].
    fn acknowledge_blindly(&mut self, host: usize, arrival: Arrival) {
        if let Arrival::Message(Message::Checkpoint { epoch, heartbeat, .. }) = arrival
            && let Some(follower) = self.follower(host)
        {
            follower.ack.holds(epoch);
            follower.has_heard(heartbeat);
            self.send_ack(host);
        }
    }

    /// The secondary's heartbeat: what it holds and has heard.
    pub fn send_ack(&mut self, host: usize) {
        let keeps_half = self.mutation == Some(Mutation::SuspectEarly);
        let reaches_network = self.reaches_network(host);
        if let Some(follower) = self.follower(host) {
            let (connection, mut ack) = (follower.connection, follower.ack);
            if keeps_half {
                ack.patience *= 2;
            }
            let executed = follower.execution.as_ref().and_then(|execution| execution.executed);
            self.send(connection, Side::Secondary, Message::Ack { ack, executed, reaches_network });
        }
    }

    pub fn secondary_timer(&mut self, host: usize, timer: Timer) {
        let now = self.clock(host);
        match timer {
            Timer::Heartbeat(connection) if self.listener(host, connection).is_some() => {
                self.send_ack(host);
                self.start_timer(host, nanoseconds(heartbeat_interval(self.plan.suspicion())), timer);
            }
            Timer::Silence(connection) | Timer::LastLook(connection) => {
                let Some(follower) = self.listener(host, connection) else { return };
                match (follower.silence.look(now), timer) {
                    (Look::For(wait), _) => self.start_timer(host, nanoseconds(wait), Timer::Silence(connection)),
                    (Look::Last, Timer::Silence(_)) => self.start_timer(host, 0, Timer::LastLook(connection)),
                    (Look::Last, _) => {
                        let waited = now.since(follower.silence.last_heard());
                        if waited < self.plan.suspicion().max() {
                            self.coverage.note(Occurrence::SuspectedSooner);
                        }
                        self.part(host, Parting::Silent, Event::PeerLost { reason: LossReason::Silent });
                    }
                }
            }
            Timer::Retry => self.secondary_event(host, Event::RetryDue),
            Timer::Executed(connection) => self.executed(host, connection),
            _ => {}
        }
    }

    /// The secondary's disks cannot be written any more.
    pub fn secondary_fails(&mut self, host: usize) {
        let Some(connection) = self.follower(host).map(|follower| follower.connection) else { return };
        if self.listener(host, connection).is_some() {
            self.coverage.note(Occurrence::SecondaryFailed);
            if let Some(follower) = self.follower(host) {
                follower.has_failed = true;
            }
            self.send(connection, Side::Secondary, Message::Failed);
            self.part(host, Parting::Otherwise, Event::PeerLost { reason: LossReason::Failed });
        }
    }

    /// It listens no more.
    pub fn part(&mut self, host: usize, parting: Parting, event: Event) {
        self.tell(|world| format!("{}: parts from its primary: {event:?}", world.name(host)));
        if let Some(follower) = self.follower(host) {
            follower.parting = Some(parting);
        }
        self.moment(Moment::Lost);
        self.secondary_event(host, event);
    }
}
