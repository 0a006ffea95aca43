//! A secondary that gets ready to run the VM, as [`protocol::ReadyStep`] has it.

use protocol::{Event, LossReason, Readiness, ReadyStep, StepEnd};

use crate::coverage::Occurrence;
use crate::mutation::Mutation;
use crate::network::{Message, Side};
use crate::world::World;

impl World {
    /// Gets ready to run the VM from what is held.
    pub fn get_ready(&mut self, host: usize) {
        self.ready_step(host, ReadyStep::FIRST);
    }

    fn ready_step(&mut self, host: usize, step: ReadyStep) {
        match step {
            ReadyStep::WriteDisks => {
                let end = self.settles_disks(host);
                self.step_is_over(host, step, end);
            }
            ReadyStep::ExecuteLog => {
                let runs_out = self.mutation != Some(Mutation::DoNotRunOut);
                let Some(follower) = self.follower(host) else { return };
                let waits = follower.execution.as_ref().is_some_and(|execution| !execution.waiting.is_empty());
                if waits && runs_out {
                    follower.is_getting_ready = true;
                    self.coverage.note(Occurrence::RanOut);
                } else {
                    self.log_is_executed(host);
                }
            }
            ReadyStep::MakeVm => {
                let end = self.makes_vm(host);
                self.step_is_over(host, step, end);
            }
        }
    }

    pub fn step_is_over(&mut self, host: usize, step: ReadyStep, end: StepEnd) {
        match step.after(end) {
            Readiness::Next(next) => self.ready_step(host, next),
            // A secondary that is told by its primary that the guest is off ends at once.
            Readiness::GuestOff => {}
            Readiness::Over(event) => {
                let gives_up = self.mutation == Some(Mutation::GiveUpUnready) && event == Event::NotReady;
                let failed = Event::PeerLost { reason: LossReason::Failed };
                self.secondary_event(host, if gives_up { failed } else { event });
            }
        }
    }

    /// There is nothing to execute any more.
    pub fn log_is_executed(&mut self, host: usize) {
        let end = self.settles_disks(host);
        self.step_is_over(host, ReadyStep::ExecuteLog, end);
    }

    /// All that was received for the disk is brought there, with flushes that were put off.
    fn settles_disks(&mut self, host: usize) -> StepEnd {
        let has_broken_disks = self.hosts[host].disks.are_broken(self.now);
        let fails = has_broken_disks && self.mutation != Some(Mutation::RunOnBrokenDisk);
        let Some(follower) = self.follower(host) else { return StepEnd::GuestOff };
        if fails {
            let connection = follower.connection;
            follower.has_failed = true;
            self.coverage.note(Occurrence::SecondaryFailed);
            self.send(connection, Side::Secondary, Message::Failed);
            return StepEnd::Failed(LossReason::Failed);
        }
        follower.has_broken_disks = has_broken_disks;
        if self.mutation != Some(Mutation::AskBeforeFlush) {
            self.hosts[host].disks.settle();
        }
        StepEnd::Done
    }

    /// Could the VM be run here?
    fn makes_vm(&mut self, host: usize) -> StepEnd {
        let is_ready = self.reaches_network(host);
        let claims = self.mutation == Some(Mutation::ClaimUnready);
        let Some(follower) = self.follower(host) else { return StepEnd::GuestOff };
        if is_ready || claims {
            follower.is_unready = !is_ready;
            return StepEnd::Done;
        }
        let connection = follower.connection;
        self.coverage.note(Occurrence::Unready);
        self.send(connection, Side::Secondary, Message::Failed);
        StepEnd::NotNow
    }
}
