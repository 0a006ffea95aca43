//! VMs that are restarted here, the lease under which they run, and the datastores that make it possible.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use api::datastores::{AddDatastore, DatastoreHost, DatastoreView};
use api::events::EventKind;
use api::messages::HaView;
use cluster::arbiter::StoreArbiter;
use cluster::controller::{Action, Outcome, RENEWAL_MS};
use cluster::planner::{Basis, Failures, has_lost_its_host, may_restart};
use cluster::records::{
    ClaimRecord, ClusterError, ClusterState, DatastoreKind, DatastoreRecord, DatastoreSpace, Power,
};
use protocol::Claim;
use spec::{DatastoreName, Protection, VmName, VmSpec};
use terminal::error_text::error_text;

use super::daemon::Daemon;
use super::datastores;
use super::error::{HostError, Kind};
use super::process::ReplicaProcess;
use super::registry::{KnownVm, Registry, random_vm_id};
use super::runtime::VMS_INTERVAL;

/// How often datastores are measured.
const DATASTORES_INTERVAL: Duration = Duration::from_secs(1);
/// Changes of free space that are told: this part of all.
const TOLD_PART: u64 = 100;

impl KnownVm {
    /// High availability, if it is wanted.
    pub fn ha(&self) -> Option<HaView> {
        let why_not = match self.record.power {
            Power::Off => Some("the VM is off".to_owned()),
            Power::On if !self.under_lease => Some(format!(
                "the VM was started without it: it is restarted by others from its next start on (`twinvm vm reboot {}`)",
                self.name
            )),
            Power::On => None,
        };
        self.record.ha.enabled.then(|| HaView { restarts: why_not.is_none(), why_not })
    }
}

impl Registry {
    /// Makes this host the only one that may run the VM, which does not run here now. Fails if the claim has changed since `vm` was read.
    pub fn claim_alone(&self, vm: &KnownVm) -> Result<(), HostError> {
        self.claim_for_start(vm, false)
    }

    /// Has other hosts try to start a VM, which this one could not and of which nothing runs here. Nothing if it is not this host's, or was given up before.
    pub fn give_up(&self, name: &VmName) -> Result<(), HostError> {
        let record = self.cluster().claim(name)?;
        let (ClaimRecord { given_up, under_lease, .. }, current) = (&record, &record.claim);
        if *given_up || !under_lease || current.secondary.is_some() || !self.host_name().is(&current.primary) {
            return Ok(());
        }
        let claim = Claim { generation: current.generation.next(), ..current.clone() };
        let arbiter = StoreArbiter::new(self.cluster().store().clone(), name);
        let swapped = arbiter.give_up(current.generation, &claim);
        // Whoever was faster has started it.
        swapped.map(drop).map_err(|error| HostError::unreachable(error.to_string()))
    }

    /// Whether this host can restart a VM that another one ran, whose run lease has ended; if not, why.
    pub fn admit_restart(&self, name: &VmName) -> Result<(), HostError> {
        let state = self.state()?;
        let (failures, now) = (Failures::default(), self.now());
        let basis = Basis { state: &state, failures: &failures, now: &now };
        let vm = state.vm(name).ok_or_else(|| HostError::not_found(format!("there is no VM named {name}")))?;
        if !has_lost_its_host(vm, &basis) {
            return Err(HostError::unreachable(format!("VM {name} has not lost its host")));
        }
        may_restart(vm, self.host_name(), &basis)
            .map_err(|why| HostError::refused(format!("VM {name} cannot be restarted here: host {why}")))
    }
}

impl Daemon {
    /// Keeps the host's run lease, as long as the process lives. It is not given up when the daemon ends: what runs goes on.
    pub(super) fn keep_run_lease(&self) {
        let mut was_kept = true;
        loop {
            let kept = self.run_lease.keep(self.registry.cluster(), self.registry.host_name());
            if let (Err(error), true) = (&kept, was_kept) {
                tracing::warn!("the run lease cannot be renewed: {error}");
            }
            was_kept = kept.is_ok();
            thread::sleep(Duration::from_millis(RENEWAL_MS));
        }
    }

    /// Has the controller read which hosts have run leases as soon as that has changed: what ran under one that has ended waits for it.
    pub(super) fn watch_run_leases(&self) {
        let mut since = None;
        loop {
            match self.registry.cluster().wait_for_run_leases(since, VMS_INTERVAL) {
                Ok((revision, has_changed)) => {
                    since = Some(revision);
                    self.are_run_leases_due.fetch_or(has_changed, Ordering::AcqRel);
                }
                // Who waits for it reads them now and then in any case.
                Err(error) => {
                    tracing::debug!("run leases cannot be watched: {error}");
                    thread::sleep(Duration::from_millis(RENEWAL_MS));
                }
            }
        }
    }

    /// The run lease under which a VM is started, if it is to be restarted by others.
    pub(super) fn run_lease_for(&self, vm: &KnownVm) -> Result<Option<u64>, HostError> {
        if !vm.record.ha.enabled {
            return Ok(None);
        }
        let lease = self.run_lease.id(self.registry.now().ms);
        lease.map(Some).ok_or_else(|| {
            HostError::unreachable(format!("host {} has no run lease just now", self.host()))
                .hint("it gets one when the cluster store answers: try again")
        })
    }

