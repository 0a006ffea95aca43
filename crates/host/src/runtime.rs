//! Carrying out what the controller decides, and reporting to it what is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use api::client::Target;
use api::messages::{PrepareSecondary, PreparedSecondary, SessionKeys};
use api::status::{ReplicaStatus, Role};
use api::time::unix_ms_now;
use axum::http::Method;
use cluster::controller::consent::{Here, Scene, is_displaced};
use cluster::controller::{
    Action, HostReport, Idle, Loss, LossCause, Outcome, Plan, Planned, ReplicaReport, ReplicaState, Waiting,
};
use cluster::records::ClusterState;
use machine::bus::lock;
use protocol::Generation;
use replication::channel::{PemKeys, session_keys};
use spec::{HostName, VmName};
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::error::HostError;
use super::power::PLUG_TIMEOUT;
use super::protection::Removed;
use super::registry::KnownVm;
use super::replicas::Replica;
use crate::replica::control::{Request, UnprotectReason};
use crate::replica::end::ReplicaEnd;
use crate::replica::report::{protection_of, reason_of};

/// How often the controller decides, though nothing may have changed.
const DECIDE_INTERVAL: Duration = Duration::from_millis(100);
/// How often hosts are read, as leases end; when run leases do, they are read at once.
const HOSTS_INTERVAL: Duration = Duration::from_millis(500);
/// How often VMs are read, though none may have changed: who watches is told of changes by somebody who may hang.
pub(super) const VMS_INTERVAL: Duration = Duration::from_secs(10);
/// How long a replica may take to answer a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a replica may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// How long another host may take to prepare a secondary. It may have to fetch a kernel.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(120);

/// What the controller knows of the store.
pub(super) struct Known {
    pub(super) state: ClusterState,
    /// When VMs, and with them hosts, were read.
    vms_read: Instant,
    hosts_read: Instant,
}

/// What the controller's last plan leaves undone, for whoever looks at a VM.
#[derive(Default)]
pub struct Undone {
    idle: BTreeMap<VmName, Idle>,
    waiting: BTreeMap<VmName, Waiting>,
    /// What keeps VMs from being protected, and since when, in ms since 1970.
    obstacles: BTreeMap<VmName, (String, u64)>,
}

impl Undone {
    /// Why nothing is done about a VM.
    pub fn idle(&self, vm: &str) -> Option<&Idle> {
        self.idle.get(vm)
    }

    /// What the operation of a VM waits for.
    pub fn waiting(&self, vm: &str) -> Option<&Waiting> {
        self.waiting.get(vm)
    }

    /// What keeps a VM from being protected, and since when, in ms since 1970.
    pub fn obstacle(&self, vm: &str) -> Option<(String, u64)> {
        self.obstacles.get(vm).cloned()
    }

    fn note(&mut self, plan: Plan) {
        let is_going_on = |idle: &Idle| matches!(idle, Idle::UnderWay | Idle::Connecting { .. });
        let mut obstacles = BTreeMap::new();
        for (vm, before) in &self.obstacles {
            // An attempt does not make it a new obstacle if it fails.
            let is_planned = plan.actions.iter().any(|planned| planned.vm == *vm);
            if is_planned || plan.idle.get(vm).is_some_and(is_going_on) {
                obstacles.insert(vm.clone(), before.clone());
            }
        }
        for (vm, idle) in &plan.idle {
            if let Some(text) = idle.obstacle() {
                let since = self.obstacles.get(vm).map_or_else(unix_ms_now, |(_, since)| *since);
                obstacles.insert(vm.clone(), (text, since));
            }
        }
        *self = Self { idle: plan.idle, waiting: plan.waiting, obstacles };
    }
}

impl Daemon {
    /// Decides and has done what was decided, as long as the process lives.
    pub(super) fn run_controller(self: &Arc<Self>) {
        let mut known: Option<Known> = None;
        loop {
            match self.wait_for_state(&mut known) {
                Ok(()) => {}
                // Plans are made from what was known last; what they need of the store fails, and is tried again.
                Err(error) => {
                    tracing::debug!("the controller cannot read the cluster store: {error}");
                    thread::sleep(DECIDE_INTERVAL);
                }
            }
            match &known {
                Some(known) => self.decide(&known.state),
                // What runs here is known all the same.
                None if self.stops_vms() => self.decide(&ClusterState::default()),
                None => {}
            }
        }
    }

