//! Fault tolerance of the VMs that run here: what administrators ask for.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use api::client::Target;
use api::messages::{DropSecondary, FtAction, FtOptions, FtPrice, VmView};
use api::status::ProtectionState;
use axum::http::Method;
use cluster::controller::Idle;
use cluster::controller::consent::{LetGo, let_go};
use cluster::records::{ClusterError, Operation, OperationKind};
use machine::bus::lock;
use spec::{EngineKind, FtMode, HostName};
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::error::HostError;
use super::registry::KnownVm;
use super::replicas::Replica;
use crate::replica::control::{Request, UnprotectReason};

/// How long a replica may take to answer a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take until what is asked for has begun: the primary may be busy, and the secondary let go.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a primary may take to let its secondary go.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the store is asked whether a secondary takes a VM over.
const DECIDED_INTERVAL: Duration = Duration::from_millis(100);
/// How long another host may take to end a secondary.
const DROP_TIMEOUT: Duration = Duration::from_secs(15);

/// What another host removes of a VM that it holds no secondary of any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removed {
    /// Nothing: another first copy would take its time.
    Nothing,
    /// Its copies of disks.
    Copies,
    /// Snapshots too: the VM is removed.
    Everything,
}

impl Daemon {
    pub(super) fn drop_secondary_at(&self, target: &Target, vm: &KnownVm, removed: Removed) {
        let (created_unix_ms, vm) = (vm.record.created_unix_ms, &vm.name);
        let path = format!("/v1/secondaries/{vm}");
        let drop = DropSecondary {
            remove_disks: removed != Removed::Nothing,
            remove_snapshots: removed == Removed::Everything,
            created_unix_ms: Some(created_unix_ms),
        };
        let dropped: Result<serde_json::Value, _> =
            self.wait_for(self.client().call(target, Method::DELETE, &path, Some(&drop), DROP_TIMEOUT));
        if let Err(error) = dropped {
            tracing::warn!("VM {vm}: its secondary at host {} was not ended: {error}", target.host);
        }
    }

    /// Ends the secondary wherever one may be.
    pub(super) fn drop_secondaries(&self, vm: &KnownVm, removed: Removed) -> Result<(), HostError> {
        for target in self.registry.alive_hosts()?.iter().filter(|target| target.host != self.host()) {
            self.drop_secondary_at(target, vm, removed);
        }
        Ok(())
    }

    /// The host that would hold the secondary of a VM, or that it would be moved to if it is not to be `protected`; or why there is none.
    pub(super) fn plan_secondary(&self, vm: &str, protected: bool) -> Result<Result<HostName, String>, HostError> {
        let failures = lock(&self.controller).failures().clone();
        let processor = self.replica(vm).and_then(|replica| replica.processor());
        self.registry.plan_secondary(vm, protected, processor.as_ref(), &failures)
    }

    /// What protection of a VM costs.
    pub fn ft_price(&self, vm: &str) -> Result<FtPrice, HostError> {
        let vm = self.known(vm)?;
        let contents = self.vm_folder(&vm.name).contents();
        let (secondary, obstacle) = match self.plan_secondary(&vm.name, true)? {
            Ok(host) => (Some(host.to_string()), None),
            Err(obstacle) => (None, Some(obstacle)),
        };
        Ok(FtPrice {
            primary: vm.home().to_owned(),
            vm: vm.name,
            secondary,
            obstacle,
            memory_bytes: vm.spec.memory.bytes(),
            cpus: vm.spec.cpus,
            disk_bytes: contents.map_or(0, |contents| contents.disk_bytes.iter().sum()),
        })
    }

