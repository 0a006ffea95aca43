//! The cluster store, as the daemon uses it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use api::client::Target;
use api::messages::FtWanted;
use api::time::unix_ms_now;
use cluster::arbiter::StoreArbiter;
use cluster::planner::{Basis, Failures, NoPlace, may_hold_secondary, place_primary, place_secondary};
use cluster::records::{
    BootTime, ClaimRecord, Cluster, ClusterError, ClusterState, FtSettings, HostRecord, Lease, Power, Succession,
    VmRecord, VmState, succession,
};
use cluster::store::{LeaseId, Sight, StoreLocation, Stores, boot_ms_now};
use machine::bus::lock;
use machine::probe::probe;
use protocol::{Claim, Generation, Unreachable, Verdict};
use spec::{CpuProfile, EngineKind, HostName, Maintenance, Protection, ReplicaId, VmId, VmName, VmSpec, to_toml};

use super::config::HostConfig;
use super::error::HostError;
use super::folder::{is_autostart_due, store_seen};

/// How long a host counts as alive after it has renewed its lease.
const LEASE_TTL: Duration = Duration::from_secs(3);
/// How often it is looked whether the lease of an earlier daemon has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// vCPUs that VMs may have for each processor of the machine, unless configured.
const CPUS_PER_PROCESSOR: usize = 4;

/// A VM of the cluster.
#[derive(Clone, Debug)]
pub struct KnownVm {
    /// Its name.
    pub name: String,
    /// Its spec.
    pub spec: VmSpec,
    /// What its administrator wants.
    pub record: VmRecord,
    /// Which replicas may run it.
    pub claim: Claim,
    /// Whether its primary runs under its host's run lease.
    pub under_lease: bool,
}

impl KnownVm {
    fn new(state: VmState) -> Result<Self, HostError> {
        let spec = state.record.vm_spec().map_err(|error| anyhow!("VM {}: {error}", state.record.name))?;
        let VmState { record, claim } = state;
        let (name, under_lease) = (record.name.to_string(), claim.under_lease);
        Ok(Self { name, spec, record, claim: claim.claim, under_lease })
    }

    /// The host that runs it, or whose disks it starts from.
    pub fn home(&self) -> &str {
        self.claim.primary.as_str()
    }

    /// Whether it is to have a secondary now.
    pub fn wants_secondary(&self) -> bool {
        self.record.wants_secondary(&self.claim)
    }

    /// What is wanted of fault tolerance.
    pub fn ft(&self) -> FtWanted {
        let FtSettings { enabled, suspended, mode, .. } = self.record.ft;
        FtWanted { enabled, suspended, mode }
    }
}

/// A VM of which this version cannot make sense.
#[derive(Clone, Debug)]
pub struct UnreadableVm {
    /// Its name.
    pub name: VmName,
    /// Why the VM's record cannot be read.
    pub why: String,
    /// Which replicas may run it, if at least that can be read.
    claim: Option<Claim>,
}

/// The records of the cluster, and this host's own.
pub struct Registry {
    cluster: Cluster,
    host: HostRecord,
    /// None once it was given up.
    lease: Mutex<Option<LeaseId>>,
    /// How far its maintenance goes, which `host` does not say.
    maintenance: Mutex<Maintenance>,
    is_autostart_due: bool,
}