    /// Waits until it is time to decide, and reads the state if it may have changed.
    pub(super) fn wait_for_state(&self, known: &mut Option<Known>) -> Result<(), HostError> {
        let now = Instant::now();
        let Some(before) = known else {
            *known = Some(Known { state: self.registry.state()?, vms_read: now, hosts_read: now });
            return Ok(());
        };
        let has_changed = self.registry.wait_for_vm_change(before.state.revision, DECIDE_INTERVAL)?;
        if has_changed || before.vms_read.elapsed() > VMS_INTERVAL {
            let mut state = self.registry.state()?;
            state.share_specs(&before.state);
            *before = Known { state, vms_read: now, hosts_read: now };
        } else if self.are_run_leases_due.swap(false, Ordering::AcqRel) || before.hosts_read.elapsed() > HOSTS_INTERVAL
        {
            self.registry.refresh_hosts(&mut before.state)?;
            before.hosts_read = now;
        }
        Ok(())
    }

    fn decide(self: &Arc<Self>, state: &ClusterState) {
        let replicas = self.all_replicas();
        let report = self.report(&replicas);
        self.events.observe(&report.replicas);
        self.follow_ports(state, &replicas);
        let plan = lock(&self.controller).decide(state, &report, &self.registry.now());
        for planned in plan.actions.clone() {
            tracing::debug!("VM {planned}");
            let replica = replicas.iter().find(|replica| replica.vm == *planned.vm).cloned();
            self.carry_out(planned, replica);
        }
        lock(&self.undone).note(plan);
        if self.is_autostart_due.load(Ordering::Acquire) && lock(&self.controller).is_autostart_over() {
            // The next daemon would start VMs again that somebody has stopped.
            match self.folder.note_autostart_over() {
                Ok(()) => self.is_autostart_due.store(false, Ordering::Release),
                Err(error) => tracing::debug!("{}", error_text(&error)),
            }
        }
    }

    fn report(&self, replicas: &[Arc<Replica>]) -> HostReport {
        let reports = replicas.iter().filter_map(|replica| {
            let name: VmName = replica.vm.parse().ok()?;
            Some((name, replica_report(replica)))
        });
        HostReport {
            host: self.registry.host_name().clone(),
            has_booted: self.is_autostart_due.load(Ordering::Acquire),
            is_stopping: self.is_stopping(),
            stops_vms: self.stops_vms(),
            run_lease_ms: self.run_lease.held_ms(self.registry.now().ms),
            replicas: reports.collect(),
            powered_off: lock(&self.powered_off).clone(),
        }
    }

    /// Has an action carried out; its outcome is told to the controller.
    fn carry_out(self: &Arc<Self>, planned: Planned, replica: Option<Arc<Replica>>) {
        let Planned { vm, action, why } = planned;
        let (daemon, name, done) = (self.clone(), vm.clone(), action.clone());
        let work = move || {
            let outcome = daemon.act(&name, &done, replica.as_ref()).unwrap_or_else(|text| {
                match done {
                    Action::Restart { .. } => tracing::warn!("VM {name}: {done} ({why}): {text}"),
                    _ => tracing::debug!("VM {name}: {done} ({why}): {text}"),
                }
                Outcome::Failed(text)
            });
            lock(&daemon.controller).note(&name, &done, &outcome, daemon.registry.now().ms);
        };
        let started = match &action {
            // It waits for another host, which may take long.
            Action::Protect { .. } => {
                let thread = thread::Builder::new().name(format!("protect {vm}"));
                thread.spawn(work).map(drop).map_err(anyhow::Error::from)
            }
            _ => self.owners.post(&vm, work),
        };
        if let Err(error) = started {
            let outcome = Outcome::Failed(error_text(&error));
            lock(&self.controller).note(&vm, &action, &outcome, self.registry.now().ms);
        }
    }

