//! VMs made, started, stopped and removed on this host.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use api::client::Target;
use api::events::EventKind;
use api::messages::{CreateVm, RebootVm, RemoveVm, RemovedVm, StartVm, StopHost, StopVm, VmView};
use cluster::controller::consent::{NotStarted, may_start};
use cluster::controller::{Action, Outcome, SHUTDOWN_MS_MAX};
use cluster::records::OperationKind;
use machine::bus::lock;
use replication::channel::Peer;
use spec::{Maintenance, Protection, SnapshotName, VmName, VmSpec};
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::error::HostError;
use super::folder::check_socket_path;
use super::launch::start_from;
use super::protection::Removed;
use super::registry::{KnownVm, UnreadableVm, random_vm_id};
use super::replicas::Replica;
use super::vm_folder::BOOT_FILE_BYTES_MAX;
use crate::replica::config::socket;
use crate::replica::control::{self, ConsoleConnection, ConsoleVisit, Request};
use crate::replica::end::ReplicaEnd;

/// How long a replica may take to answer a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a VM may take to be started: its replica has a minute for itself.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// The same from a snapshot, all of which has to be read.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(3630);
/// How long it may take until a VM's power button is pressed or its plug pulled.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a VM may take to end after its plug was pulled.
pub(super) const PLUG_TIMEOUT: Duration = Duration::from_secs(10);
/// How long owners of VMs may take for what they have to do already when the host stops with its VMs, and to note their ends.
const OWNERS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client that wants a VM's console waits for a takeover that may be under way.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is looked whether that is done.
const TAKEOVER_INTERVAL: Duration = Duration::from_millis(50);
/// How often it is looked whether VMs still run.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The spec of a VM that is to be made.
fn spec_of(create: &CreateVm) -> Result<VmSpec, HostError> {
    let spec = VmSpec::parse(&create.spec).map_err(|error| HostError::invalid(error.to_string()))?;
    if spec.record.is_none() {
        return Ok(spec);
    }
    Err(HostError::invalid("record: only a VM in the foreground can be recorded")
        .hint("leave it out of the spec of a VM with a host, or run the VM with `twinvm run`"))
}

impl Daemon {
    /// What the cluster store says about a VM.
    pub(super) fn known(&self, vm: &str) -> Result<KnownVm, HostError> {
        self.registry
            .vm(vm)?
            .ok_or_else(|| HostError::not_found(format!("there is no VM named {vm}")).hint("see `twinvm vm list`"))
    }

    /// The host that answers for a VM, if that is another one and it is alive.
    pub fn home_elsewhere(&self, vm: &str) -> Result<Option<Target>, HostError> {
        // One that has just ended may have been taken over.
        if self.replica(vm).is_some_and(|replica| replica.is_primary() && !replica.is_gone()) {
            return Ok(None);
        }
        // What makes no sense here does so nowhere: this host says it.
        if self.registry.unreadable(vm)?.is_some() {
            return Ok(None);
        }
        let vm = self.known(vm)?;
        if vm.home() == self.host() { Ok(None) } else { self.registry.alive_host(vm.home()) }
    }

    /// Refuses what only the VM's home can do.
    pub(super) fn require_home(&self, vm: &KnownVm) -> Result<(), HostError> {
        if vm.home() == self.host() {
            return Ok(());
        }
        let (home, name) = (vm.home(), &vm.name);
        Err(match self.registry.alive_host(home)? {
            None => HostError::unreachable(format!("host {home}, which holds VM {name}, is not alive"))
                .hint(format!("start its daemon with `twinvm host start` on host {home}; see `twinvm host list`")),
            Some(there) => {
                HostError::unreachable(format!("VM {name} has just moved to host {home}")).hint("try again").at(there)
            }
        })
    }

    /// Refuses new replicas on a host that stops.
    pub(super) fn refuse_if_stopping(&self) -> Result<(), HostError> {
        if !self.is_stopping() {
            return Ok(());
        }
        Err(HostError::unreachable(format!("host {} is being stopped", self.host())).hint("use another host"))
    }

    /// Refuses what [`create`](Self::create) would refuse, as far as that is known before anything is made.
    pub fn check(&self, create: &CreateVm) -> Result<(), HostError> {
        let spec = spec_of(create)?;
        self.admit_new(&spec)?;
        let checked = self.vm_folder(&spec.name).check(&spec, &self.images, &self.vm_files);
        checked.map_err(|error| HostError::invalid(error_text(&error)))
    }

