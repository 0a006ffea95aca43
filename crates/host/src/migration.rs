//! Moves of VMs that run to other hosts: what administrators ask for, and the steps that are this operation's alone. What is decided about them is the
//! controller's.

use std::sync::Arc;
use std::time::Duration;

use api::messages::{MigrateVm, VmView};
use api::status::ProtectionState;
use cluster::controller::consent::may_hand_over;
use cluster::controller::{Action, Idle, Outcome};
use cluster::records::{ClusterError, OperationKind, OperationResult};
use machine::bus::lock;
use spec::{HostName, VmName};

use super::daemon::Daemon;
use super::error::{HostError, Kind};
use super::protection::Removed;
use super::registry::KnownVm;
use crate::replica::control::Request;

/// How long a replica may take to answer a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Why a migration has failed that somebody has cancelled.
const CANCELLED: &str = "it was cancelled";

impl Daemon {
    /// Writes down that a VM is to move to another host. It has begun when this returns; the view shows how it goes on.
    pub fn migrate_vm(self: &Arc<Self>, name: &str, how: &MigrateVm) -> Result<VmView, HostError> {
        let (vm, how) = (name.to_owned(), how.clone());
        self.owned(name, move |daemon| daemon.begin_migration(&vm, &how))?;
        self.vm(name)
    }

    fn begin_migration(&self, name: &str, how: &MigrateVm) -> Result<(), HostError> {
        self.settle_gone(name);
        let vm = self.known(name)?;
        self.require_home(&vm)?;
        self.refuse_if_stopping()?;
        if self.replica(name).is_none_or(|replica| !replica.is_primary()) {
            return Err(HostError::refused(format!("VM {name} is off, and only a VM that runs can be moved")).hint(
                format!(
                    "start it with `twinvm vm start {name}`, move it, and stop it on its new host if it is to be off"
                ),
            ));
        }
        let to = self.target_of(&vm, how)?;
        let kind = OperationKind::Migrate { to: to.clone() };
        Self::refuse_if_hindered(&vm, &kind)?;
        // Somebody asks for a new attempt.
        lock(&self.controller).hurry(&vm.record.name);
        if vm.record.migrates_to(&vm.claim) == Some(&to) {
            return Ok(());
        }
        self.ask(&vm, kind, None)?;
        Ok(())
    }

    /// The host that a VM is to move to; refused with the reasons if it cannot.
    fn target_of(&self, vm: &KnownVm, how: &MigrateVm) -> Result<HostName, HostError> {
        let name = &vm.name;
        let secondary = vm.claim.secondary.as_ref().map(ToString::to_string);
        let refused = |why: String| {
            HostError::refused(format!("VM {name} cannot be moved: {why}"))
                .hint("see the hosts with `twinvm host list`")
        };
        let Some(to) = how.host.as_ref().or(secondary.as_ref()) else {
            if vm.record.ft.is_wanted() {
                return Err(HostError::refused(format!("VM {name} has no secondary yet to move to"))
                    .hint(format!("wait until `twinvm ft status {name}` says Protected, or name a host")));
            }
            return self.plan_secondary(name, false)?.map_err(refused);
        };
        let to: HostName = to.parse().map_err(ClusterError::from)?;
        if to.is(&vm.claim.primary) {
            return Err(HostError::refused(format!("VM {name} runs on host {to} already")));
        }
        self.registry.cluster().host(&to)?;
        if let Some(secondary) = secondary.filter(|secondary| *secondary != *to && !how.interrupt_ft) {
            return Err(HostError::refused(format!(
                "VM {name} has its secondary on host {secondary}, and would be without one while it is copied to host {to}"
            ))
            .hint(format!(
                "`twinvm vm migrate {name} {secondary}` moves it without that, and --interrupt-ft allows it for host {to}"
            )));
        }
        let failures = lock(&self.controller).failures().clone();
        let processor = self.replica(name).and_then(|replica| replica.processor());
        self.registry.may_hold_secondary(name, &to, processor.as_ref(), &failures)?.map_err(refused)?;
        Ok(to)
    }

    /// The VM stays where it is, unless it was handed over just now.
    pub fn cancel_migration(self: &Arc<Self>, name: &str) -> Result<VmView, HostError> {
        let vm = name.to_owned();
        let is_protected = self.owned(name, move |daemon| {
            let known = daemon.known(&vm)?;
            daemon.require_home(&known)?;
            let pending = known.record.pending().filter(|it| matches!(it.kind, OperationKind::Migrate { .. }));
            let Some(id) = pending.map(|pending| pending.id) else {
                return Err(HostError::refused(format!("VM {vm} is not being moved"))
                    .hint(format!("see `twinvm vm show {vm}`")));
            };
            daemon.note_result(&vm, id, &OperationResult::Failed { why: CANCELLED.to_owned() })?;
            Ok(known.record.ft.enabled)
        })?;
        if !is_protected {
            self.wait_until_alone(name, &Idle::Disabled)?;
            self.remove_copies(&self.known(name)?)?;
        }
        self.vm(name)
    }

    /// This host is in maintenance, and the controller has found a host for a VM. For its owner.
    pub(super) fn ask_for_move(&self, vm: &VmName, to: &HostName) -> Result<Outcome, HostError> {
        let known = self.known(vm)?;
        if !self.still_wants(&known, &Action::Move { to: to.clone() }) {
            return Ok(Outcome::NotWanted);
        }
        self.ask(&known, OperationKind::Migrate { to: to.clone() }, None)?;
        Ok(Outcome::Done)
    }

    /// Has the primary here hand the VM over to its secondary on the host that it moves to. Whatever stands in the way may have passed a moment later, as when
    /// that has just taken over.
    pub(super) fn hand_over_to(&self, vm: &KnownVm, to: &HostName) -> Result<(), HostError> {
        let name = &vm.name;
        let passing = |error: HostError| HostError { kind: Kind::Unreachable, ..error };
        let changed = || HostError::unreachable(format!("the replicas of VM {name} have changed meanwhile"));
        let replica = self.replica(name).filter(|replica| replica.is_primary()).ok_or_else(changed)?;
        let ask = |request| replica.ask(request, REQUEST_TIMEOUT).map_err(|error| passing(error.into()));
        let status = ask(&Request::Status)?;
        let is_protected = status.protection.state == ProtectionState::Protected;
        if !may_hand_over(is_protected, status.peer.as_deref(), to) {
            return Err(changed());
        }
        ask(&Request::Switchover).map(drop)
    }

    /// Has other hosts remove what they have of a VM's disks: the claim says that those here are the newest. Each host looks at it once more.
    pub(super) fn remove_copies(&self, vm: &KnownVm) -> Result<(), HostError> {
        if !self.scene(vm).may_remove_copies() {
            return Ok(());
        }
        self.drop_secondaries(vm, Removed::Copies)
    }

    /// Writes down how an operation has ended, for the VM's owner. What a migration that has failed has copied is of no use any more.
    pub(super) fn end_operation(&self, vm: &VmName, id: u64, result: &OperationResult) -> Result<Outcome, HostError> {
        self.note_result(vm, id, result)?;
        let known = self.known(vm)?;
        if let OperationResult::Failed { .. } = result {
            let was_migration = |kind: &OperationKind| matches!(kind, OperationKind::Migrate { .. });
            if known.record.operation.as_ref().is_some_and(|it| it.id == id && was_migration(&it.kind)) {
                self.remove_copies(&known)?;
            }
        }
        Ok(Outcome::Done)
    }
}
