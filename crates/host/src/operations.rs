//! Operations: what administrators ask for that happens once, such as a start or a hand-over. Whoever is asked writes it into the VM's record and
//! waits; the controller decides the steps, which are carried out here, in the VM's owner.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use api::events::EventKind;
use api::status::ProtectionState;
use cluster::controller::{Outcome, Step};
use cluster::records::{Operation, OperationKind, OperationResult};
use machine::bus::lock;
use spec::{HostName, VmName};

use super::daemon::Daemon;
use super::error::{HostError, Kind};
use super::registry::KnownVm;
use super::replicas::Replica;
use crate::replica::control::{Request, UnprotectReason};

/// How often it is looked whether an operation has begun.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How often the store is asked about it: another host may have gone on with it.
const STORE_INTERVAL: Duration = Duration::from_millis(300);
/// How long a replica may take to answer a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How this daemon's last attempts at a step of an operation have ended, by VM.
#[derive(Default)]
pub struct Attempts(Mutex<BTreeMap<String, (u64, Attempt)>>);

/// How an attempt has ended.
#[derive(Clone, Debug)]
enum Attempt {
    Done,
    /// It is for good: the operation has failed.
    Refused(HostError),
    /// It is made again.
    Hindered(HostError),
}

impl Attempts {
    fn note(&self, vm: &str, operation: u64, attempt: Attempt) {
        lock(&self.0).insert(vm.to_owned(), (operation, attempt));
    }

    /// A VM that was made anew under the name of another one counts its operations from the beginning.
    fn forget(&self, vm: &str) {
        lock(&self.0).remove(vm);
    }

    fn last(&self, vm: &str, operation: u64) -> Option<Attempt> {
        lock(&self.0).get(vm).filter(|(id, _)| *id == operation).map(|(_, attempt)| attempt.clone())
    }
}

impl Daemon {
    /// Writes down what somebody asks for, for the VM's owner. Answers the operation's number, to be waited for by somebody else: the owner is who
    /// carries it out.
    pub(super) fn ask(&self, vm: &KnownVm, kind: OperationKind, host: Option<HostName>) -> Result<u64, HostError> {
        self.attempts.forget(&vm.name);
        let mut id = 0;
        self.registry.update(&vm.name, |record| id = record.ask(kind.clone(), host.clone(), vm.claim.generation))?;
        self.events.note(EventKind::Asked, Some(&vm.name), format!("{kind} was asked for (operation {id})"));
        Ok(id)
    }

    /// Refuses what has to wait for something else that was asked of the VM.
    pub(super) fn refuse_if_hindered(vm: &KnownVm, kind: &OperationKind) -> Result<(), HostError> {
        refuse_beside(vm, vm.record.hinders(kind))
    }

    /// Refuses what would take a VM away from under something that was asked of it and has not been done.
    pub(super) fn refuse_if_under_way(vm: &KnownVm) -> Result<(), HostError> {
        refuse_beside(vm, vm.record.pending())
    }