    /// Makes a VM on this host.
    pub fn create(self: &Arc<Self>, create: &CreateVm) -> Result<VmView, HostError> {
        let mut spec = spec_of(create)?;
        // What is on a datastore is found by it.
        spec.id = Some(spec.id.map_or_else(random_vm_id, Ok)?);
        let name = spec.name.clone();
        let created = self.owned(&name, move |daemon| daemon.create_from(&spec))?;
        if !create.start {
            return Ok(created);
        }
        self.start_vm(&name, StartVm::default()).map_err(|mut error| {
            // All or nothing: who asks for a VM that runs does not want to find one that does not.
            let new = name.clone();
            let left = match self.owned(&name, move |daemon| daemon.remove_new(&new)) {
                Ok(()) => "nothing was created".to_owned(),
                Err(removal) => format!("VM {name} was created, and could not be removed again: {removal}"),
            };
            error.problem.error = format!("{}; {left}", error.problem.error);
            error
        })
    }

    /// Refuses a new VM for which there is no name or no room.
    pub(super) fn admit_new(&self, spec: &VmSpec) -> Result<(), HostError> {
        self.refuse_if_stopping()?;
        if spec.protection == Protection::Ha {
            self.check_ha(spec)?;
        }
        if self.registry.vm(&spec.name)?.is_some() {
            let name = &spec.name;
            return Err(HostError::refused(format!("there is a VM named {name} already"))
                .hint(format!("choose another name, or remove that VM with `twinvm vm rm {name}`")));
        }
        let folder = self.vm_folder(&spec.name);
        check_socket_path(&socket(folder.path()))?;
        for end in self.end_sockets(spec) {
            check_socket_path(&end)?;
        }
        self.registry.admit(spec)
    }

    fn create_from(self: &Arc<Self>, spec: &VmSpec) -> Result<VmView, HostError> {
        self.admit_new(spec)?;
        let folder = self.vm_folder(&spec.name);
        let kept = folder
            .create(spec, &self.images, &self.vm_files)
            .map_err(|error| HostError::invalid(error_text(&error)))?;
        let made = self.keep_made(&folder, &kept)?;
        self.events.note(EventKind::Created, Some(&spec.name), "was created");
        Ok(made)
    }

    /// Removes a VM from every host that is alive, disks included. For its owner.
    pub fn remove(&self, name: &str, how: RemoveVm) -> Result<RemovedVm, HostError> {
        if let Some(unreadable) = self.registry.unreadable(name)? {
            return self.remove_unreadable(&unreadable, how);
        }
        let vm = self.known(name)?;
        let is_lost = how.force && vm.home() != self.host() && self.registry.alive_host(vm.home())?.is_none();
        if !is_lost {
            self.require_home(&vm).map_err(|mut error| {
                error.problem.hint = error.problem.hint.map(|hint| {
                    format!(
                        "{hint}; if it is gone for good, remove the VM all the same with `twinvm vm rm {name} --force`"
                    )
                });
                error
            })?;
        }
        if let Some(replica) = self.replica(name) {
            if replica.is_gone() {
                self.settle(&replica);
            } else if vm.home() == self.host() {
                return Err(HostError::refused(format!("VM {name} runs"))
                    .hint(format!("stop it first with `twinvm vm stop {name}`")));
            }
        }
        // A secondary may be about to take over, here or on another host.
        let vm = if is_lost { self.claimed(&vm) } else { self.decided(self.known(name)?) }?;
        if let Some(replica) = self.replica(name) {
            self.retire(&replica, REQUEST_TIMEOUT);
        }
        self.registry.remove_vm(&vm)?;
        // From here on nobody starts it. Hosts that are not alive now keep a folder that no VM refers to.
        self.drop_secondaries(&vm, Removed::Everything)?;
        self.ends.stop(&self.end_sockets(&vm.spec));
        self.remove_disks_on_datastore(&vm.spec);
        self.vm_folder(name).drop_change()?;
        self.vm_folder(name).remove()?;
        self.events.note(EventKind::Removed, Some(name), "was removed");
        Ok(RemovedVm { removed: name.to_owned(), ..RemovedVm::default() })
    }

    /// Removes what the store has of a VM that this version cannot make sense of. Its files stay: nobody can tell which of them are the newest, nor whether a
    /// newer version could. For its owner.
    fn remove_unreadable(&self, vm: &UnreadableVm, how: RemoveVm) -> Result<RemovedVm, HostError> {
        let name = &vm.name;
        if !how.force {
            return Err(HostError::refused(&vm.why).hint(format!(
                "`twinvm vm rm {name} --force` removes the VM from the store all the same, and leaves its files on all hosts as they are"
            )));
        }
        let state = self.registry.state()?;
        let found = self.what_is_left(&state, name);
        if let Some((host, pid)) = found.runs {
            return Err(HostError::refused(format!("VM {name} runs on host {host}, as process {pid}"))
                .hint("shut its guest down from within, or end that process, and try again"));
        }
        self.registry.remove_unreadable(vm)?;
        self.events.note(EventKind::Removed, Some(name), format!("was removed, though {}; its files stay", vm.why));
        Ok(RemovedVm { removed: name.to_string(), kept: found.disks, unanswered: found.unanswered })
    }

