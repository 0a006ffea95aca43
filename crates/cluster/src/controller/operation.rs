//! What is done next about an operation that somebody asked for, from what is seen: whatever was done before, by this daemon or by another.

use std::fmt;

use spec::{FtMode, HostName, ReplicaId, SnapshotName};

use super::action::{Action, Outcome, Step, Why};
use super::look::Look;
use super::report::{ReplicaReport, ReplicaState};
use crate::planner::{NoPlace, WhyNot};
use crate::records::{Operation, OperationKind, OperationResult, Power, VmState};

/// Time from a step that could not be done now to the next attempt, in ms.
const RETRY_MS: u64 = 500;
/// How long a hand-over may take until it is asked for again, in ms.
const HAND_OVER_MS: u64 = 10_000;
/// How long the host that a VM is to move to may be out of reach, in ms, and how often it may fail, until the VM stays where it is.
const UNFIT_MS_MAX: u64 = 10_000;
const FAILURES_MAX: u32 = 3;

/// What an operation waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A step of it is being carried out.
    UnderWay,
    /// The host's daemon is about to end.
    HostStopping,
    /// The replica does not say yet what it is.
    Booting,
    /// The guest is shutting down.
    ShuttingDown,
    /// Whether the secondary takes over.
    Takeover {
        /// Its replica.
        by: ReplicaId,
    },
    /// The host that it moves to becomes its secondary's.
    Copying {
        /// That host.
        to: HostName,
    },
    /// The host that it moves to takes it over.
    HandingOver {
        /// That host.
        to: HostName,
    },
    /// The host that it moves to cannot take it just now.
    Target {
        /// That host.
        to: HostName,
        /// Why that host cannot be the target.
        why: WhyNot,
    },
    /// The last attempt could not be made just now.
    RetrySoon {
        /// What stood in its way.
        message: String,
    },
}

/// What is remembered of an operation. When it is forgotten, steps are done again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// A step is being carried out.
    pub(super) is_busy: bool,
    /// The operation whose guest was told to shut down, and since when, in ms.
    told: Option<(u64, u64)>,
    /// The migration whose target could not take the VM when that was asked last, and since when, in ms.
    unfit: Option<(u64, u64)>,
    /// No attempt before this time, and what stood in the way of the last one.
    retry: Option<(u64, String)>,
}

impl Progress {
    /// Takes note of how a step has ended.
    pub(super) fn note(&mut self, action: &Action, outcome: &Outcome, now_ms: u64) {
        self.is_busy = false;
        self.retry = match outcome {
            Outcome::Failed(message) => Some((now_ms.saturating_add(RETRY_MS), message.clone())),
            Outcome::Done | Outcome::NotWanted => None,
        };
        if let (Action::Step { operation, is_last: false, .. }, Outcome::Done) = (action, outcome) {
            self.told = Some((*operation, now_ms));
        }
    }

    /// The next attempt may begin at once.
    pub(super) fn hurry(&mut self) {
        self.retry = None;
    }

    /// Takes note of whether the host that a VM is to move to could not take it.
    pub(super) fn note_target(&mut self, operation: u64, is_unfit: bool, now_ms: u64) {
        let since = self.unfit.filter(|(id, _)| *id == operation).map_or(now_ms, |(_, since_ms)| since_ms);
        self.unfit = is_unfit.then_some((operation, since));
    }

    fn unfit_since(&self, operation: &Operation) -> Option<u64> {
        self.unfit.filter(|(id, _)| *id == operation.id).map(|(_, since_ms)| since_ms)
    }

    fn told_since(&self, operation: &Operation) -> Option<u64> {
        self.told.filter(|(id, _)| *id == operation.id).map(|(_, since_ms)| since_ms)
    }
}

/// What is next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Act(Action, Why),
    Wait(Waiting),
}

/// What the host does next about the operation of a VM; nothing if there is none, or another host has to see to it. `replica` is what runs here.
pub(super) fn next(
    vm: &VmState,
    replica: Option<&ReplicaReport>,
    progress: &Progress,
    look: &Look<'_>,
) -> Option<Next> {
    let (seen, now_ms) = (look.seen, look.basis.now.ms);
    let operation = vm.record.pending()?;
    let is_home = seen.host.is(&vm.claim.claim.primary);
    if operation.host.as_ref().map_or(!is_home, |host| *host != seen.host) {
        return None;
    }
    if progress.is_busy {
        return Some(Next::Wait(Waiting::UnderWay));
    }
    if seen.is_stopping {
        return Some(Next::Wait(Waiting::HostStopping));
    }
    if let Some((_, message)) = progress.retry.as_ref().filter(|(at_ms, _)| now_ms < *at_ms) {
        return Some(Next::Wait(Waiting::RetrySoon { message: message.clone() }));
    }
    // A guest that has powered itself off is noted to be off first.
    if replica.is_none() && is_home && vm.record.power == Power::On && seen.powered_off.contains(&vm.record.name) {
        return Some(Next::Wait(Waiting::UnderWay));
    }
    let processor = replica.and_then(|replica| replica.processor.as_ref());
    let here = Here { vm, operation, replica: replica.map(|replica| &replica.state), is_home };
    Some(match &operation.kind {
        OperationKind::Start { from_stale_disks, snapshot } => here.start(*from_stale_disks, snapshot.as_ref()),
        OperationKind::Stop { force } => here.stop(*force),
        OperationKind::Reboot { force, patience_ms } => here.reboot(*force, *patience_ms, progress, now_ms),
        OperationKind::Switchover { from } => here.go_over(Step::SwitchOver, from),
        OperationKind::Failover { from } => here.go_over(Step::KillPrimary, from),
        OperationKind::RestartSecondary => here.restart_secondary(),
        OperationKind::ChangeMode { mode } => here.change_mode(*mode),
        OperationKind::Migrate { to } => {
            here.migrate(to, progress, now_ms, || look.may_hold_secondary(vm, to, processor))
        }
    })
}

