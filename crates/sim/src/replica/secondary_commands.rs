//! The commands of a secondary, carried out: what [`protocol::Replica`] wants done in that role.

use protocol::{Claim, Command, Epoch, Event, RETRY_INTERVAL, StopReason, Verdict};

use crate::coverage::Occurrence;
use crate::faults::Moment;
use crate::mutation::Mutation;
use crate::network::Side;
use crate::process::{Body, Parting, Runner, Timer, Waiting};
use crate::store::Request;
use crate::time::{MICROSECOND, nanoseconds};
use crate::violation::Violation;
use crate::world::{Death, World};

impl World {
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
                    follower.ack.holds(epoch);
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
