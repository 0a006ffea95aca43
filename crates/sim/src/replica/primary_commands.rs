//! The commands of a primary, carried out: what [`protocol::Replica`] wants done in that role, and what its user asks of it.

use protocol::{Claim, Command, DropReason, Epoch, Event, Generation, RETRY_INTERVAL, Reason, StopReason, Verdict};

use crate::coverage::Occurrence;
use crate::faults::Moment;
use crate::mutation::Mutation;
use crate::network::{ConnectionId, Message};
use crate::process::{Body, ProcessId, Timer};
use crate::store::Request;
use crate::time::nanoseconds;
use crate::violation::Violation;
use crate::world::{Death, World};

impl World {
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
                    (runner.is_handing_over, runner.has_asked) = (true, true);
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

    pub fn unprotect(&mut self, host: usize, reason: DropReason) {
        self.primary_event(host, None, Event::DropSecondary { reason });
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
    pub fn notes_hand_over_late(&mut self, host: usize, epoch: Epoch) -> bool {
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
