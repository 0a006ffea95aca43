//! What `replication::driver`'s secondary does around the protocol.

use std::time::Duration;

use protocol::{
    Claim, Command, CopyNotes, Epoch, Event, Look, LossReason, RETRY_INTERVAL, Silence, StopReason, Suspicion, Verdict,
    heartbeat_interval,
};

use crate::coverage::Occurrence;
use crate::faults::Moment;
use crate::history::StateId;
use crate::mutation::Mutation;
use crate::network::{Arrival, ConnectionId, Message, Side};
use crate::process::{Body, Execution, Follower, Held, OutputRange, Parting, Runner, Timer, Waiting};
use crate::store::Request;
use crate::time::{MICROSECOND, nanoseconds};
use crate::violation::Violation;
use crate::world::{Death, World};

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
                    heard: (0, Duration::ZERO),
                    silence: Silence::new(suspicion, now),
                    acknowledged: None,
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
            follower.acknowledged = Some(epoch);
            follower.has_heard(heartbeat);
            self.send_ack(host);
        }
    }

    /// The secondary's heartbeat: what it holds and has heard.
    pub fn send_ack(&mut self, host: usize) {
        let keeps_half = self.mutation == Some(Mutation::SuspectEarly);
        if let Some(follower) = self.follower(host) {
            let (connection, epoch, (heard, patience)) = (follower.connection, follower.acknowledged, follower.heard);
            let patience = if keeps_half { patience * 2 } else { patience };
            let executed = follower.execution.as_ref().and_then(|execution| execution.executed);
            self.send(connection, Side::Secondary, Message::Ack { epoch, heard, patience, executed });
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

    pub fn secondary_event(&mut self, host: usize, event: Event) {
        let event = self.mutate_claim(host, self.mutate_answer(event));
        let is_listening = self.follower(host).is_some_and(|follower| follower.parting.is_none());
        let is_inquiry = matches!(event, Event::ClaimRead(_));
        let Some(process) = &mut self.hosts[host].process else { return };
        let id = process.id;
        let commands = process.replica.handle(event);
        for command in commands {
            if self.home(id).is_none() {
                return;
            }
            self.tell(|world| format!("{}: {command:?}", world.name(host)));
            // Whoever listens does nothing else.
            if is_listening && !matches!(command, Command::Acknowledge { .. }) {
                return self.broken(Violation::Undone(self.name(host), format!("{command:?}")));
            }
            if is_inquiry && matches!(command, Command::CompareAndSwap { .. }) {
                self.coverage.note(Occurrence::TakeOverInquired);
            }
            self.secondary_does(host, command);
        }
    }

    fn mutate_claim(&self, host: usize, event: Event) -> Event {
        match event {
            Event::ClaimRead(claim) if self.mutation == Some(Mutation::UnentitledTakesOver) => {
                Event::ClaimRead(Claim { secondary: Some(self.hosts[host].name.clone()), ..claim })
            }
            event => event,
        }
    }

    fn secondary_does(&mut self, host: usize, command: Command) {
        match command {
            Command::Acknowledge { epoch } => {
                if let Some(follower) = self.follower(host) {
                    follower.acknowledged = Some(epoch);
                }
                self.send_ack(host);
            }
            Command::CloseChannel if self.mutation == Some(Mutation::AcknowledgeAfterLoss) => {}
            Command::CloseChannel => {
                if let Some(connection) = self.follower(host).map(|follower| follower.connection) {
                    self.close(connection, Side::Secondary);
                }
            }
            Command::CompareAndSwap { .. } if self.mutation == Some(Mutation::TakeOverWithoutArbitration) => {
                self.secondary_event(host, Event::Arbitrated(Verdict::Won));
            }
            Command::CompareAndSwap { claim } => {
                self.ask_store(host, Request::CompareAndSwap { claim, secondary: None });
            }
            Command::GetReady => self.get_ready(host),
            Command::ReadClaim => self.ask_store(host, Request::Read),
            Command::StartRetryTimer => {
                if self.mutation != Some(Mutation::DoNotRetry) {
                    self.start_timer(host, nanoseconds(RETRY_INTERVAL), Timer::Retry);
                }
            }
            Command::TakeOver { from } => self.take_over(host, from),
            Command::Stop { reason } => self.secondary_stops(host, reason),
            Command::HoldOutput
            | Command::Release { .. }
            | Command::OpenOutput
            | Command::TellEntitled { .. }
            | Command::AskToTakeOver
            | Command::Resume => self.broken(Violation::Undone(self.name(host), format!("{command:?}"))),
        }
    }

    fn secondary_stops(&mut self, host: usize, reason: StopReason) {
        self.check_superseded(host, reason);
        let has_failed = self.follower(host).is_some_and(|follower| follower.has_failed);
        let (occurrence, death) = match reason {
            StopReason::NotEntitled => (Some(Occurrence::NotEntitled), Death::Unentitled),
            StopReason::NothingHeld => (Some(Occurrence::NothingHeld), Death::Unentitled),
            // It was a fault that made it fail.
            StopReason::Failed if has_failed => (None, Death::Crashed),
            StopReason::Superseded => (Some(Occurrence::SecondaryLoses), Death::Stopped),
            StopReason::Failed | StopReason::HandedOver | StopReason::NotNamed => (None, Death::Stopped),
        };
        if let Some(occurrence) = occurrence {
            self.coverage.note(occurrence);
        }
        self.end_process(host, death, true);
    }

    fn take_over(&mut self, host: usize, from: Epoch) {
        let Some(follower) = self.follower(host) else { return };
        if follower.is_unready {
            return self.end_process(host, Death::Stopped, true);
        }
        let (parting, unreleased) = (follower.parting, std::mem::take(&mut follower.unreleased));
        let (connection, Some(mut held)) = (follower.connection, follower.held) else { return };
        if let Some(execution) = follower.execution.take() {
            let is_run_out = execution.waiting.is_empty() && execution.state == held.state;
            held.state = execution.state;
            self.coverage.note(Occurrence::TakeOverExecuted);
            let may_differ = matches!(self.mutation, Some(Mutation::DoNotRunOut | Mutation::DivergedGoesOn));
            if !is_run_out && !may_differ {
                return self.broken(Violation::Differs(self.name(host)));
            }
        }
        let primary = self.network.end(connection, Side::Primary).process;
        if held.epoch != from && self.mutation != Some(Mutation::AcknowledgeUnheld) {
            return self.broken(Violation::Undone(self.name(host), format!("a takeover from epoch {from}")));
        }
        if parting == Some(Parting::Ended) {
            return self.broken(Violation::PowerOffUndone(self.name(host)));
        }
        self.coverage.note(match parting {
            Some(Parting::Silent) => Occurrence::TakeOverSilent,
            Some(Parting::HandOver) => Occurrence::TakeOverHandOver,
            Some(Parting::Otherwise | Parting::Ended) | None => Occurrence::TakeOverClosed,
        });
        self.check_consent(host);
        if self.follower(host).is_some_and(|follower| follower.has_broken_disks) {
            return self.broken(Violation::TookWithBrokenDisks(self.name(host)));
        }
        if !self.is_displaced(host) && self.history.take_over(held.state).is_err() {
            return self.broken(Violation::OutputUndone(self.name(host)));
        }
        if self.hosts[host].disks.blocks != self.history.content(held.state) {
            return self.broken(Violation::TookOverOtherDisk(self.name(host)));
        }
        if parting == Some(Parting::Silent) {
            self.history.fence(primary);
        }
        let fed = self.feeds(host, held.state, connection);
        let mut runner = Runner::new(fed, held.epoch);
        if self.mutation != Some(Mutation::DoNotSendAgain) {
            let outputs = unreleased.into_outputs();
            let again = outputs.flat_map(|output| self.history.output_between(output.base, output.state));
            runner.waiting.extend(again.map(|state| Waiting { state, epoch: None, is_released: true }));
        }
        if let Some(process) = &mut self.hosts[host].process {
            process.body = Body::Running(Box::new(runner));
        }
        self.located = host;
        let position = self.history.position(fed);
        self.plug(host, Some(position));
        self.lets_out(host);
        let waiting = self.runner(host).map(|runner| runner.waiting.clone()).unwrap_or_default();
        if !self.history.all_has_left(held.state, |state| waiting.iter().any(|waiting| waiting.state == state)) {
            self.broken(Violation::OutputLost(self.name(host)));
        }
        let restored = self.random.between(100, 5000) * MICROSECOND;
        self.start_timer(host, restored, Timer::Guest);
        self.moment(Moment::TakenOver);
    }
}