    /// Does what an administrator asks for. A VM that is to go without a secondary has none any more when this returns; the rest has begun, and
    /// the view shows how it goes on.
    pub fn ft(self: &Arc<Self>, name: &str, action: FtAction, options: FtOptions) -> Result<VmView, HostError> {
        if let Some(mode) = mode_of(action, options)? {
            let vm = name.to_owned();
            if let Some(id) = self.owned(name, move |daemon| daemon.begin_mode(&vm, action, mode))? {
                self.wait_for_operation(name, id, OPERATION_TIMEOUT)?;
            }
        }
        let vm = name.to_owned();
        if let Some(id) = self.owned(name, move |daemon| daemon.begin_ft(&vm, action))? {
            self.wait_for_operation(name, id, OPERATION_TIMEOUT)?;
        }
        match action {
            FtAction::Off => {
                self.wait_until_alone(name, &Idle::Disabled)?;
                self.drop_secondaries(&self.known(name)?, Removed::Copies)?;
            }
            FtAction::Suspend => self.wait_until_alone(name, &Idle::Suspended)?,
            _ => {}
        }
        self.vm(name)
    }

    /// Writes down what is wanted, which the controller sees to. Answers the number of the operation, if what is asked for is no state but happens once.
    pub(super) fn begin_ft(&self, name: &str, action: FtAction) -> Result<Option<u64>, HostError> {
        let vm = self.known(name)?;
        let replica = self.replica(name).filter(|replica| replica.is_primary());
        self.admit_ft(&vm, action)?;
        let mut id = None;
        match action {
            FtAction::On | FtAction::Resume => self.want(&vm, true, false)?,
            FtAction::Mode => {}
            FtAction::Suspend => self.want(&vm, true, true)?,
            FtAction::Off => self.want(&vm, false, false)?,
            FtAction::RestartSecondary | FtAction::Failover | FtAction::Switchover => {
                id = Some(self.ask(&vm, operation(&vm, replica.as_deref(), action)?, None)?);
            }
        }
        lock(&self.controller).hurry(&vm.record.name);
        Ok(id)
    }

    /// Writes down that a VM is to be protected in another mode, if it is another one. Answers the operation's number.
    pub(super) fn begin_mode(&self, name: &str, action: FtAction, mode: FtMode) -> Result<Option<u64>, HostError> {
        let vm = self.known(name)?;
        let status = self.replica(name).filter(|replica| replica.is_primary()).and_then(|replica| replica.status());
        self.admit_ft(&vm, action)?;
        self.refuse_mode(&vm, status.as_ref().map(|status| status.engine), mode)?;
        let changes = |pending: &Operation| matches!(pending.kind, OperationKind::ChangeMode { .. });
        let runs_otherwise = status.and_then(|status| status.mode).is_some_and(|now| now != mode);
        if vm.record.ft.mode == mode && !runs_otherwise && !vm.record.pending().is_some_and(changes) {
            return Ok(None);
        }
        let kind = OperationKind::ChangeMode { mode };
        Self::refuse_if_hindered(&vm, &kind)?;
        lock(&self.controller).hurry(&vm.record.name);
        self.ask(&vm, kind, None).map(Some)
    }

    /// Refuses what makes no sense for the VM as it is.
    fn admit_ft(&self, vm: &KnownVm, action: FtAction) -> Result<(), HostError> {
        let name = &vm.name;
        self.require_home(vm)?;
        if !vm.record.ft.enabled && !matches!(action, FtAction::On | FtAction::Off | FtAction::Mode) {
            return Err(HostError::refused(format!("fault tolerance of VM {name} is off"))
                .hint(format!("turn it on with `twinvm ft on {name}`")));
        }
        if let (Some(to), FtAction::Off | FtAction::Suspend | FtAction::RestartSecondary) =
            (vm.record.migrates_to(&vm.claim), action)
        {
            return Err(HostError::refused(format!("VM {name} is being moved to host {to}"))
                .hint(format!("wait until it is there, or cancel it with `twinvm vm migrate {name} --cancel`")));
        }
        if action == FtAction::On
            && !vm.record.ft.enabled
            && let Err(obstacle) = self.plan_secondary(name, true)?
        {
            return Err(HostError::refused(format!("no host can take the secondary of VM {name}: {obstacle}"))
                .hint("see the hosts with `twinvm host list`"));
        }
        Ok(())
    }

