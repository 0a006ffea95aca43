//! Fault tolerance of the VMs that run here: what administrators ask for, and the search for a secondary.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::http::Method;
use spec::{EngineKind, FtMode, HostName};

use super::attempts::{Ended, Next};
use super::daemon::Daemon;
use super::registry::KnownVm;
use super::replicas::Replica;
use crate::api::client::Target;
use crate::api::error::ApiError;
use crate::api::messages::{DropSecondary, FtAction, FtOptions, FtPrice, PrepareSecondary, PreparedSecondary, VmView};
use crate::replica::control::{Request, UnprotectReason};
use crate::replica::status::{ProtectionState, ReplicaEnd, ReplicaStatus};

/// How long a replica may take to answer a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long another host may take to prepare a secondary. It may have to fetch a kernel.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long another host may take to end a secondary.
const DROP_TIMEOUT: Duration = Duration::from_secs(15);

impl Daemon {
    /// Looks for a secondary if the primary here should have one and has none.
    pub(super) fn consider_protection(self: &Arc<Self>, replica: &Arc<Replica>, status: &ReplicaStatus) {
        match replica.attempts.observe(status) {
            Next::Wait => {}
            Next::Begin => self.begin_attempt(replica),
            // From now on the claim reserves the secondary's resources.
            Next::Protected => self.reserve(&replica.vm, None),
            Next::Lost { host, message } => {
                tracing::info!("VM {}: host {host} is not its secondary: {}", replica.vm, status.protection);
                if let Some(message) = message {
                    self.registry.note_failure(&replica.vm, &host, &message);
                }
                self.reserve(&replica.vm, None);
            }
        }
    }

    fn begin_attempt(self: &Arc<Self>, replica: &Arc<Replica>) {
        let (daemon, seeker) = (self.clone(), replica.clone());
        let spawned = thread::Builder::new().name(format!("protect {}", replica.vm)).spawn(move || {
            let ended = daemon.find_secondary(&seeker).unwrap_or_else(|text| {
                tracing::debug!("VM {}: no secondary: {text}", seeker.vm);
                Ended::Failed(text)
            });
            seeker.attempts.end(ended);
        });
        if let Err(error) = spawned {
            replica.attempts.end(Ended::Failed(format!("cannot start a thread: {error}")));
        }
    }

    /// Reserves what the secondary needs on the host that is being given its first copy, or nothing any more; the reservation of
    /// a suspended secondary stays.
    pub(super) fn reserve(&self, vm: &str, host: Option<&HostName>) {
        let reserved = self.registry.update(vm, |record| {
            if !record.ft.suspended {
                record.syncing_to = host.cloned();
            }
        });
        // Without the store there is no planning either.
        if let Err(error) = reserved {
            tracing::debug!("VM {vm}: {error}");
        }
    }

    /// One attempt: plans, lets the chosen host prepare, and tells the primary.
    fn find_secondary(&self, replica: &Arc<Replica>) -> Result<Ended, String> {
        let text = |error: ApiError| error.problem.error;
        let vm = self.known(&replica.vm).map_err(text)?;
        if vm.home() != self.host() {
            self.end_if_succeeded(replica, &vm);
            return Ok(Ended::NotWanted);
        }
        if !vm.record.ft.is_wanted() || self.is_stopping() {
            return Ok(Ended::NotWanted);
        }
        let host = self.registry.plan_secondary(&vm.name).map_err(text)??;
        self.reserve(&vm.name, Some(&host));
        let told = self.prepare_at(&vm, replica, &host).and_then(|(target, address)| {
            let told = self.tell_primary(replica, &target, address);
            if !matches!(told, Ok(Ended::Told(_))) {
                let keeps_disks = self.known(&vm.name).is_ok_and(|vm| vm.record.ft.enabled);
                self.drop_secondary_at(&target, &vm.name, !keeps_disks);
            }
            told
        });
        if !matches!(told, Ok(Ended::Told(_))) {
            self.reserve(&vm.name, None);
        }
        told.inspect_err(|error| self.registry.note_failure(&vm.name, &host, error))
    }