    /// Restarts a VM here that is to run and does not. For its owner. That the store is away is nobody's fault. What cannot be restarted here may be elsewhere.
    pub(super) fn restart_vm(self: &Arc<Self>, name: &VmName, at_home: bool) -> Result<Outcome, HostError> {
        match self.try_to_restart(name, at_home) {
            Err(error) if error.kind == Kind::Unreachable => {
                tracing::debug!("VM {name} is not restarted now: {error}");
                Ok(Outcome::NotWanted)
            }
            Err(error) => {
                // A process that could not be killed may come to itself.
                let is_left = ReplicaProcess::is_there(self.vm_folder(name).path());
                if !is_left && let Err(why) = self.registry.give_up(name) {
                    tracing::warn!("VM {name}: other hosts are not told that it cannot be restarted here: {why}");
                }
                Err(error)
            }
            done => done,
        }
    }

    /// What was decided from is looked at once more: the claim decides in the end.
    fn try_to_restart(self: &Arc<Self>, name: &VmName, at_home: bool) -> Result<Outcome, HostError> {
        self.settle_gone(name);
        let vm = self.known(name)?;
        let action = Action::Restart { on: self.registry.host_name().clone(), at_home };
        if !self.still_wants(&vm, &action) || self.is_stopping() {
            return Ok(Outcome::NotWanted);
        }
        self.require_known_datastore(&vm)?;
        let folder = self.vm_folder(name);
        let disks = folder.of_disks(&vm.spec, &self.vm_files)?;
        // Ready before it asks: whoever has lost the VM may still hold its disks.
        disks.check_free().with_context(|| format!("VM {name}"))?;
        let from = vm.home().to_owned();
        let given_up = self.registry.cluster().claim(name)?.given_up;
        if at_home {
            self.launch(&vm, false, None, true, |registry, vm| registry.admit_start(vm, false))?;
            self.events.note(EventKind::Restarted, Some(name), "was restarted here, as its replica had ended");
        } else {
            self.registry.admit_restart(name)?;
            folder.adopt(&disks, &self.images)?;
            self.launch(&vm, false, None, true, |registry, _| registry.admit_restart(name))?;
            let why = if given_up { "cannot start it" } else { "is lost" };
            self.events.note(EventKind::Restarted, Some(name), format!("was restarted here, as host {from} {why}"));
        }
        Ok(Outcome::Done)
    }

    /// A host whose daemon has just been started, or has just registered again, does not know what it reaches, and has not said it: that is no reason to leave
    /// the VM to another host.
    fn require_known_datastore(&self, vm: &KnownVm) -> Result<(), HostError> {
        let Some(name) = vm.spec.datastore() else { return Ok(()) };
        let datastores = &self.vm_files.datastores;
        let told = self.registry.cluster().host(self.registry.host_name())?.reached;
        let is_told = told.contains_key(name) == datastores.reached().contains_key(name);
        if datastores.is_known(name) && is_told {
            return Ok(());
        }
        Err(HostError::unreachable(format!("host {} has not measured datastore {name} yet", self.host())))
    }