    /// Waits until the first step of an operation is done, which most have no other than. Not to be called by the VM's owner.
    pub(super) fn wait_for_operation(&self, vm: &str, id: u64, patience: Duration) -> Result<(), HostError> {
        let started = Instant::now();
        let mut asked = Instant::now();
        loop {
            let hindered = match self.attempts.last(vm, id) {
                Some(Attempt::Done) => return Ok(()),
                Some(Attempt::Refused(error)) => return Err(error),
                Some(Attempt::Hindered(error)) => Some(error),
                None => None,
            };
            if asked.elapsed() > STORE_INTERVAL {
                asked = Instant::now();
                // Where the store does not answer, the operation waits too.
                if let Ok(known) = self.registry.vm(vm)
                    && let Some(ended) = ended(vm, id, known.and_then(|known| known.record.operation))
                {
                    return ended;
                }
            }
            if started.elapsed() > patience {
                let waiting = lock(&self.undone).waiting(vm).map(ToString::to_string);
                let why = hindered.map(|error| error.problem.error).or(waiting);
                let why = why.unwrap_or_else(|| "it does not say why".to_owned());
                return Err(HostError::unreachable(format!("VM {vm}: this has not been done yet: {why}"))
                    .hint(format!("it goes on trying: see `twinvm vm show {vm}`")));
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Carries out a step of an operation, for the VM's owner, unless another operation was asked for since it was decided.
    pub(super) fn take_step(
        self: &Arc<Self>,
        vm: &VmName,
        id: u64,
        step: &Step,
        is_last: bool,
    ) -> Result<Outcome, HostError> {
        self.settle_gone(vm);
        let known = self.known(vm)?;
        let Some(operation) = known.record.pending_as(id).cloned() else {
            return Ok(Outcome::NotWanted);
        };
        let done = self.do_step(&known, &operation, step);
        match done {
            Err(error) if error.kind == Kind::Unreachable => {
                self.attempts.note(vm, id, Attempt::Hindered(error.clone()));
                return Err(error);
            }
            Err(error) => {
                self.note_result(vm, id, &OperationResult::Failed { why: error.to_string() })?;
                self.attempts.note(vm, id, Attempt::Refused(error));
                return Ok(Outcome::NotWanted);
            }
            Ok(()) => {}
        }
        self.attempts.note(vm, id, Attempt::Done);
        if is_last {
            self.note_result(vm, id, &OperationResult::Done)?;
        }
        Ok(Outcome::Done)
    }

    /// Writes down how an operation has ended.
    pub(super) fn note_result(&self, vm: &str, id: u64, result: &OperationResult) -> Result<(), HostError> {
        let mut ended = None;
        self.registry.update(vm, |record| {
            ended = record.pending_as(id).map(|operation| operation.kind.clone());
            record.end(id, result.clone());
        })?;
        if let Some(kind) = ended {
            let (event, text) = match result {
                OperationResult::Done => (EventKind::Done, format!("{kind} is done (operation {id})")),
                OperationResult::Failed { why } => {
                    (EventKind::Failed, format!("{kind} has failed (operation {id}): {why}"))
                }
            };
            self.events.note(event, Some(vm), text);
        }
        Ok(())
    }

    fn do_step(self: &Arc<Self>, vm: &KnownVm, operation: &Operation, step: &Step) -> Result<(), HostError> {
        match step {
            Step::Start { from_stale_disks, snapshot } => self.start_here(vm, *from_stale_disks, snapshot.clone()),
            Step::PressPowerButton => self.press_power_button(&vm.name),
            Step::PullPlug => self.pull_plug(vm),
            Step::SwitchOver => {
                if let OperationKind::Migrate { to } = &operation.kind {
                    return self.hand_over_to(vm, to);
                }
                self.protected_as(vm, operation)?.ask(&Request::Switchover, REQUEST_TIMEOUT)?;
                Ok(())
            }
            Step::KillPrimary => {
                let replica = self.protected_as(vm, operation)?;
                // The answer is that there is none: the process is gone.
                let _ = replica.ask(&Request::Kill, REQUEST_TIMEOUT);
                if !replica.wait(REQUEST_TIMEOUT) {
                    replica.process().kill();
                }
                Ok(())
            }
            Step::RestartSecondary => {
                let replica = self.replica(&vm.name).filter(|replica| replica.is_primary());
                self.let_go(&vm.name, replica.as_deref(), UnprotectReason::Restart)
            }
            Step::ChangeMode { mode } => self.change_mode(vm, *mode),
            Step::RemoveCopies => self.remove_copies(vm),
        }
    }

    /// The primary of a VM that survives its end, in the generation that an operation is about: it must not end what came of that.
    fn protected_as(&self, vm: &KnownVm, operation: &Operation) -> Result<Arc<Replica>, HostError> {
        let replica = self.replica(&vm.name).filter(|replica| replica.is_primary());
        let replica = replica.ok_or_else(|| HostError::refused(format!("VM {} does not run any more", vm.name)))?;
        let status = replica.ask(&Request::Status, REQUEST_TIMEOUT)?;
        if !self.scene(vm).may_go_over(operation, status.protection.state == ProtectionState::Protected) {
            return Err(HostError::refused(format!("the replicas of VM {} have changed meanwhile", vm.name)));
        }
        Ok(replica)
    }
}

/// How an operation of a VM has ended, by what the store says last of it; nothing if it has not.
fn ended(vm: &str, id: u64, found: Option<Operation>) -> Option<Result<(), HostError>> {
    let Some(found) = found else {
        return Some(Err(HostError::not_found(format!("VM {vm} was removed meanwhile"))));
    };
    if found.id != id {
        let kind = found.kind.label();
        return Some(Err(HostError::refused(format!("something else was asked of VM {vm} meanwhile: {kind}"))));
    }
    Some(match found.result? {
        OperationResult::Done => Ok(()),
        OperationResult::Failed { why } => Err(HostError::refused(format!("VM {vm}: {why}"))),
    })
}

/// Refuses what cannot be done beside this operation, if there is one.
fn refuse_beside(vm: &KnownVm, pending: Option<&Operation>) -> Result<(), HostError> {
    let Some(pending) = pending else { return Ok(()) };
    let name = &vm.name;
    Err(HostError::refused(format!("VM {name}: {} is under way", pending.kind.label()))
        .hint(format!("wait until `twinvm vm show {name}` says that it is done")))
}

#[cfg(test)]
mod tests {
    use cluster::records::UnknownFields;
    use protocol::Generation;

    use super::*;

    fn operation(result: Option<OperationResult>) -> Operation {
        let (kind, generation) = (OperationKind::Stop { force: true }, Generation::new(1));
        Operation { id: 7, kind, host: None, generation, has_begun: false, result, unknown: UnknownFields::default() }
    }

    #[test]
    fn whoever_waits_learns_how_it_has_ended_wherever_that_was() {
        assert!(ended("v", 7, Some(operation(None))).is_none());
        assert!(matches!(ended("v", 7, Some(operation(Some(OperationResult::Done)))), Some(Ok(()))));
        let text = |id, found| ended("v", id, found).and_then(Result::err).map(|error| error.to_string());
        let failed = operation(Some(OperationResult::Failed { why: "it is full".to_owned() }));
        assert_eq!(text(7, Some(failed)).unwrap(), "VM v: it is full");
        assert_eq!(text(6, Some(operation(None))).unwrap(), "something else was asked of VM v meanwhile: stop");
        assert!(text(7, None).unwrap().contains("was removed"));
    }

    #[test]
    fn an_attempt_at_another_operation_says_nothing_about_this_one() {
        let attempts = Attempts::default();
        attempts.note("v", 1, Attempt::Done);
        assert!(attempts.last("v", 2).is_none() && attempts.last("w", 1).is_none());
        assert!(matches!(attempts.last("v", 1), Some(Attempt::Done)));
        attempts.forget("v");
        assert!(attempts.last("v", 1).is_none(), "the first of another VM of that name");
    }
}
