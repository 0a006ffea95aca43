use std::collections::BTreeSet;

use spec::{HostName, VmName};

use super::demand::{Demand, Room};
use super::restart::{Lost, place_lost};
use super::{Basis, Failures, WhyNot};
use crate::records::{BootTime, ClusterState, DatastoreKind, Power, VmState};

/// What becomes of VMs when some hosts are lost at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AfterLoss {
    /// Fault tolerant ones that run on a lost host, and go on at once on the host that is named.
    pub go_on: Vec<(VmName, HostName)>,
    /// Fault tolerant ones that run on, and lose their secondary.
    pub lose_secondary: Vec<VmName>,
    /// Those that are restarted, in that order, on the hosts that are named.
    pub restart: Vec<(VmName, HostName)>,
    /// Those that should be restarted and cannot be: why not, for each host that is left.
    pub not_restarted: Vec<(VmName, Vec<(HostName, WhyNot)>)>,
    /// Those that nothing protects, or no more than their lost hosts did: they are off until a host is back.
    pub end: Vec<VmName>,
}

impl AfterLoss {
    /// Whether all that should be restarted can be.
    pub fn is_covered(&self) -> bool {
        self.not_restarted.is_empty()
    }
}

/// What becomes of all VMs of `state` when `lost` hosts are lost at once, and all others stay as they are. VMs for which high availability is wanted count as if they
/// had been started under a lease.
pub fn after_loss(state: &ClusterState, lost: &BTreeSet<HostName>, now: &BootTime) -> AfterLoss {
    let mut after = AfterLoss::default();
    let mut left = ClusterState { vms: Vec::new(), ..state.clone() };
    left.hosts.retain(|host| !lost.contains(&host.name));
    left.run_leases = left.hosts.iter().filter(|host| host.is_alive(now)).map(|host| host.name.clone()).collect();
    let is_lost = |replica: &spec::ReplicaId| lost.iter().any(|host| host.is(replica));
    let mut restarts: Vec<&VmState> = Vec::new();
    for vm in state.vms.iter().filter(|vm| vm.record.power == Power::On) {
        let (name, claim) = (vm.record.name.clone(), &vm.claim.claim);
        let secondary = claim.secondary.as_ref();
        match (is_lost(&claim.primary), secondary.is_some_and(is_lost)) {
            (false, false) => left.vms.push(vm.clone()),
            (false, true) => {
                after.lose_secondary.push(name);
                let mut alone = vm.clone();
                alone.claim.claim.secondary = None;
                left.vms.push(alone);
            }
            (true, false) => match secondary.and_then(|id| HostName::try_from(id.as_str().to_owned()).ok()) {
                Some(host) => {
                    after.go_on.push((name, host.clone()));
                    let mut taken_over = vm.clone();
                    (taken_over.claim.claim.primary, taken_over.claim.claim.secondary) = (host.replica(), None);
                    left.vms.push(taken_over);
                }
                None if is_restartable(vm, state) => restarts.push(vm),
                None => after.end.push(name),
            },
            (true, true) if is_restartable(vm, state) => restarts.push(vm),
            (true, true) => after.end.push(name),
        }
    }
    let failures = Failures::default();
    let basis = Basis { state: &left, failures: &failures, now };
    let demands = restarts.into_iter().filter_map(|vm| Lost::of(vm).ok()).collect();
    let placed = place_lost(demands, &mut Room::of(&left), &basis);
    after.restart = placed.placed;
    after.not_restarted = placed.refused;
    after
}

/// Whether a VM is one that others restart: its disks are where they reach them.
fn is_restartable(vm: &VmState, state: &ClusterState) -> bool {
    let is_shared = |demand: Demand| {
        demand.datastores.iter().all(|name| state.datastore(name).is_some_and(|it| it.kind == DatastoreKind::Shared))
    };
    vm.record.ha.enabled && Demand::of(&vm.record).is_ok_and(is_shared)
}