    /// Tells the primary of the secondary that waits for it, unless what is wanted has changed while that was prepared.
    fn tell_primary(&self, replica: &Arc<Replica>, target: &Target, address: SocketAddr) -> Result<Ended, String> {
        // Whoever turns protection off meanwhile either finds a primary that was told, or is found here.
        let operation = self.operation(&replica.vm);
        let _locked = operation.lock();
        let is_current = self.replica(&replica.vm).is_some_and(|current| Arc::ptr_eq(&current, replica));
        let vm = self.known(&replica.vm).map_err(|error| error.problem.error)?;
        if !is_current || !vm.record.ft.is_wanted() {
            return Ok(Ended::NotWanted);
        }
        let request = Request::Protect { secondary: target.host.clone(), address, mode: Some(vm.record.ft.mode) };
        replica.ask(&request, REQUEST_TIMEOUT).map_err(|error| format!("{error:#}"))?;
        Ok(Ended::Told(target.host.clone()))
    }

    /// A primary that lost its claim while no secondary bound it, as when its VM was started elsewhere in the belief that this
    /// host was gone, does not notice by itself: it is ended.
    fn end_if_succeeded(&self, replica: &Arc<Replica>, vm: &KnownVm) {
        let operation = self.operation(&vm.name);
        let _locked = operation.lock();
        let is_succeeded = |status: ReplicaStatus| status.generation < vm.claim.generation.number();
        if replica.is_primary() && replica.status().is_some_and(is_succeeded) {
            tracing::warn!("VM {} was started on host {}: its replica here is ended", vm.name, vm.home());
            replica.process().kill();
            let message = format!("the VM was started on host {}", vm.home());
            if let Err(error) = (ReplicaEnd::LostArbitration { message }).leave(&self.folder.vm(&vm.name)) {
                tracing::warn!("VM {}: {error:#}", vm.name);
            }
        }
    }

    /// Lets a host prepare a secondary; where it listens then.
    fn prepare_at(&self, vm: &KnownVm, replica: &Replica, host: &HostName) -> Result<(Target, SocketAddr), String> {
        let target = self.registry.alive_host(host).map_err(|error| error.problem.error)?;
        let target = target.ok_or_else(|| format!("host {host} is not alive any more"))?;
        let contents = self.vm_folder(&vm.name).contents().ok_or("the VM's folder is incomplete on this host")?;
        let prepare = PrepareSecondary {
            primary: self.host().to_owned(),
            generation: vm.claim.generation.number(),
            spec: vm.record.spec.clone(),
            engine: replica.status().ok_or("the replica does not answer")?.engine,
            contents,
        };
        let path = format!("/v1/secondaries/{}", vm.name);
        let prepared: PreparedSecondary = self
            .wait_for(self.client().call(&target, Method::PUT, &path, Some(&prepare), PREPARE_TIMEOUT))
            .map_err(|error| error.to_string())?;
        Ok((target, prepared.address))
    }

    fn drop_secondary_at(&self, target: &Target, vm: &str, remove_disks: bool) {
        let path = format!("/v1/secondaries/{vm}");
        let drop = DropSecondary { remove_disks };
        let dropped: Result<serde_json::Value, _> =
            self.wait_for(self.client().call(target, Method::DELETE, &path, Some(&drop), DROP_TIMEOUT));
        if let Err(error) = dropped {
            tracing::warn!("VM {vm}: its secondary at host {} was not ended: {error}", target.host);
        }
    }

    /// Ends the secondary wherever one may be.
    pub(super) fn drop_secondaries(&self, vm: &str, remove_disks: bool) -> Result<(), ApiError> {
        for target in self.registry.alive_hosts()?.iter().filter(|target| target.host != self.host()) {
            self.drop_secondary_at(target, vm, remove_disks);
        }
        Ok(())
    }