    /// Removes a VM that was created just now and could not be started. No other host has anything of it.
    fn remove_new(&self, name: &str) -> Result<(), HostError> {
        if let Some(replica) = self.replica(name) {
            self.retire(&replica, REQUEST_TIMEOUT);
        }
        let vm = self.known(name)?;
        self.require_home(&vm)?;
        self.registry.remove_vm(&vm)?;
        self.ends.stop(&self.end_sockets(&vm.spec));
        self.remove_disks_on_datastore(&vm.spec);
        Ok(self.vm_folder(name).remove()?)
    }

    /// Starts a VM from its disks.
    pub fn start_vm(self: &Arc<Self>, name: &str, how: StartVm) -> Result<VmView, HostError> {
        self.start_vm_from(name, how, None)
    }

    /// The same, or from a snapshot.
    pub(super) fn start_vm_from(
        self: &Arc<Self>,
        name: &str,
        how: StartVm,
        snapshot: Option<SnapshotName>,
    ) -> Result<VmView, HostError> {
        let patience = if snapshot.is_some() { RESTORE_TIMEOUT } else { START_TIMEOUT };
        let vm = name.to_owned();
        let (id, started_from) = self.owned(name, move |daemon| daemon.ask_for_start(&vm, how, snapshot))?;
        self.wait_for_operation(name, id, patience)?;
        let mut view = self.vm(name)?;
        match started_from {
            Some(copy) => {
                tracing::warn!("VM {name} started from {copy}");
                view.note = Some(format!("started from {copy}; what was written since is lost"));
            }
            None => tracing::info!("VM {name} started"),
        }
        Ok(view)
    }

    /// Writes down that a VM is to be started, unless it is plain that it cannot be. Answers the operation's number, and what a forced start starts from.
    fn ask_for_start(
        &self,
        name: &str,
        how: StartVm,
        snapshot: Option<SnapshotName>,
    ) -> Result<(u64, Option<String>), HostError> {
        // It may change the claim.
        self.settle_gone(name);
        let vm = self.known(name)?;
        self.require_startable(&vm, how.from_stale_disks)?;
        let started_from = start_from(self.vm_folder(name).path(), how)?;
        let kind = OperationKind::Start { from_stale_disks: how.from_stale_disks, snapshot };
        // Whoever forces a start names the host by asking it.
        let host = how.from_stale_disks.then(|| self.registry.host_name().clone());
        Ok((self.ask(&vm, kind, host)?, started_from))
    }

    /// The machine has booted, and the VM is to be started with it. For its owner.
    pub(super) fn ask_for_start_with_machine(&self, vm: &VmName) -> Result<Outcome, HostError> {
        self.settle_gone(vm);
        let known = self.known(vm)?;
        if !self.still_wants(&known, &Action::AskForStart) {
            return Ok(Outcome::NotWanted);
        }
        self.ask(&known, OperationKind::Start { from_stale_disks: false, snapshot: None }, None)?;
        Ok(Outcome::Done)
    }

    fn require_startable(&self, vm: &KnownVm, is_forced: bool) -> Result<(), HostError> {
        self.refuse_if_stopping()?;
        let allowed = may_start(&vm.claim, self.registry.host_name(), self.here(&vm.name), is_forced);
        allowed.map_err(|why| self.not_started(vm, why))
    }

    /// Starts a VM on this host, from its disks or from a snapshot, for its owner. Whoever is killed within does not keep the next one from doing it
    /// again, from the beginning.
    pub(super) fn start_here(
        self: &Arc<Self>,
        vm: &KnownVm,
        from_stale_disks: bool,
        snapshot: Option<SnapshotName>,
    ) -> Result<(), HostError> {
        self.require_startable(vm, from_stale_disks)?;
        if let Some(replica) = self.replica(&vm.name) {
            self.retire(&replica, REQUEST_TIMEOUT);
        }
        self.require_admission(vm)?;
        self.launch(vm, from_stale_disks, snapshot, false, |registry, vm| registry.admit_start(vm, from_stale_disks))
    }