impl Registry {
    /// Opens the store and registers the host, whose API listens at `api`. Measures the engines, which takes a moment.
    ///
    /// # Errors
    /// If another daemon serves the host already, elsewhere.
    pub fn open(config: &HostConfig, folder: &Path, api: SocketAddr) -> Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get()) * CPUS_PER_PROCESSOR;
        let host = HostRecord {
            name: config.name.parse()?,
            api_address: api,
            replication_ip: config.replication_ip(),
            boot_id: read_id("/proc/sys/kernel/random/boot_id")?,
            domain: config.failure_domain()?,
            cpus: config.cpus.unwrap_or(u32::try_from(cpus)?),
            memory_bytes: match config.memory {
                Some(memory) => memory.bytes(),
                None => crate::foreground::open::host_memory_bytes()?,
            },
            engines: engines(),
            kvm_processor: machine::engine::cpu_offer(EngineKind::Kvm).ok(),
            networks: config.networks.clone(),
            reached: Default::default(),
            maintenance: Maintenance::Off,
            lease: Lease { renewed_unix_ms: unix_ms_now(), ..Lease::default() },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: read_id("/proc/sys/kernel/random/uuid")?,
            folder: std::path::absolute(folder)?,
            unknown: Default::default(),
        };
        let cluster = open_cluster(config, store_seen(folder))?;
        let before = cluster.host(&host.name).ok();
        if let Some(before) = &before {
            wait_until_ended(&cluster, before, &host)?;
        }
        let ended = before.as_ref().map(|before| before.instance.as_str());
        let maintenance = before.as_ref().map_or(Maintenance::Off, |before| before.maintenance);
        let record = HostRecord { maintenance, ..host.clone() };
        let has_booted = before.as_ref().is_none_or(|before| before.boot_id != host.boot_id);
        // Before the store says of what boot this daemon is: the next one learns of it by the file alone.
        let is_autostart_due = is_autostart_due(folder, has_booted);
        let lease = cluster.register_host(&record, ended, LEASE_TTL).context("cannot register the host")?;
        let (lease, maintenance) = (Mutex::new(Some(lease)), Mutex::new(maintenance));
        Ok(Self { cluster, host, lease, maintenance, is_autostart_due })
    }

    /// The same with another store for VMs in place of its own.
    #[cfg(test)]
    pub fn with_vms_in(self, stores: Stores) -> Self {
        Self { cluster: Cluster::new(stores), ..self }
    }

    /// Whether the machine has booted since the daemon before this one was started.
    pub fn is_autostart_due(&self) -> bool {
        self.is_autostart_due
    }

    /// Gives the lease up, for good: from now on the host is not asked for anything.
    pub fn end_lease(&self) -> Result<(), ClusterError> {
        match lock(&self.lease).take() {
            Some(lease) => self.cluster.end_lease(lease),
            None => Ok(()),
        }
    }

    /// The records of the cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Takes this host out of the cluster, unless a claim names it, and gives its lease up.
    pub fn leave(&self) -> Result<(), ClusterError> {
        // Held meanwhile: the lease must not be renewed, which would register the host again.
        let mut lease = lock(&self.lease);
        match self.cluster.remove_host(&self.host.name) {
            Ok(()) | Err(ClusterError::NoHost(_)) => {}
            Err(error) => return Err(error),
        }
        if let Some(lease) = lease.take()
            && let Err(error) = self.cluster.end_lease(lease)
        {
            tracing::debug!("the lease ends by itself: {error}");
        }
        Ok(())
    }

    /// Removes another host that is not alive and holds no replica.
    pub fn remove_host(&self, name: &str) -> Result<(), HostError> {
        let host: HostName = name.parse().map_err(ClusterError::from)?;
        if self.cluster.host(&host)?.is_alive(&self.now()) {
            return Err(HostError::refused(format!("host {host} is alive"))
                .hint(format!("stop its daemon first with `twinvm host stop` on host {host}")));
        }
        Ok(self.cluster.remove_host(&host)?)
    }

    /// Renews the host's lease, unless it was given up. A host that was removed meanwhile, or whose lease has ended, registers again.
    ///
    /// # Errors
    /// [`ClusterError::OtherInstance`] if another daemon serves the host now: this one must not go on.
    pub fn renew_lease(&self) -> Result<(), ClusterError> {
        // Held meanwhile: what is given up must not be taken again.
        let mut lease = lock(&self.lease);
        let Some(current) = *lease else { return Ok(()) };
        match self.cluster.renew_lease(&self.host.name, &self.host.instance, current) {
            Err(ClusterError::NoHost(_) | ClusterError::LeaseEnded(_)) => {
                let record = HostRecord { maintenance: self.maintenance(), ..self.host.clone() };
                *lease = Some(self.cluster.register_host(&record, None, LEASE_TTL)?);
                Ok(())
            }
            other => other,
        }
    }

    /// How far the maintenance of this host goes.
    pub fn maintenance(&self) -> Maintenance {
        *lock(&self.maintenance)
    }

    /// Notes how far it is to go, from now on.
    pub fn set_maintenance(&self, wanted: Maintenance) -> Result<(), ClusterError> {
        // Held meanwhile: a registration anew has what is in the store then.
        let mut maintenance = lock(&self.maintenance);
        self.cluster.set_maintenance(&self.host.name, &self.host.instance, wanted)?;
        *maintenance = wanted;
        Ok(())
    }

    /// How far the store has come.
    pub fn sight(&self) -> Option<Sight> {
        self.cluster.store().sight()
    }

    /// Whether the store can be written to.
    pub fn check_writable(&self) -> Result<(), ClusterError> {
        Ok(self.cluster.store().check_writable()?)
    }

    /// The time by which leases and back-offs are counted.
    pub fn now(&self) -> BootTime {
        BootTime { boot_id: self.host.boot_id.clone(), ms: boot_ms_now() }
    }

    /// The host's preferred engine.
    pub fn preferred_engine(&self) -> EngineKind {
        self.host.engines.first().copied().unwrap_or(EngineKind::Soft)
    }

    /// Which run of the daemon this is.
    pub fn instance(&self) -> &str {
        &self.host.instance
    }

    /// This host's name.
    pub fn host_name(&self) -> &HostName {
        &self.host.name
    }

    /// Waits until records or claims of VMs have changed after revision `since`, up to `timeout`; whether something may have changed.
    pub fn wait_for_vm_change(&self, since: u64, timeout: Duration) -> Result<bool, HostError> {
        Ok(self.cluster.wait_for_vm_change(since, timeout)?)
    }

    /// Everything, as of now.
    pub fn state(&self) -> Result<ClusterState, HostError> {
        Ok(self.cluster.state()?)
    }

    /// Reads the hosts again. VMs stay as they are.
    pub fn refresh_hosts(&self, state: &mut ClusterState) -> Result<(), HostError> {
        Ok(self.cluster.refresh_hosts(state)?)
    }

    /// All hosts whose lease is good.
    pub fn alive_hosts(&self) -> Result<Vec<Target>, HostError> {
        Ok(alive_hosts(&self.state()?, &self.now()))
    }

    /// Where a host's API listens; none if its lease has ended.
    pub fn alive_host(&self, name: &str) -> Result<Option<Target>, HostError> {
        Ok(self.alive_hosts()?.into_iter().find(|target| target.host == name))
    }

    /// The VM of that name, if there is one.
    pub fn vm(&self, name: &str) -> Result<Option<KnownVm>, HostError> {
        // A name that no VM can have is none's.
        let Ok(name) = name.parse::<VmName>() else { return Ok(None) };
        let record = match self.cluster.vm(&name) {
            Err(ClusterError::NoVm(_)) => return Ok(None),
            other => other?,
        };
        match self.cluster.claim(&name) {
            Err(ClusterError::NoVm(_)) => Ok(None),
            other => KnownVm::new(VmState { record, claim: other? }).map(Some),
        }
    }

    /// Keeps a new VM, whose disks are on this host. Refused if it can never run here.
    pub fn add_vm(&self, spec: &VmSpec, config: &HostConfig, created_unix_ms: u64) -> Result<(), HostError> {
        let ft = FtSettings {
            lag_ms_max: config.lag_ms_max,
            suspicion_ms_min: config.suspicion_ms_min,
            ..FtSettings::disabled(config.suspicion_ms, config.epoch_ms_max)
        };
        let name: VmName = spec.name.parse().map_err(ClusterError::from)?;
        // From now on the record says it.
        let text = to_toml(&VmSpec { protection: Protection::None, ..spec.clone() });
        let text = text.context("the spec cannot be written")?;
        let mut record = VmRecord::new(name, text, ft, created_unix_ms);
        record.ha.enabled = spec.protection == Protection::Ha;
        record.ft.enabled = spec.protection == Protection::Ft;
        self.cluster.create_vm(&record, &self.host.name)?;
        Ok(())
    }

    /// Keeps a VM under a name that no other has, with disks on this host.
    pub fn add_record(&self, record: &VmRecord) -> Result<(), HostError> {
        self.cluster.create_vm(record, &self.host.name)?;
        Ok(())
    }

    /// Whether this host can run a VM that is not there yet; if not, why.
    pub fn admit(&self, spec: &VmSpec) -> Result<(), HostError> {
        let name: VmName = spec.name.parse().map_err(ClusterError::from)?;
        let text = to_toml(spec).context("the spec cannot be written")?;
        let record = VmRecord::new(name, text, FtSettings::disabled(0, 0), 0);
        let claim = Claim { generation: Generation::NONE, primary: self.host.name.replica(), secondary: None };
        self.admit_primary(&VmState { record, claim: ClaimRecord::first(claim) }, false)
    }

    /// Whether this host can start a VM; if not, why. `from_stale_disks` allows it though another host had the VM last.
    pub fn admit_start(&self, vm: &KnownVm, from_stale_disks: bool) -> Result<(), HostError> {
        let name: VmName = vm.name.parse().map_err(ClusterError::from)?;
        let claim = self.cluster.claim(&name)?;
        self.admit_primary(&VmState { record: vm.record.clone(), claim }, from_stale_disks)
    }

    /// Whether this host can run a VM that is off with the spec that is given here; if not, why.
    pub fn admit_spec(&self, vm: &KnownVm) -> Result<(), HostError> {
        let claim = self.cluster.claim(&vm.record.name)?;
        let spec = to_toml(&vm.spec).context("the spec cannot be written")?;
        self.admit_primary(&VmState { record: VmRecord { spec: spec.into(), ..vm.record.clone() }, claim }, false)
    }

    fn admit_primary(&self, vm: &VmState, forced: bool) -> Result<(), HostError> {
        let state = self.state()?;
        // Only this host is asked about.
        let here = ClusterState {
            hosts: state.hosts.iter().filter(|host| host.name == self.host.name).cloned().collect(),
            ..state
        };
        place_primary(vm, &here, forced, &self.now())
            .map(drop)
            .map_err(|error| HostError::refused(format!("VM {} cannot run here: host {error}", vm.record.name)))
    }

    /// Whether this host can hold the secondary of a VM beside the VMs `held` of which replicas run here; if not, why. What
    /// other primaries merely plan to have here does not count: they are told the same.
    pub fn admit_secondary(&self, name: &str, held: &[String]) -> Result<(), HostError> {
        let mut state = self.state()?;
        let vm = state.vms.iter().find(|vm| *vm.record.name == *name).cloned();
        let vm = vm.ok_or_else(|| HostError::not_found(format!("there is no VM named {name}")))?;
        let here = &self.host.name;
        for other in &mut state.vms {
            let is_held = held.iter().any(|held| *other.record.name == **held);
            if is_held {
                other.record.syncing_to = Some(here.clone());
            } else if other.record.syncing_to.as_ref() == Some(here) && !other.record.ft.suspended {
                other.record.syncing_to = None;
            }
        }
        state.hosts.retain(|host| host.name == *here || host.name.is(&vm.claim.claim.primary));
        // Whether the guest's processor can be had here is told to the primary itself, which knows it.
        let (failures, now) = (Failures::default(), self.now());
        let basis = Basis { state: &state, failures: &failures, now: &now };
        match no_place(place_secondary(&vm, None, &basis), &vm) {
            Ok(_) => Ok(()),
            Err(why) => Err(HostError::refused(why)),
        }
    }

    /// Removes a VM. Fails if the claim has changed since `vm` was read.
    pub fn remove_vm(&self, vm: &KnownVm) -> Result<(), HostError> {
        Ok(self.cluster.delete_vm(&vm.record.name, Some(vm.claim.generation))?)
    }

    /// Of the VM of that name, if this version cannot make sense of it, what is known all the same.
    pub fn unreadable(&self, name: &str) -> Result<Option<UnreadableVm>, HostError> {
        let Ok(name) = name.parse::<VmName>() else { return Ok(None) };
        let Some(why) = self.cluster.unreadable_vm(&name)? else { return Ok(None) };
        let claim = match self.cluster.claim(&name) {
            Ok(record) => Some(record.claim),
            Err(ClusterError::NoVm(_) | ClusterError::Unreadable { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Some(UnreadableVm { name, why: why.to_string(), claim }))
    }

    /// Removes what is there of such a VM. A replica that is about to take it over either does so before, and this fails, or never.
    pub fn remove_unreadable(&self, vm: &UnreadableVm) -> Result<(), HostError> {
        Ok(self.cluster.delete_vm(&vm.name, vm.claim.as_ref().map(|claim| claim.generation))?)
    }

    /// Changes what is wanted of a VM.
    pub fn update(&self, name: &str, change: impl FnMut(&mut VmRecord)) -> Result<(), HostError> {
        let name: VmName = name.parse().map_err(ClusterError::from)?;
        self.cluster.update_vm(&name, change)?;
        Ok(())
    }

    /// Notes that a VM is to run, if its record does not say so.
    pub fn note_power_on(&self, name: &str) -> Result<(), HostError> {
        let is_noted = self.vm(name)?.is_some_and(|vm| vm.record.power == Power::On);
        if is_noted { Ok(()) } else { self.update(name, |record| record.power = Power::On) }
    }

    /// Refuses if another daemon serves the host now: one that stood still for longer than its lease does not know that yet when it goes on, and the claim names hosts
    /// only.
    fn require_own_host(&self) -> Result<(), HostError> {
        let registered = self.cluster.host(&self.host.name)?;
        if registered.instance == self.host.instance {
            Ok(())
        } else {
            Err(ClusterError::OtherInstance(registered.name).into())
        }
    }

    /// Makes this host the only one that may run the VM, under its run lease or not. Fails if the claim has changed since `vm` was read.
    pub fn claim_for_start(&self, vm: &KnownVm, under_lease: bool) -> Result<(), HostError> {
        self.require_own_host()?;
        let unreachable = |error: Unreachable| HostError::unreachable(error.to_string());
        let generation = vm.claim.generation.next();
        let claim = Claim { generation, primary: ReplicaId::new(self.host.name.as_str()), secondary: None };
        let arbiter = StoreArbiter::new(self.cluster.store().clone(), &vm.name);
        match arbiter.claim_for_start(vm.claim.generation, &claim, under_lease).map_err(unreachable)? {
            Verdict::Won => Ok(()),
            // Also to a claim that looks like this one: a secondary here asks for the same when it takes over. An answer that was lost is another matter, and is
            // the store's.
            Verdict::Lost(current) => Err(HostError::refused(format!(
                "VM {} was started or taken over by host {} meanwhile",
                vm.name, current.primary
            ))),
        }
    }

    /// The host that is to hold the secondary of a VM, or that it is to be moved to unless it is `protected` there; or why there is none. `processor` is what
    /// the guest was told its processors are, if it runs here.
    pub fn plan_secondary(
        &self,
        name: &str,
        protected: bool,
        processor: Option<&CpuProfile>,
        failures: &Failures,
    ) -> Result<Result<HostName, String>, HostError> {
        let state = self.state()?;
        let vm = name.parse::<VmName>().ok().and_then(|name| state.vm(&name));
        let vm = vm.ok_or_else(|| HostError::not_found(format!("there is no VM named {name}")))?;
        let basis = Basis { state: &state, failures, now: &self.now() };
        let mut vm = vm.clone();
        if protected {
            (vm.record.ft.enabled, vm.record.ft.suspended) = (true, false);
        }
        Ok(no_place(place_secondary(&vm, processor, &basis), &vm))
    }

    /// Whether `host` can hold the secondary of a VM; or why not.
    pub fn may_hold_secondary(
        &self,
        name: &str,
        host: &HostName,
        processor: Option<&CpuProfile>,
        failures: &Failures,
    ) -> Result<Result<(), String>, HostError> {
        let state = self.state()?;
        let vm = name.parse::<VmName>().ok().and_then(|name| state.vm(&name));
        let vm = vm.ok_or_else(|| HostError::not_found(format!("there is no VM named {name}")))?;
        let basis = Basis { state: &state, failures, now: &self.now() };
        Ok(no_place(may_hold_secondary(vm, host, processor, &basis), vm))
    }
}

/// Why there is no place for a secondary, in words.
fn no_place<T>(placed: Result<T, NoPlace>, vm: &VmState) -> Result<T, String> {
    placed.map_err(|error| match error {
        NoPlace::Hosts(refusals) => {
            // That the primary's host cannot be the secondary's is no news, unless there is no other.
            let others = refusals.iter().filter(|(host, _)| !host.is(&vm.claim.claim.primary));
            let words: Vec<String> = others.map(|(host, why)| format!("host {host} {why}")).collect();
            if words.is_empty() { "there is no other host".to_owned() } else { words.join("; ") }
        }
        other => other.to_string(),
    })
}

/// Hosts whose lease is good.
pub fn alive_hosts(state: &ClusterState, now: &BootTime) -> Vec<Target> {
    let alive = state.hosts.iter().filter(|host| host.is_alive(now));
    alive.map(|host| Target { host: host.name.to_string(), address: host.api_address }).collect()
}

/// VMs whose spec can be read.
pub fn known_vms(state: ClusterState) -> Vec<KnownVm> {
    let known = |vm: VmState| KnownVm::new(vm).inspect_err(|error| tracing::warn!("{error}")).ok();
    state.vms.into_iter().filter_map(known).collect()
}

/// Opens the cluster of a host; an etcd only if it has not gone back behind what the host has seen of it.
///
/// # Errors
/// Also if there is none under the name that the address of its etcd ends with: nothing but that name tells it from another one, or from an empty one.
pub fn open_cluster(config: &HostConfig, sight: Option<Sight>) -> Result<Cluster> {
    let nearest = config.store.nearest_first();
    let cluster = Cluster::new(Stores::open_after(&nearest, config.store_keys.as_ref(), sight)?);
    if let StoreLocation::Etcd(address) = &config.store
        && !cluster.is_made()?
    {
        bail!(
            "{}: there is no cluster with the name {}: look at the name at the end of the store's address, as in etcd://HOST:PORT/NAME",
            config.store,
            address.name
        );
    }
    Ok(cluster)
}

/// Engines that run here, the faster one first.
fn engines() -> Vec<EngineKind> {
    let report = probe();
    let mut engines = vec![report.auto];
    let others = report.engines.iter().filter(|engine| engine.mips.is_some() && engine.engine != report.auto);
    engines.extend(others.map(|engine| engine.engine));
    engines
}

/// An ID that no VM has had.
///
/// # Errors
/// If the host gives no random bytes.
pub fn random_vm_id() -> Result<VmId> {
    Ok(read_id("/proc/sys/kernel/random/uuid")?.parse()?)
}

/// An identifier that the kernel gives.
fn read_id(path: &str) -> Result<String> {
    let id = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(id.trim().to_owned())
}

/// Makes sure that the instance of a host that was registered before this one has ended.
fn wait_until_ended(cluster: &Cluster, before: &HostRecord, host: &HostRecord) -> Result<()> {
    let (mut found, started) = (before.clone(), Instant::now());
    loop {
        let now = BootTime { boot_id: host.boot_id.clone(), ms: boot_ms_now() };
        match succession(before, &found, host, &now, started.elapsed()) {
            Succession::Register => return Ok(()),
            Succession::Wait => thread::sleep(LOOK_INTERVAL),
            Succession::Refused => bail!(
                "host {} runs already, from folder {}: give this one keys of its own with `twinvm host issue`",
                host.name,
                found.folder.display()
            ),
        }
        match cluster.host(&host.name) {
            Ok(now) => found = now,
            Err(ClusterError::NoHost(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