    /// Waits until the primary here has no secondary, as the controller says by having nothing else to do. Where there is no primary: until it is
    /// decided that no secondary takes the VM over, if it is to go without one for good.
    pub(super) fn wait_until_alone(&self, name: &str, wanted: &Idle) -> Result<(), HostError> {
        let deadline = Instant::now() + LET_GO_TIMEOUT;
        loop {
            let Some(replica) = self.replica(name).filter(|replica| replica.is_primary()) else {
                if *wanted != Idle::Disabled || self.is_decided(name, deadline)? {
                    return Ok(());
                }
                continue;
            };
            let has_peer = replica.status().is_some_and(|status| status.peer.is_some());
            let idle = lock(&self.undone).idle(name).cloned();
            match &idle {
                Some(idle) if idle == wanted => return Ok(()),
                // A host prepares a secondary that the primary will not be told of.
                Some(Idle::UnderWay) if !has_peer => return Ok(()),
                _ => {}
            }
            if Instant::now() > deadline {
                let why = idle.map_or_else(|| "it does not say why".to_owned(), |idle| idle.to_string());
                return Err(HostError::refused(format!("VM {name} has not let its secondary go yet: {why}"))
                    .hint(format!("it goes on trying: see `twinvm ft status {name}`")));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether no secondary takes the VM over any more, which does not run here; after a moment, if that is not so.
    fn is_decided(&self, name: &str, deadline: Instant) -> Result<bool, HostError> {
        let vm = self.known(name)?;
        self.require_home(&vm)?;
        let Some(secondary) = vm.claim.secondary else { return Ok(true) };
        if Instant::now() > deadline {
            let idle = lock(&self.undone).idle(name).map(ToString::to_string);
            let why = idle.unwrap_or_else(|| format!("host {secondary} may be about to take it over"));
            return Err(HostError::refused(format!("VM {name} does not run here, and may yet run there: {why}"))
                .hint(format!("it goes on trying: see `twinvm ft status {name}`")));
        }
        thread::sleep(DECIDED_INTERVAL);
        Ok(false)
    }

    /// Refuses a mode that what executes the VM (`running`), or will, does not have.
    fn refuse_mode(&self, vm: &KnownVm, running: Option<EngineKind>, mode: FtMode) -> Result<(), HostError> {
        let (engine, verb) = match running {
            Some(engine) => (engine, "runs"),
            None => (self.engine_of(vm), "would run"),
        };
        if !mode.runs_on(engine) {
            return Err(HostError::refused(format!(
                "lockstep needs the soft engine, and VM {} {verb} on {engine}",
                vm.name
            ))
            .hint("create the VM with `engine = \"soft\"` in its spec, or protect it with `--mode mirror`"));
        }
        Ok(())
    }

    /// Has the primary replicate in another mode, if the VM runs here, and notes that mode; for the VM's owner. If the primary refuses, nothing has changed.
    pub(super) fn change_mode(&self, vm: &KnownVm, mode: FtMode) -> Result<(), HostError> {
        if let Some(replica) = self.replica(&vm.name).filter(|replica| replica.is_primary()) {
            replica.ask(&Request::SetMode { mode }, REQUEST_TIMEOUT).map_err(|error| {
                HostError::refused(format!("the FT mode of VM {} was not changed: {}", vm.name, error_text(&error)))
            })?;
        }
        self.registry.update(&vm.name, |record| record.ft.mode = mode)
    }

    fn want(&self, vm: &KnownVm, enabled: bool, suspended: bool) -> Result<(), HostError> {
        if (vm.record.ft.enabled, vm.record.ft.suspended) == (enabled, suspended) {
            return Ok(());
        }
        self.registry.update(&vm.name, |record| {
            record.want_ft(enabled, suspended, &vm.claim);
        })
    }

    /// Lets the secondary go, at both ends. The primary is told first: the end of the secondary is no loss to it then. The secondary is ended when
    /// the claim does not name it any more: before that it may be about to take over, with the newest disks.
    pub(super) fn let_go(&self, vm: &str, replica: Option<&Replica>, reason: UnprotectReason) -> Result<(), HostError> {
        if let Some(replica) = replica {
            replica.ask(&Request::Unprotect { reason }, REQUEST_TIMEOUT)?;
        }
        let deadline = Instant::now() + LET_GO_TIMEOUT;
        let known = loop {
            let known = self.known(vm)?;
            match let_go(&known.claim, self.registry.host_name()) {
                LetGo::Drop => break known,
                LetGo::TakenOver => {
                    let by = known.home();
                    return Err(
                        HostError::refused(format!("VM {vm} was taken over by host {by} meanwhile")).hint("try again")
                    );
                }
                LetGo::Wait if Instant::now() > deadline => {
                    let secondary = known.claim.secondary.map_or_else(String::new, |secondary| secondary.to_string());
                    return Err(HostError::refused(format!(
                        "it is not decided yet whether host {secondary} takes VM {vm} over"
                    )));
                }
                LetGo::Wait => {}
            }
            thread::sleep(Duration::from_millis(10));
        };
        let removed = if reason == UnprotectReason::Off { Removed::Copies } else { Removed::Nothing };
        self.drop_secondaries(&known, removed)
    }
}

/// The mode that an action is to bring about, if any.
fn mode_of(action: FtAction, options: FtOptions) -> Result<Option<FtMode>, HostError> {
    match (action, options.mode) {
        (FtAction::Mode, None) => Err(HostError::invalid("the body does not say which `mode`, mirror or lockstep")),
        (FtAction::On | FtAction::Mode, mode) => Ok(mode),
        (_, None) => Ok(None),
        (_, Some(_)) => Err(HostError::invalid(format!("`{}` takes no mode", action.label()))),
    }
}

/// What is asked for that happens once, if the VM is as it has to be for it.
fn operation(vm: &KnownVm, replica: Option<&Replica>, action: FtAction) -> Result<OperationKind, HostError> {
    let from = HostName::try_from(vm.home().to_owned()).map_err(ClusterError::from)?;
    if action == FtAction::RestartSecondary {
        running(&vm.name, replica)?;
        if vm.record.ft.suspended {
            return Err(suspended(&vm.name));
        }
        return Ok(OperationKind::RestartSecondary);
    }
    protected(vm, replica)?;
    Ok(if action == FtAction::Failover { OperationKind::Failover { from } } else { OperationKind::Switchover { from } })
}

fn running<'a>(vm: &str, replica: Option<&'a Replica>) -> Result<&'a Replica, HostError> {
    replica.ok_or_else(|| {
        HostError::refused(format!("VM {vm} does not run")).hint(format!("start it with `twinvm vm start {vm}`"))
    })
}

/// Refuses a VM that does not survive the end of its primary.
fn protected(vm: &KnownVm, replica: Option<&Replica>) -> Result<(), HostError> {
    let replica = running(&vm.name, replica)?;
    if vm.record.ft.suspended {
        return Err(suspended(&vm.name));
    }
    // Asked now: what it said last may be out of date.
    let status = replica.ask(&Request::Status, REQUEST_TIMEOUT)?;
    if status.protection.state != ProtectionState::Protected {
        return Err(HostError::refused(format!("VM {}: {}", vm.name, status.protection))
            .hint(format!("wait until `twinvm ft status {}` says Protected", vm.name)));
    }
    Ok(())
}

fn suspended(vm: &str) -> HostError {
    HostError::refused(format!("fault tolerance of VM {vm} is suspended"))
        .hint(format!("resume it with `twinvm ft resume {vm}`"))
}