    fn not_started(&self, vm: &KnownVm, why: NotStarted) -> HostError {
        let name = &vm.name;
        match why {
            NotStarted::NotAtHome => match self.require_home(vm) {
                Err(error) => self.advise_stale_disks(name, error),
                Ok(()) => HostError::unreachable(format!("VM {name} has just moved to this host")).hint("try again"),
            },
            NotStarted::Runs => {
                HostError::refused(format!("VM {name} runs already")).hint(format!("see `twinvm vm show {name}`"))
            }
            NotStarted::Follows => HostError::refused(format!(
                "this host holds the secondary of VM {name}, connected to its primary on host {}",
                vm.home()
            ))
            .hint("it takes over by itself when that host is lost"),
            NotStarted::Undecided => HostError::refused(format!(
                "the replica of VM {name} on this host does not say that it follows its primary on host {}, and may be about to take over",
                vm.home()
            ))
            .hint(format!("see `twinvm ft status {name}`, and try again")),
        }
    }

    /// Presses a VM's power button, or pulls the plug.
    pub fn stop_vm(self: &Arc<Self>, name: &str, how: StopVm) -> Result<VmView, HostError> {
        self.ask_running(name, OperationKind::Stop { force: how.force })
    }

    /// Shuts a VM down and starts it again. It has begun to shut down when this returns; the view shows how it goes on.
    pub fn reboot_vm(self: &Arc<Self>, name: &str, how: RebootVm) -> Result<VmView, HostError> {
        if self.registry.maintenance() != Maintenance::Off {
            let host = self.host();
            return Err(HostError::refused(format!("host {host} is in maintenance, and VM {name} would not start there again"))
                .hint(format!("move it with `twinvm vm migrate {name}`, or end the maintenance with `twinvm host maintenance off {host}`")));
        }
        let patience_ms = how.timeout_s.saturating_mul(1000);
        self.ask_running(name, OperationKind::Reboot { force: how.force, patience_ms })
    }

    /// Writes down what is asked of a VM that runs here, and waits until it has begun.
    fn ask_running(self: &Arc<Self>, name: &str, kind: OperationKind) -> Result<VmView, HostError> {
        let vm = name.to_owned();
        let id = self.owned(name, move |daemon| {
            let vm = daemon.known(&vm)?;
            daemon.require_home(&vm)?;
            daemon.running(&vm.name)?;
            daemon.ask(&vm, kind, None)
        })?;
        self.wait_for_operation(name, id, STOP_TIMEOUT)?;
        self.vm(name)
    }

    /// The primary of a VM here.
    fn running(&self, name: &str) -> Result<Arc<Replica>, HostError> {
        self.replica(name).filter(|replica| replica.is_primary()).ok_or_else(|| {
            HostError::refused(format!("VM {name} does not run")).hint(format!("see `twinvm vm show {name}`"))
        })
    }

    /// Presses a VM's power button, for its owner.
    pub(super) fn press_power_button(&self, name: &str) -> Result<(), HostError> {
        self.running(name)?.ask(&Request::Stop { force: false }, REQUEST_TIMEOUT)?;
        Ok(())
    }

    /// Pulls a VM's plug, for its owner.
    pub(super) fn pull_plug(&self, vm: &KnownVm) -> Result<(), HostError> {
        let (name, replica) = (&vm.name, self.running(&vm.name)?);
        let asked = replica.ask(&Request::Stop { force: true }, REQUEST_TIMEOUT);
        match (asked, &vm.claim.secondary) {
            (Ok(_), _) if replica.wait(PLUG_TIMEOUT) => {}
            // Nobody takes over: a process that hangs is as good as a plug.
            (_, None) => {
                replica.process().kill();
                ReplicaEnd::PlugPulled.leave(&self.folder.vm(name))?;
            }
            (_, Some(secondary)) => {
                return Err(HostError::refused(format!(
                    "VM {name} does not answer, and host {secondary} may take it over"
                ))
                .hint("try again"));
            }
        }
        self.settle(&replica);
        Ok(())
    }

    fn advise_stale_disks(&self, name: &str, mut error: HostError) -> HostError {
        if error.home.is_some() || self.vm_folder(name).contents().is_none() {
            return error;
        }
        let hint = error.problem.hint.take().unwrap_or_default();
        error.problem.hint = Some(match start_from(self.vm_folder(name).path(), StartVm { from_stale_disks: true }) {
            Ok(copy) => format!(
                "{hint}. If that host is off and does not come back: `twinvm vm start {name} --from-stale-disks` on this host starts \
                 from its older copy of the disks ({}), and what was written since is lost",
                copy.unwrap_or_default()
            ),
            Err(error) => format!("{hint}. This host has nothing to start from: {}", error.problem.error),
        });
        error
    }

