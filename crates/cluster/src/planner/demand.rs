use std::collections::BTreeMap;

use spec::{
    CpuLevel, CpuProfile, DatastoreName, EngineChoice, EngineKind, HostName, NetworkSpec, ReplicaId, SpecError,
};

use super::WhyNot;
use crate::records::{ClusterState, HostRecord, Power, VmRecord, VmState};

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
        let spec = vm.spec.read()?;
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
            datastores: spec.disks.iter().filter_map(|disk| disk.datastore.clone()).collect(),
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

/// What is left on each host beside what is reserved there, by primaries, secondaries and first copies of VMs that are to run.
#[derive(Clone, Debug, Default)]
pub struct Room {
    reserved: BTreeMap<HostName, Reserved>,
}

impl Room {
    /// What is left in this state.
    pub fn of(state: &ClusterState) -> Self {
        let mut room = Self::default();
        state.vms.iter().for_each(|vm| room.hold(vm));
        room
    }

    /// The same, without what one VM has reserved.
    pub fn without(state: &ClusterState, vm: &VmState) -> Self {
        let mut room = Self::of(state);
        if let Some(known) = state.vm(&vm.record.name) {
            room.release(known);
        }
        room
    }

    /// Reserves what a VM has reserved on its hosts, if it is to run.
    pub fn hold(&mut self, vm: &VmState) {
        self.change(vm, Reserved::plus);
    }

    /// Gives back what a VM has reserved on its hosts.
    pub fn release(&mut self, vm: &VmState) {
        self.change(vm, Reserved::minus);
    }

    fn change(&mut self, vm: &VmState, change: fn(Reserved, Reserved) -> Reserved) {
        // One that cannot be read cannot be started either.
        let (Power::On, Ok(spec)) = (vm.record.power, vm.record.spec.read()) else { return };
        let needed = Reserved { memory_bytes: spec.memory.bytes(), cpus: spec.cpus };
        let claim = &vm.claim.claim;
        let promised =
            [vm.record.syncing_to.as_ref(), vm.record.migrates_to(claim)].map(|host| host.map(HostName::as_str));
        let replicas = [Some(&claim.primary), claim.secondary.as_ref()].map(|id| id.map(ReplicaId::as_str));
        let hosts: [Option<&str>; 4] = [replicas[0], replicas[1], promised[0], promised[1]];
        for (number, host) in hosts.iter().enumerate() {
            let is_first = !hosts.iter().take(number).any(|earlier| earlier == host);
            if let (Some(host), true) = (host, is_first) {
                self.change_on(host, |reserved| change(reserved, needed));
            }
        }
    }

    fn change_on(&mut self, host: &str, change: impl FnOnce(Reserved) -> Reserved) {
        if let Some(reserved) = self.reserved.get_mut(host) {
            *reserved = change(*reserved);
        } else if let Ok(name) = HostName::try_from(host.to_owned()) {
            self.reserved.insert(name, change(Reserved::default()));
        }
    }

    /// Reserves what a replica needs.
    pub fn take(&mut self, host: &HostName, demand: &Demand) {
        let needed = Reserved { memory_bytes: demand.memory_bytes, cpus: demand.cpus };
        self.change_on(host, |reserved| reserved.plus(needed));
    }

    /// What is reserved on a host.
    pub fn reserved(&self, host: &HostName) -> Reserved {
        self.reserved.get(host).copied().unwrap_or_default()
    }

    /// Whether a host has what a replica needs.
    ///
    /// # Errors
    /// What there is too little of.
    pub fn check(&self, host: &HostRecord, demand: &Demand) -> Result<(), WhyNot> {
        self.reserved(&host.name).check(host, demand)
    }

    /// What is free on a host: memory in bytes, and vCPUs.
    pub fn free(&self, host: &HostRecord) -> (u64, u32) {
        let reserved = self.reserved(&host.name);
        (host.memory_bytes.saturating_sub(reserved.memory_bytes), host.cpus.saturating_sub(reserved.cpus))
    }

    /// The part of a host's memory that is free, in thousandths.
    pub fn free_per_mille(&self, host: &HostRecord) -> u64 {
        let free = u128::from(self.free(host).0) * 1000;
        u64::try_from(free / u128::from(host.memory_bytes.max(1))).unwrap_or(1000)
    }
}

impl Reserved {
    fn plus(self, more: Self) -> Self {
        let memory_bytes = self.memory_bytes.saturating_add(more.memory_bytes);
        Self { memory_bytes, cpus: self.cpus.saturating_add(more.cpus) }
    }

    fn minus(self, less: Self) -> Self {
        let memory_bytes = self.memory_bytes.saturating_sub(less.memory_bytes);
        Self { memory_bytes, cpus: self.cpus.saturating_sub(less.cpus) }
    }

    /// Whether a host of which this is reserved has what a replica needs.
    fn check(self, host: &HostRecord, demand: &Demand) -> Result<(), WhyNot> {
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
