use std::collections::BTreeMap;

use spec::{
    CpuLevel, CpuProfile, DatastoreName, EngineChoice, EngineKind, HostName, NetworkSpec, SpecError, VmName, VmSpec,
};

use super::WhyNot;
use crate::records::{ClusterState, HostRecord, Power, VmRecord};

/// What a replica of a VM needs of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Memory: all of the guest's, for either role.
    pub memory_bytes: u64,
    /// vCPUs, for either role: a secondary must be able to run the VM at any moment.
    pub cpus: u32,
    /// The engine; none if any will do.
    pub engine: Option<EngineKind>,
    /// How much of a processor the guest gets at power-on.
    pub cpu_level: CpuLevel,
    /// What a guest that runs was told that its processors are, if that is known.
    pub processor: Option<CpuProfile>,
    /// Bridges that its cards are connected to.
    pub bridges: Vec<String>,
    /// Datastores that its disks are on.
    pub datastores: Vec<DatastoreName>,
    /// Whether it has cards on user-mode networks, whose connections exist on one machine only.
    pub user_network: bool,
}

impl Demand {
    /// What a VM needs at power-on.
    ///
    /// # Errors
    /// If its spec is not one that this version understands.
    pub fn of(vm: &VmRecord) -> Result<Self, SpecError> {
        let spec: VmSpec = vm.vm_spec()?;
        let engine = vm.engine.or(match spec.engine_choice() {
            EngineChoice::Auto => None,
            EngineChoice::Kvm => Some(EngineKind::Kvm),
            EngineChoice::Soft => Some(EngineKind::Soft),
        });
        let mut bridges = Vec::new();
        let mut user_network = false;
        for card in &spec.networks {
            match card {
                NetworkSpec::User(_) => user_network = true,
                NetworkSpec::Bridge(bridge) => bridges.push(bridge.bridge.clone()),
            }
        }
        Ok(Self {
            memory_bytes: spec.memory.bytes(),
            cpus: spec.cpus,
            engine,
            cpu_level: spec.cpu,
            processor: None,
            bridges,
            datastores: spec.disks.into_iter().filter_map(|disk| disk.datastore).collect(),
            user_network,
        })
    }
}

/// What the VMs placed on a host have reserved there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Memory.
    pub memory_bytes: u64,
    /// vCPUs.
    pub cpus: u32,
}

/// What is left on each host beside what is reserved there.
#[derive(Clone, Debug, Default)]
pub struct Room {
    reserved: BTreeMap<HostName, Reserved>,
}

impl Room {
    /// What is left in this state.
    pub fn of(state: &ClusterState) -> Self {
        let mut room = Self::default();
        for vm in state.vms.iter().filter(|vm| vm.record.power == Power::On) {
            // One that cannot be read cannot be started either.
            let Ok(demand) = Demand::of(&vm.record) else { continue };
            let claim = &vm.claim.claim;
            let replicas = std::iter::once(&claim.primary).chain(&claim.secondary);
            let named = replicas.filter_map(|id| HostName::try_from(id.as_str().to_owned()).ok());
            let promised = vm.record.syncing_to.iter().chain(vm.record.migrates_to(claim)).cloned();
            let mut hosts: Vec<HostName> = named.chain(promised).collect();
            hosts.sort_unstable();
            hosts.dedup();
            hosts.iter().for_each(|host| room.take(host, &demand));
        }
        room
    }

    /// Reserves what a replica needs.
    pub fn take(&mut self, host: &HostName, demand: &Demand) {
        let reserved = self.reserved.entry(host.clone()).or_default();
        reserved.memory_bytes = reserved.memory_bytes.saturating_add(demand.memory_bytes);
        reserved.cpus = reserved.cpus.saturating_add(demand.cpus);
    }

    /// Whether a host has what a replica needs.
    ///
    /// # Errors
    /// What there is too little of.
    pub fn check(&self, host: &HostRecord, demand: &Demand) -> Result<(), WhyNot> {
        self.reserved.get(&host.name).copied().unwrap_or_default().check(host, demand)
    }

    /// What is free on a host: memory in bytes, and vCPUs.
    pub fn free(&self, host: &HostRecord) -> (u64, u32) {
        let reserved = self.reserved.get(&host.name).copied().unwrap_or_default();
        (host.memory_bytes.saturating_sub(reserved.memory_bytes), host.cpus.saturating_sub(reserved.cpus))
    }

    /// The part of a host's memory that is free, in thousandths.
    pub fn free_per_mille(&self, host: &HostRecord) -> u64 {
        let free = u128::from(self.free(host).0) * 1000;
        u64::try_from(free / u128::from(host.memory_bytes.max(1))).unwrap_or(1000)
    }
}

impl Reserved {
    /// Whether a host of which this is reserved has what a replica needs.
    pub(super) fn check(self, host: &HostRecord, demand: &Demand) -> Result<(), WhyNot> {
        let free_bytes = host.memory_bytes.saturating_sub(self.memory_bytes);
        if free_bytes < demand.memory_bytes {
            return Err(WhyNot::TooLittleMemory { needed_bytes: demand.memory_bytes, free_bytes });
        }
        let free = host.cpus.saturating_sub(self.cpus);
        if free < demand.cpus {
            return Err(WhyNot::TooFewCpus { needed: demand.cpus, free });
        }
        Ok(())
    }
}

/// What is reserved on a host, by primaries, secondaries and first copies of VMs that are to run; `except` one, if it is named.
pub fn reserved(state: &ClusterState, host: &HostName, except: Option<&VmName>) -> Reserved {
    let mut sum = Reserved::default();
    for vm in &state.vms {
        let claim = &vm.claim.claim;
        let is_here = host.is(&claim.primary)
            || claim.secondary.as_ref().is_some_and(|secondary| host.is(secondary))
            || vm.record.syncing_to.as_ref() == Some(host)
            || vm.record.migrates_to(claim) == Some(host);
        if !is_here || vm.record.power == Power::Off || except == Some(&vm.record.name) {
            continue;
        }
        // One that cannot be read cannot be started either.
        if let Ok(demand) = Demand::of(&vm.record) {
            sum.memory_bytes = sum.memory_bytes.saturating_add(demand.memory_bytes);
            sum.cpus = sum.cpus.saturating_add(demand.cpus);
        }
    }
    sum
}