    /// A VM has ended here by itself or by request, not by a fault. If that cannot be noted now, the controller sees to it later.
    pub(super) fn vm_powered_off(&self, name: &str) {
        let noted = self.known(name).and_then(|vm| if vm.home() == self.host() { self.power_off(&vm) } else { Ok(()) });
        if let Err(error) = noted {
            tracing::warn!("VM {name} is off, which cannot be noted yet: {error}");
            self.find_powered_off(std::iter::once(name.to_owned()));
        }
    }

    /// Notes that a VM that is at home here is off, and ends what it needed.
    pub(super) fn power_off(&self, vm: &KnownVm) -> Result<(), HostError> {
        // A secondary that has not heard of it may be about to take over: the claim decides whether the VM is off. Also where it names none: what the replica
        // here has asked the store for may be carried out yet, and then it does.
        self.registry.claim_alone(vm)?;
        // Another host may be starting it, by force: from when that has the claim on, the VM is to run.
        let generation = vm.claim.generation.next();
        self.registry.cluster().update_vm_claimed(&vm.record.name, generation, |record| record.power_off())?;
        self.ends.stop(&self.end_sockets(&vm.spec));
        Ok(())
    }

    /// Connects a client to a VM's console. While a VM is taken over, the client waits.
    pub fn console(&self, name: &str, visit: ConsoleVisit) -> Result<ConsoleConnection, HostError> {
        let deadline = Instant::now() + TAKEOVER_TIMEOUT;
        loop {
            let vm = self.known(name)?;
            let is_here = self.replica(name).is_some_and(|replica| replica.is_primary() && !replica.is_gone());
            let error = if is_here {
                match control::console(&socket(&self.folder.vm(name)), visit, REQUEST_TIMEOUT) {
                    Ok(connection) => return Ok(connection),
                    Err(error) => HostError::from(error),
                }
            } else {
                self.require_home(&vm)?;
                HostError::refused(format!("VM {name} does not run"))
                    .hint(format!("start it with `twinvm vm start {name}`"))
            };
            let may_move = is_here || vm.claim.secondary.is_some();
            if !may_move || Instant::now() >= deadline {
                return Err(error);
            }
            thread::sleep(TAKEOVER_INTERVAL);
        }
    }

    /// The kernel or the initial RAM disk of a VM here, for the host that was asked to prepare its secondary, and as long as it does.
    pub fn boot_file(&self, name: &str, client: &Peer, file: &str) -> Result<Vec<u8>, HostError> {
        let vm = self.known(name)?;
        if client.host().is_none_or(|host| !self.is_preparing(&vm.name, host)) {
            return Err(HostError::not_entitled(format!("{client} was not asked to prepare a secondary of VM {name}")));
        }
        let folder = self.vm_folder(&vm.name);
        let path = match file {
            "kernel" => folder.kernel(),
            "initrd" => folder.initrd(),
            _ => return Err(HostError::not_found(format!("a VM has no boot file named {file}"))),
        };
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(BOOT_FILE_BYTES_MAX).read_to_end(&mut bytes));
        read.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(bytes)
    }

    /// Ends the daemon, and its VMs if asked to, which the controller sees to.
    ///
    /// # Errors
    /// A VM still runs: then the host goes on.
    pub fn stop_host(self: &Arc<Self>, how: StopHost) -> Result<(), HostError> {
        self.begin_to_stop(how.with_vms);
        if how.with_vms
            && let Err(error) = self.wait_until_nothing_runs()
        {
            self.go_on();
            return Err(error);
        }
        self.request_stop();
        Ok(())
    }

    /// Waits until no replica runs here any more.
    fn wait_until_nothing_runs(self: &Arc<Self>) -> Result<(), HostError> {
        let deadline = Instant::now() + Duration::from_millis(SHUTDOWN_MS_MAX) + PLUG_TIMEOUT + OWNERS_TIMEOUT;
        let vms: Vec<String> = self.all_replicas().iter().map(|replica| replica.vm.clone()).collect();
        loop {
            let Some(left) = self.all_replicas().into_iter().next() else {
                // Their owners may still have to note that they are off.
                return vms.iter().try_for_each(|vm| self.owned(vm, |_| Ok(())));
            };
            if Instant::now() > deadline {
                let idle = lock(&self.undone).idle(&left.vm).map(ToString::to_string);
                let why = idle.unwrap_or_else(|| "it does not say why".to_owned());
                return Err(HostError::unreachable(format!("VM {} does not end: {why}; the host goes on", left.vm))
                    .hint("see its log; without `--with-vms` the daemon ends and leaves the VMs to run"));
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }
}
