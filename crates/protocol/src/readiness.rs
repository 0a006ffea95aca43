//! [`ReadyStep`]: what a secondary does before it asks for its VM.

use super::{Event, LossReason};

/// What a secondary does, one after the other, so that nothing is left to fail once it has won ([`super::Command::GetReady`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyStep {
    /// It brings to its disks what was received for them, as their guest wants it.
    WriteDisks,
    /// It executes what was received of the log to its end, and brings to its disks what comes of that.
    ExecuteLog,
    /// It makes the VM of what is held, and sees whether its network ends can be reached.
    MakeVm,
}

/// How a step has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// As it should.
    Done,
    /// It cannot be done now, and perhaps later. The primary was told: one that was suspected for nothing goes on at once.
    NotNow,
    /// It can never be done here, for this reason. The primary was told.
    Failed(LossReason),
    /// The guest is off by the end of the log: there is nothing to take over.
    GuestOff,
}

/// What follows a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Another one.
    Next(ReadyStep),
    /// The replica is told so.
    Over(Event),
    /// The replica ends.
    GuestOff,
}

impl ReadyStep {
    /// The first one.
    pub const FIRST: Self = Self::WriteDisks;

    /// What follows when this step has ended so.
    pub fn after(self, end: StepEnd) -> Readiness {
        match end {
            StepEnd::Done => match self {
                // What the log does to disks comes after what was received before it.
                Self::WriteDisks => Readiness::Next(Self::ExecuteLog),
                // The VM is made of the state at the log's end.
                Self::ExecuteLog => Readiness::Next(Self::MakeVm),
                Self::MakeVm => Readiness::Over(Event::Ready),
            },
            StepEnd::NotNow => Readiness::Over(Event::NotReady),
            StepEnd::Failed(reason) => Readiness::Over(Event::PeerLost { reason }),
            StepEnd::GuestOff => Readiness::GuestOff,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_could_fail_is_done_before_a_secondary_says_that_it_is_ready() {
        let mut step = ReadyStep::FIRST;
        let mut steps = vec![step];
        while let Readiness::Next(next) = step.after(StepEnd::Done) {
            step = next;
            steps.push(step);
        }
        assert_eq!(steps, [ReadyStep::WriteDisks, ReadyStep::ExecuteLog, ReadyStep::MakeVm]);
        assert_eq!(step.after(StepEnd::Done), Readiness::Over(Event::Ready));
    }

    #[test]
    fn whoever_could_not_run_the_vm_does_not_ask_for_it() {
        for step in [ReadyStep::WriteDisks, ReadyStep::ExecuteLog, ReadyStep::MakeVm] {
            assert_eq!(step.after(StepEnd::NotNow), Readiness::Over(Event::NotReady));
            let lost = Event::PeerLost { reason: LossReason::Diverged };
            assert_eq!(step.after(StepEnd::Failed(LossReason::Diverged)), Readiness::Over(lost));
            assert_eq!(step.after(StepEnd::GuestOff), Readiness::GuestOff);
        }
    }
}