    pub(super) fn act(
        self: &Arc<Self>,
        vm: &VmName,
        action: &Action,
        replica: Option<&Arc<Replica>>,
    ) -> Result<Outcome, String> {
        let text = |error: HostError| error.problem.error;
        match (action, replica) {
            (Action::NotePowerOff, _) => self.note_power_off(vm).map_err(text),
            (Action::ReleaseReservation, _) => {
                self.reserve(vm, None).map_err(text)?;
                Ok(Outcome::Done)
            }
            (Action::Step { operation, step, is_last }, _) => {
                self.take_step(vm, *operation, step, *is_last).map_err(text)
            }
            (Action::NoteResult { operation, result }, _) => self.end_operation(vm, *operation, result).map_err(text),
            (Action::SettleClaim, _) => self.settle_claim(vm).map_err(text),
            (Action::EndSecondary, Some(replica)) => Ok(self.end_secondary(replica)),
            (Action::ShutDown { force }, Some(replica)) => Self::shut_down(replica, *force),
            (Action::Protect { secondary }, Some(replica)) => self.protect(replica, action, secondary),
            (Action::Unprotect, Some(replica)) => self.unprotect(vm, replica).map_err(text),
            (Action::Replace, Some(replica)) => {
                self.let_go(vm, Some(&**replica), UnprotectReason::Restart).map_err(text)?;
                Ok(Outcome::Done)
            }
            (Action::Move { to }, _) => self.ask_for_move(vm, to).map_err(text),
            (Action::AskForStart, _) => self.ask_for_start_with_machine(vm).map_err(text),
            (Action::Restart { at_home, .. }, _) => self.restart_vm(vm, *at_home).map_err(text),
            (Action::EndReplica, Some(replica)) => self.end_displaced(vm, replica).map_err(text),
            (
                Action::Protect { .. }
                | Action::Unprotect
                | Action::Replace
                | Action::EndReplica
                | Action::EndSecondary
                | Action::ShutDown { .. },
                None,
            ) => Ok(Outcome::NotWanted),
        }
    }

    /// Reserves what the secondary needs on the host that is being given its first copy, or nothing any more; the reservation of
    /// a suspended secondary stays.
    fn reserve(&self, vm: &str, host: Option<&HostName>) -> Result<(), HostError> {
        self.registry.update(vm, |record| {
            record.reserve(host);
        })
    }

    /// Whether what the controller has decided about a VM is still to be done, as the record and the claim are that were just read.
    pub(super) fn still_wants(&self, vm: &KnownVm, action: &Action) -> bool {
        self.scene(vm).wants(action)
    }

    /// What is known of a VM that was just read.
    pub(super) fn scene<'a>(&'a self, vm: &'a KnownVm) -> Scene<'a> {
        let (host, has_replica) = (self.registry.host_name(), self.replica(&vm.name).is_some());
        Scene { record: &vm.record, claim: &vm.claim, host, has_replica }
    }

    /// Reserves, lets the host prepare a secondary, and tells the primary.
    fn protect(self: &Arc<Self>, replica: &Arc<Replica>, action: &Action, host: &HostName) -> Result<Outcome, String> {
        let text = |error: HostError| error.problem.error;
        let vm = self.known(&replica.vm).map_err(text)?;
        if !self.still_wants(&vm, action) || self.is_stopping() {
            return Ok(Outcome::NotWanted);
        }
        self.reserve(&vm.name, Some(host)).map_err(text)?;
        let [ours, theirs] = session_keys([self.host(), host]).map_err(|error| error.to_string())?.map(session);
        let (target, address) = self.prepare_at(&vm, replica, host, theirs)?;
        let told = self.tell_primary(replica, action, &target, address, ours);
        if told != Ok(Outcome::Done) {
            let keeps_disks = self.known(&vm.name).is_ok_and(|vm| vm.record.ft.enabled);
            self.drop_secondary_at(&target, &vm, if keeps_disks { Removed::Nothing } else { Removed::Copies });
        }
        told
    }