    /// What protection of a VM costs.
    pub fn ft_price(&self, vm: &str) -> Result<FtPrice, ApiError> {
        let vm = self.known(vm)?;
        let contents = self.vm_folder(&vm.name).contents();
        let (secondary, obstacle) = match self.registry.plan_secondary(&vm.name)? {
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

    /// Does what an administrator asks for. Returns when it has begun; the view shows how it goes on.
    pub fn ft(self: &Arc<Self>, name: &str, action: FtAction, options: FtOptions) -> Result<VmView, ApiError> {
        let mode = mode_of(action, options)?;
        let operation = self.operation(name);
        let _locked = operation.lock();
        let vm = self.known(name)?;
        self.require_home(&vm)?;
        let replica = self.replica(name).filter(|replica| replica.is_primary());
        if !vm.record.ft.enabled && !matches!(action, FtAction::On | FtAction::Off | FtAction::Mode) {
            return Err(ApiError::conflict(format!("fault tolerance of VM {name} is off"))
                .hint(format!("turn it on with `twinvm ft on {name}`")));
        }
        if let Some(mode) = mode {
            self.refuse_mode(&vm, replica.as_deref(), mode)?;
        }
        match action {
            FtAction::On => {
                if !vm.record.ft.enabled
                    && let Err(obstacle) = self.registry.plan_secondary(name)?
                {
                    return Err(ApiError::conflict(format!("no host can take the secondary of VM {name}: {obstacle}"))
                        .hint("see the hosts with `twinvm host list`"));
                }
                if let Some(mode) = mode {
                    self.change_mode(&vm, replica.as_deref(), mode)?;
                }
                self.want(&vm, true, false)?;
            }
            FtAction::Mode => {
                if let Some(mode) = mode {
                    self.change_mode(&vm, replica.as_deref(), mode)?;
                }
            }
            FtAction::Resume => self.want(&vm, true, false)?,
            FtAction::Off => {
                self.want(&vm, false, false)?;
                if replica.is_none() && vm.claim.secondary.is_some() {
                    // It may be about to take over: the claim decides.
                    self.registry.claim_alone(&vm)?;
                }
                self.let_go(name, replica.as_deref(), UnprotectReason::Off)?;
            }
            FtAction::Suspend => {
                self.want(&vm, true, true)?;
                self.let_go(name, replica.as_deref(), UnprotectReason::Suspend)?;
            }
            FtAction::RestartSecondary => {
                let replica = running(name, replica.as_deref())?;
                if vm.record.ft.suspended {
                    return Err(suspended(name));
                }
                self.let_go(name, Some(replica), UnprotectReason::Restart)?;
            }
            FtAction::Failover => {
                let replica = protected(&vm, replica.as_deref())?;
                // The answer is that there is none: the process is gone.
                let _ = replica.ask(&Request::Kill, REQUEST_TIMEOUT);
                if !replica.wait(REQUEST_TIMEOUT) {
                    replica.process().kill();
                }
            }
            FtAction::Switchover => {
                protected(&vm, replica.as_deref())?.ask(&Request::Switchover, REQUEST_TIMEOUT)?;
            }
        }
        self.registry.forget_failures(name);
        if let Some(replica) = &replica {
            replica.attempts.hurry();
        }
        self.vm(name)
    }

    /// Refuses a mode that what executes the VM, or will, does not have.
    fn refuse_mode(&self, vm: &KnownVm, replica: Option<&Replica>, mode: FtMode) -> Result<(), ApiError> {
        let running = replica.and_then(Replica::status).map(|status| status.engine);
        let (engine, verb) = match running {
            Some(engine) => (engine, "runs"),
            None => (self.engine_of(vm), "would run"),
        };
        if mode == FtMode::Lockstep && engine != EngineKind::Soft {
            return Err(ApiError::conflict(format!(
                "lockstep needs the soft engine, and VM {} {verb} on {engine}",
                vm.name
            ))
            .hint("create the VM with `engine = \"soft\"` in its spec, or protect it with `--mode mirror`"));
        }
        Ok(())
    }

    /// Records the mode, and has it changed at once where the VM runs. If that fails, nothing has changed.
    fn change_mode(&self, vm: &KnownVm, replica: Option<&Replica>, mode: FtMode) -> Result<(), ApiError> {
        let record = |mode| self.registry.update(&vm.name, |record| record.ft.mode = mode);
        if vm.record.ft.mode != mode {
            record(mode)?;
        }
        let Some(replica) = replica else { return Ok(()) };
        if let Err(error) = replica.ask(&Request::SetMode { mode }, REQUEST_TIMEOUT) {
            if let Err(error) = record(vm.record.ft.mode) {
                tracing::warn!("VM {}: its FT mode is recorded as {mode}, and was not changed: {error}", vm.name);
            }
            return Err(ApiError::conflict(format!("the FT mode of VM {} was not changed: {error:#}", vm.name)));
        }
        Ok(())
    }

    fn want(&self, vm: &KnownVm, enabled: bool, suspended: bool) -> Result<(), ApiError> {
        if (vm.record.ft.enabled, vm.record.ft.suspended) == (enabled, suspended) {
            return Ok(());
        }
        self.registry.update(&vm.name, |record| {
            (record.ft.enabled, record.ft.suspended) = (enabled, suspended);
            // What was reserved for a secondary that is let go stays reserved while it is suspended.
            let secondary =
                vm.claim.secondary.as_ref().and_then(|host| HostName::try_from(host.as_str().to_owned()).ok());
            record.syncing_to = secondary.filter(|_| suspended);
        })
    }

    /// Lets the secondary go, at both ends. The primary is told first: the end of the secondary is no loss to it then.
    fn let_go(&self, vm: &str, replica: Option<&Replica>, reason: UnprotectReason) -> Result<(), ApiError> {
        if let Some(replica) = replica {
            replica.ask(&Request::Unprotect { reason }, REQUEST_TIMEOUT)?;
        }
        self.drop_secondaries(vm, reason == UnprotectReason::Off)
    }
}

/// The mode that an action is to bring about, if any.
fn mode_of(action: FtAction, options: FtOptions) -> Result<Option<FtMode>, ApiError> {
    match (action, options.mode) {
        (FtAction::Mode, None) => Err(ApiError::bad_request("the body does not say which `mode`, mirror or lockstep")),
        (FtAction::On | FtAction::Mode, mode) => Ok(mode),
        (_, None) => Ok(None),
        (_, Some(_)) => Err(ApiError::bad_request(format!("`{}` takes no mode", action.label()))),
    }
}

fn running<'a>(vm: &str, replica: Option<&'a Replica>) -> Result<&'a Replica, ApiError> {
    replica.ok_or_else(|| {
        ApiError::conflict(format!("VM {vm} does not run")).hint(format!("start it with `twinvm vm start {vm}`"))
    })
}

/// A replica whose end its VM survives.
fn protected<'a>(vm: &KnownVm, replica: Option<&'a Replica>) -> Result<&'a Replica, ApiError> {
    let replica = running(&vm.name, replica)?;
    if vm.record.ft.suspended {
        return Err(suspended(&vm.name));
    }
    // Asked now: what it said last may be out of date.
    let status = replica.ask(&Request::Status, REQUEST_TIMEOUT)?;
    if status.protection.state != ProtectionState::Protected {
        return Err(ApiError::conflict(format!("VM {}: {}", vm.name, status.protection))
            .hint(format!("wait until `twinvm ft status {}` says Protected", vm.name)));
    }
    Ok(replica)
}

fn suspended(vm: &str) -> ApiError {
    ApiError::conflict(format!("fault tolerance of VM {vm} is suspended"))
        .hint(format!("resume it with `twinvm ft resume {vm}`"))
}