/// The operation, and what is here of its VM.
struct Here<'a> {
    vm: &'a VmState,
    operation: &'a Operation,
    replica: Option<&'a ReplicaState>,
    is_home: bool,
}

impl Here<'_> {
    fn act(&self, step: Step, is_last: bool) -> Next {
        Next::Act(Action::Step { operation: self.operation.id, step, is_last }, Why::Asked)
    }

    fn done(&self) -> Next {
        let result = OperationResult::Done;
        Next::Act(Action::NoteResult { operation: self.operation.id, result }, Why::Over)
    }

    fn failed(&self, why: impl Into<String>) -> Next {
        let result = OperationResult::Failed { why: why.into() };
        Next::Act(Action::NoteResult { operation: self.operation.id, result }, Why::Over)
    }

    /// Whether the claim is another one than when it was asked for, or its start began.
    fn has_moved_on(&self) -> bool {
        self.vm.claim.claim.generation != self.operation.generation
    }

    /// Waits for a secondary that may be about to take over, if there is one.
    fn takeover(&self) -> Option<Next> {
        let by = self.vm.claim.claim.secondary.clone()?;
        Some(Next::Wait(Waiting::Takeover { by }))
    }

    fn start(&self, from_stale_disks: bool, snapshot: Option<&SnapshotName>) -> Next {
        match self.replica {
            Some(ReplicaState::Booting) if self.is_home => return Next::Wait(Waiting::Booting),
            // The daemon that has started it did not come to say so.
            Some(ReplicaState::Alone { .. } | ReplicaState::Syncing { .. } | ReplicaState::Protected { .. })
                if self.is_home =>
            {
                return self.done();
            }
            _ => {}
        }
        if self.has_moved_on() && !self.is_home {
            // Whoever forced it did not know of that.
            return self.failed(format!("host {} has the VM by now", self.vm.claim.claim.primary));
        }
        // It has won the claim before, and this is not the first to try.
        if self.has_moved_on() && self.operation.has_begun {
            if self.vm.record.power == Power::Off {
                return self.failed("it was started, and is off again");
            }
            if snapshot.is_some() {
                // What it has done since would be lost.
                return self.failed("its start from the snapshot was interrupted: whether it has run is not known");
            }
        }
        self.act(Step::Start { from_stale_disks, snapshot: snapshot.cloned() }, true)
    }

    /// The step that ends the guest, or what it waits for; none if nothing runs here.
    fn ending(&self, force: bool) -> Option<Result<Step, Waiting>> {
        Some(match self.replica? {
            // It is taking over.
            ReplicaState::Secondary { .. } => Err(Waiting::Booting),
            // One that says nothing has no power button.
            ReplicaState::Booting if !force => Err(Waiting::Booting),
            _ => Ok(if force { Step::PullPlug } else { Step::PressPowerButton }),
        })
    }

    fn stop(&self, force: bool) -> Next {
        match self.ending(force) {
            Some(Ok(step)) => self.act(step, true),
            Some(Err(waiting)) => Next::Wait(waiting),
            // Whoever takes it over stops it.
            None => self.takeover().unwrap_or_else(|| self.done()),
        }
    }

    fn reboot(&self, force: bool, patience_ms: u64, progress: &Progress, now_ms: u64) -> Next {
        let told_since_ms = progress.told_since(self.operation);
        match (self.ending(force), told_since_ms) {
            (Some(Ok(step)), None) => self.act(step, false),
            (Some(_), Some(since_ms)) if now_ms.saturating_sub(since_ms) >= patience_ms => {
                let (vm, patience_s) = (&self.vm.record.name, patience_ms / 1000);
                self.failed(format!(
                    "it has not shut down within {patience_s} s: its guest may not heed its power button; `twinvm vm reboot --force {vm}` pulls the plug"
                ))
            }
            (Some(_), Some(_)) => Next::Wait(Waiting::ShuttingDown),
            (Some(Err(waiting)), None) => Next::Wait(waiting),
            (None, _) => self
                .takeover()
                .unwrap_or_else(|| self.act(Step::Start { from_stale_disks: false, snapshot: None }, true)),
        }
    }

    /// A hand-over, or what brings about a takeover.
    fn go_over(&self, step: Step, from: &str) -> Next {
        if self.vm.claim.claim.primary.as_str() != from {
            return self.done();
        }
        if self.has_moved_on() {
            return self.failed("the VM's replicas have changed meanwhile");
        }
        match self.replica {
            Some(ReplicaState::Protected { .. }) => self.act(step, true),
            Some(ReplicaState::Booting) => Next::Wait(Waiting::Booting),
            Some(_) => self.failed("the VM is not protected any more"),
            None => self.takeover().unwrap_or_else(|| self.failed("the VM does not run any more")),
        }
    }

    /// The host becomes the secondary's, as the record wants it (see [`VmRecord::wants_secondary`](crate::records::VmRecord::wants_secondary)); then it is
    /// handed the VM; and when the claim says that it has it, copies elsewhere are of no use any more. `fits`: whether it can take the VM.
    fn migrate(&self, to: &HostName, progress: &Progress, now_ms: u64, fits: impl Fn() -> Result<(), NoPlace>) -> Next {
        let has_arrived = to.is(&self.vm.claim.claim.primary);
        let Some(replica) = self.replica else {
            return self.takeover().unwrap_or_else(|| match has_arrived {
                true => self.arrived(),
                false => self.failed("the VM does not run any more"),
            });
        };
        match replica {
            ReplicaState::Booting | ReplicaState::Secondary { .. } => Next::Wait(Waiting::Booting),
            _ if has_arrived => self.arrived(),
            ReplicaState::Protected { by } if by == to => match progress.told_since(self.operation) {
                Some(since_ms) if now_ms.saturating_sub(since_ms) < HAND_OVER_MS => {
                    Next::Wait(Waiting::HandingOver { to: to.clone() })
                }
                _ => self.act(Step::SwitchOver, false),
            },
            ReplicaState::Syncing { to: copied } if copied == to => Next::Wait(Waiting::Copying { to: to.clone() }),
            ReplicaState::Protected { .. } | ReplicaState::Syncing { .. } | ReplicaState::Alone { .. } => {
                match fits() {
                    Ok(()) => Next::Wait(Waiting::Copying { to: to.clone() }),
                    Err(why) => self.cannot_move(to, why, progress, now_ms),
                }
            }
        }
    }

    /// The VM is where it was to go. Older copies of a protected one's disks are kept, for the next first copy to begin from.
    fn arrived(&self) -> Next {
        if self.vm.record.ft.enabled { self.done() } else { self.act(Step::RemoveCopies, true) }
    }

    /// The VM stays where it is, unless its target may be fit again soon.
    fn cannot_move(&self, to: &HostName, why: NoPlace, progress: &Progress, now_ms: u64) -> Next {
        let why = match why {
            NoPlace::Spec(error) => return self.failed(error.to_string()),
            NoPlace::Hosts(refusals) => refusals.into_iter().next().map_or(WhyNot::NotRegistered, |(_, why)| why),
        };
        let is_patient =
            progress.unfit_since(self.operation).is_none_or(|since_ms| now_ms.saturating_sub(since_ms) < UNFIT_MS_MAX);
        let may_pass = match &why {
            WhyNot::LeaseEnded { .. } => is_patient,
            WhyNot::FailedLately { count, .. } => *count < FAILURES_MAX,
            _ => false,
        };
        if may_pass {
            Next::Wait(Waiting::Target { to: to.clone(), why })
        } else {
            self.failed(format!("host {to} {why}"))
        }
    }

    fn restart_secondary(&self) -> Next {
        match self.replica {
            // It was let go, or lost.
            _ if self.has_moved_on() => self.done(),
            Some(ReplicaState::Syncing { .. } | ReplicaState::Protected { .. }) => {
                self.act(Step::RestartSecondary, true)
            }
            Some(ReplicaState::Booting) => Next::Wait(Waiting::Booting),
            Some(ReplicaState::Alone { .. } | ReplicaState::Secondary { .. }) => self.done(),
            None => self.takeover().unwrap_or_else(|| self.failed("the VM does not run any more")),
        }
    }

    /// Only the primary knows whether its secondary can follow it in that mode. Where the VM does not run there is nobody to be asked: a secondary that takes
    /// it over protects it as the record says by then.
    fn change_mode(&self, mode: FtMode) -> Next {
        match self.replica {
            Some(ReplicaState::Booting | ReplicaState::Secondary { .. }) => Next::Wait(Waiting::Booting),
            Some(ReplicaState::Alone { .. } | ReplicaState::Syncing { .. } | ReplicaState::Protected { .. }) | None => {
                self.act(Step::ChangeMode { mode }, true)
            }
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnderWay => f.pad("it is being done"),
            Self::HostStopping => f.pad("the host is being stopped"),
            Self::Booting => f.pad("the replica does not say yet what it is"),
            Self::ShuttingDown => f.pad("the guest is shutting down"),
            Self::Takeover { by } => write!(f, "host {by} may be about to take the VM over"),
            Self::Copying { to } => write!(f, "it is being copied to host {to}"),
            Self::HandingOver { to } => write!(f, "host {to} is about to take it over"),
            Self::Target { to, why } => write!(f, "host {to} {why}"),
            Self::RetrySoon { message } => f.pad(message),
        }
    }
}