    /// Lets a host prepare a secondary; where it listens then.
    fn prepare_at(
        &self,
        vm: &KnownVm,
        replica: &Replica,
        host: &HostName,
        session: SessionKeys,
    ) -> Result<(Target, SocketAddr), String> {
        let target = self.registry.alive_host(host).map_err(|error| error.problem.error)?;
        let target = target.ok_or_else(|| format!("host {host} is not alive any more"))?;
        let contents = self.vm_folder(&vm.name).contents().ok_or("the VM's folder is incomplete on this host")?;
        let prepare = PrepareSecondary {
            primary: self.host().to_owned(),
            generation: vm.claim.generation.number(),
            spec: vm.record.spec.clone().into(),
            engine: replica.status().ok_or("the replica does not answer")?.engine,
            contents,
            session,
        };
        let path = format!("/v1/secondaries/{}", vm.name);
        let prepared: PreparedSecondary = self
            .while_preparing(&vm.name, host, || {
                self.wait_for(self.client().call(&target, Method::PUT, &path, Some(&prepare), PREPARE_TIMEOUT))
            })
            .map_err(|error| error.to_string())?;
        Ok((target, prepared.address))
    }

    /// Tells the primary of the secondary that waits for it, unless what is wanted has changed while that was prepared.
    fn tell_primary(
        self: &Arc<Self>,
        replica: &Arc<Replica>,
        action: &Action,
        target: &Target,
        address: SocketAddr,
        session: SessionKeys,
    ) -> Result<Outcome, String> {
        let (daemon, replica, action, host) = (self.clone(), replica.clone(), action.clone(), target.host.clone());
        // Whoever turns protection off meanwhile either finds a primary that was told, or is found here.
        let told = self.owners.run(&replica.vm.clone(), move || {
            let is_current = daemon.replica(&replica.vm).is_some_and(|current| Arc::ptr_eq(&current, &replica));
            let vm = daemon.known(&replica.vm).map_err(|error| error.problem.error)?;
            if !is_current || !daemon.still_wants(&vm, &action) {
                return Ok(Outcome::NotWanted);
            }
            let mode = Some(vm.record.ft.mode);
            let request = Request::Protect { secondary: host, address, mode, session: Some(session) };
            replica.ask(&request, REQUEST_TIMEOUT).map_err(|error| error_text(&error))?;
            Ok(Outcome::Done)
        });
        told.unwrap_or_else(|error| Err(error_text(&error)))
    }

    fn unprotect(&self, vm: &VmName, replica: &Arc<Replica>) -> Result<Outcome, HostError> {
        let known = self.known(vm)?;
        if !self.still_wants(&known, &Action::Unprotect) {
            return Ok(Outcome::NotWanted);
        }
        let reason = if known.record.ft.enabled { UnprotectReason::Suspend } else { UnprotectReason::Off };
        self.let_go(vm, Some(&**replica), reason)?;
        Ok(Outcome::Done)
    }

    /// Takes a VM that does not run, and is to go without a secondary, for this host alone; ends the secondary if it was not faster.
    fn settle_claim(&self, vm: &VmName) -> Result<Outcome, HostError> {
        let known = self.known(vm)?;
        if !self.still_wants(&known, &Action::SettleClaim) {
            return Ok(Outcome::NotWanted);
        }
        let known = self.claimed(&known)?;
        self.drop_secondaries(&known, Removed::Copies)?;
        Ok(Outcome::Done)
    }

    /// Ends a secondary, on a host that is being stopped with its VMs.
    fn end_secondary(&self, replica: &Arc<Replica>) -> Outcome {
        // Asked now: it may have taken over. One that does not answer is what it said last.
        let status = replica.ask(&Request::Status, REQUEST_TIMEOUT).ok().or_else(|| replica.status());
        if status.is_some_and(|status| status.role == Role::Primary) {
            return Outcome::NotWanted;
        }
        self.retire(replica, REQUEST_TIMEOUT);
        Outcome::Done
    }

