use spec::{CpuLevel, CpuProfile, EngineChoice, EngineKind, HostName, NetworkSpec, SpecError, VmName, VmSpec};

use crate::records::{ClusterState, Power, VmRecord};

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