    /// Refuses high availability for a VM that no other host could start.
    pub(super) fn check_ha(&self, spec: &VmSpec) -> Result<(), HostError> {
        let hint = "make one with `twinvm datastore add`, and name it in the VM's spec: [[disk]] datastore = \"NAME\"";
        let refused = |why: String| Err(HostError::invalid(format!("VM {}: {why}", spec.name)).hint(hint));
        let Some(name) = spec.datastore() else {
            return refused("high availability needs its disks on a datastore that hosts share".to_owned());
        };
        let datastores = self.registry.cluster().datastores()?;
        match datastores.iter().find(|datastore| datastore.name == *name) {
            None => Err(ClusterError::NoDatastore(name.clone()).into()),
            Some(found) if found.kind != DatastoreKind::Shared => {
                refused(format!("high availability needs a datastore that hosts share, and {name} is local"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Refuses a protection that a VM cannot have.
    pub(super) fn check_protection(&self, vm: &KnownVm, wanted: Option<Protection>) -> Result<(), HostError> {
        let name = &vm.name;
        match wanted {
            Some(Protection::Ha) if vm.record.ft.enabled => {
                Err(HostError::refused(format!("VM {name} is fault tolerant, which is more"))
                    .hint(format!("turn that off first with `twinvm ft off {name}`")))
            }
            Some(Protection::Ha) => self.check_ha(&vm.spec),
            Some(Protection::Ft) => Err(HostError::invalid("fault tolerance shows first what it reserves")
                .hint(format!("turn it on with `twinvm ft on {name}`"))),
            Some(Protection::None) | None => Ok(()),
        }
    }

    /// Removes what a datastore holds of a VM that is removed. What cannot be removed is of no VM any more.
    pub(super) fn remove_disks_on_datastore(&self, spec: &VmSpec) {
        if spec.datastore().is_none() {
            return;
        }
        let folder = self.vm_folder(&spec.name).of_disks(spec, &self.vm_files);
        if let Err(error) = folder.and_then(|folder| folder.remove()) {
            tracing::warn!("VM {}: its disks stay on their datastore: {}", spec.name, error_text(&error));
        }
    }

    /// Measures datastores and tells the cluster which of them are reached, as long as the process lives.
    pub(super) fn watch_datastores(&self) {
        loop {
            if let Err(error) = self.look_at_datastores() {
                tracing::debug!("datastores are not looked at: {error}");
            }
            thread::sleep(DATASTORES_INTERVAL);
        }
    }

    fn look_at_datastores(&self) -> Result<(), HostError> {
        let cluster = self.registry.cluster();
        let used = |name: &DatastoreName| {
            self.config.datastores.is_empty() || self.config.datastores.iter().any(|used| used == name.as_str())
        };
        let records = cluster.datastores()?.into_iter().filter(|record| used(&record.name));
        let records: Vec<DatastoreRecord> = records.collect();
        let (is_none, files) = (records.is_empty(), self.vm_files.clone());
        self.vm_files.datastores.measure(records, move |folder| files.folder(folder).map(drop));
        let told = cluster.host(self.registry.host_name())?.reached;
        if is_none && told.is_empty() {
            return Ok(());
        }
        let reached = self.vm_files.datastores.reached();
        let is_news = |name: &DatastoreName, space: &DatastoreSpace| {
            told.get(name).is_none_or(|told| {
                told.free_bytes.abs_diff(space.free_bytes) > space.total_bytes / TOLD_PART
                    || told.total_bytes != space.total_bytes
            })
        };
        for name in told.keys().filter(|name| !reached.contains_key(*name)) {
            self.events.note(EventKind::DatastoreLost, None, format!("datastore {name} is not reached any more"));
        }
        for name in reached.keys().filter(|name| !told.contains_key(*name)) {
            self.events.note(EventKind::DatastoreBack, None, format!("datastore {name} is reached"));
        }
        if told.len() != reached.len() || reached.iter().any(|(name, space)| is_news(name, space)) {
            cluster.note_datastores(self.registry.host_name(), self.registry.instance(), &reached)?;
        }
        Ok(())
    }

    /// All datastores.
    pub fn datastores(&self) -> Result<Vec<DatastoreView>, HostError> {
        let state = self.registry.state()?;
        Ok(state.datastores.iter().map(|record| datastore_view(record, &state)).collect())
    }

    /// Makes a folder, which this host reaches, a datastore.
    pub fn add_datastore(&self, add: &AddDatastore) -> Result<DatastoreView, HostError> {
        let name: DatastoreName = add.name.parse().map_err(ClusterError::from)?;
        let kind = if add.shared { DatastoreKind::Shared } else { DatastoreKind::Local };
        let bad = |error: anyhow::Error| HostError::invalid(error_text(&error));
        if !add.path.is_absolute() {
            return Err(HostError::invalid(format!("{} is not an absolute path", add.path.display())));
        }
        self.vm_files.folder(&add.path).map_err(bad)?;
        let known = self.registry.cluster().datastores()?;
        if known.iter().any(|datastore| datastore.name == name) {
            return Err(ClusterError::DatastoreExists(name).into());
        }
        let id = datastores::mark(&add.path, &random_vm_id()?.to_string()).map_err(bad)?;
        if let Some(other) = known.iter().find(|datastore| datastore.id == id) {
            return Err(HostError::refused(format!("{} is datastore {} already", add.path.display(), other.name)));
        }
        let record = DatastoreRecord { name, kind, path: add.path.clone(), id, unknown: Default::default() };
        self.registry.cluster().add_datastore(&record)?;
        tracing::info!("datastore {} was added: {}", record.name, record.path.display());
        Ok(datastore_view(&record, &self.registry.state()?))
    }

    /// Forgets a datastore that no VM uses. What is in its folder stays.
    pub fn remove_datastore(&self, name: &str) -> Result<(), HostError> {
        let name: DatastoreName = name.parse().map_err(ClusterError::from)?;
        Ok(self.registry.cluster().remove_datastore(&name)?)
    }
}

fn datastore_view(record: &DatastoreRecord, state: &ClusterState) -> DatastoreView {
    let host = |host: &cluster::records::HostRecord| {
        let space = host.reached.get(&record.name)?;
        let name = host.name.to_string();
        Some(DatastoreHost { name, total_bytes: space.total_bytes, free_bytes: space.free_bytes })
    };
    let uses =
        |vm: &&cluster::records::VmState| vm.record.vm_spec().is_ok_and(|spec| spec.datastore() == Some(&record.name));
    DatastoreView {
        name: record.name.to_string(),
        shared: record.kind == DatastoreKind::Shared,
        path: record.path.clone(),
        hosts: state.hosts.iter().filter_map(host).collect(),
        vms: state.vms.iter().filter(uses).map(|vm| vm.record.name.to_string()).collect(),
    }
}