    /// Presses a VM's power button or pulls its plug, on a host that is being stopped with its VMs. The store need not answer for that.
    fn shut_down(replica: &Replica, force: bool) -> Result<Outcome, String> {
        if force {
            tracing::warn!("VM {} does not shut down: its plug is pulled", replica.vm);
            replica.end(PLUG_TIMEOUT);
        } else {
            replica.ask(&Request::Stop { force: false }, REQUEST_TIMEOUT).map_err(|error| error_text(&error))?;
        }
        Ok(Outcome::Done)
    }

    /// Ends a replica that has no place any more: a secondary that no primary came to, or a primary that lost its claim while no secondary bound
    /// it, as when its VM was started elsewhere in the belief that this host was gone, which it does not notice by itself.
    fn end_displaced(&self, vm: &VmName, replica: &Arc<Replica>) -> Result<Outcome, HostError> {
        // Asked now: what was seen may be out of date. One that does not answer is what it said last.
        let status = replica.ask(&Request::Status, END_TIMEOUT).ok().or_else(|| replica.status());
        let Some(status) = status else { return Ok(Outcome::NotWanted) };
        let (here, generation) = (self.here(vm), Generation::new(status.generation));
        let known = match self.registry.vm(vm)? {
            Some(known) if is_displaced(&known.claim, self.registry.host_name(), here, generation) => known,
            // Of a VM that was removed.
            None if here == Here::Waiting => {
                replica.end(END_TIMEOUT);
                return Ok(Outcome::Done);
            }
            _ => return Ok(Outcome::NotWanted),
        };
        if !replica.is_primary() {
            tracing::info!("VM {vm}: no primary came to this secondary");
            replica.end(END_TIMEOUT);
            return Ok(Outcome::Done);
        }
        tracing::warn!("VM {vm} was started on host {}: its replica here is ended", known.home());
        replica.process().kill();
        let message = format!("the VM was started on host {}", known.home());
        (ReplicaEnd::LostArbitration { message }).leave(&self.folder.vm(vm))?;
        Ok(Outcome::Done)
    }

    fn note_power_off(&self, vm: &VmName) -> Result<Outcome, HostError> {
        let known = self.known(vm)?;
        if !self.still_wants(&known, &Action::NotePowerOff) {
            return Ok(Outcome::NotWanted);
        }
        if self.scene(&known).notes_power_off() {
            self.power_off(&known)?;
        }
        lock(&self.powered_off).remove(vm);
        Ok(Outcome::Done)
    }

    /// VMs whose guests were powered off here while the store, or this host's daemon, was away.
    pub(super) fn find_powered_off(&self, ended: impl Iterator<Item = String>) {
        let found: BTreeSet<VmName> = ended.filter_map(|vm| vm.parse().ok()).collect();
        lock(&self.powered_off).extend(found);
    }
}

fn session(keys: PemKeys) -> SessionKeys {
    let PemKeys { authority, certificate, key } = keys;
    SessionKeys { authority, certificate, key }
}

/// What is seen of a replica.
fn replica_report(replica: &Replica) -> ReplicaReport {
    let Some(status) = replica.status() else {
        return ReplicaReport { generation: Generation::NONE, state: ReplicaState::Booting, processor: None };
    };
    let state = match status.role {
        Role::Secondary => ReplicaState::Secondary {
            unclaimed_ms: u64::try_from(replica.unclaimed_for().as_millis()).unwrap_or(u64::MAX),
        },
        Role::Primary => primary_state(&status),
    };
    ReplicaReport { generation: Generation::new(status.generation), state, processor: replica.processor() }
}

fn primary_state(status: &ReplicaStatus) -> ReplicaState {
    let said = &status.protection;
    let loss = said.reason.map(|reason| Loss {
        cause: LossCause::of(reason_of(reason)),
        text: match &said.detail {
            Some(detail) => format!("{reason}: {detail}"),
            None => reason.to_string(),
        },
    });
    let peer = status.peer.as_ref().and_then(|peer| peer.parse::<HostName>().ok());
    ReplicaState::of_primary(protection_of(said.state), peer, loss)
}
