use std::collections::{BTreeMap, BTreeSet};

use spec::{HostName, ReplicaId, VmName};

use super::demand::{Demand, Room};
use super::restart::{Lost, Taker, Takers};
use super::{Failures, WhyNot};
use crate::records::{BootTime, ClusterState, DatastoreKind, Power, VmState};

/// What hosts have failed at lately is theirs to know.
static NO_FAILURES: Failures = Failures::NONE;

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
    Losses::of(state).after(lost, now)
}

/// A cluster of which losses are tried, one after the other: what all of them need is found out once.
pub(super) struct Losses<'a> {
    state: &'a ClusterState,
    room: Room,
    /// The VMs that are to run, by the hosts of their replicas, and in the order of `state`.
    of_host: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> Losses<'a> {
    pub(super) fn of(state: &'a ClusterState) -> Self {
        let mut of_host: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, vm) in state.vms.iter().enumerate().filter(|(_, vm)| vm.record.power == Power::On) {
            let claim = &vm.claim.claim;
            for replica in std::iter::once(&claim.primary).chain(&claim.secondary) {
                of_host.entry(replica.as_str()).or_default().push(index);
            }
        }
        Self { state, room: Room::of(state), of_host }
    }

    /// What becomes of all VMs when these hosts are lost.
    pub(super) fn after(&self, lost: &BTreeSet<HostName>, now: &BootTime) -> AfterLoss {
        let mut after = AfterLoss::default();
        let is_lost = |replica: &ReplicaId| lost.contains(replica.as_str());
        let concerned: BTreeSet<usize> =
            lost.iter().filter_map(|host| self.of_host.get(host.as_str())).flatten().copied().collect();
        let mut ended: Vec<&VmState> = Vec::new();
        for vm in concerned.into_iter().filter_map(|index| self.state.vms.get(index)) {
            let (name, claim) = (vm.record.name.clone(), &vm.claim.claim);
            let secondary = claim.secondary.as_ref();
            match (is_lost(&claim.primary), secondary.is_some_and(is_lost)) {
                (false, _) => after.lose_secondary.push(name),
                (true, false) => match secondary.and_then(|id| HostName::try_from(id.as_str().to_owned()).ok()) {
                    Some(host) => after.go_on.push((name, host)),
                    None => ended.push(vm),
                },
                (true, true) => ended.push(vm),
            }
        }
        let (restarts, ends): (Vec<&VmState>, Vec<&VmState>) =
            ended.iter().copied().partition(|vm| is_restartable(vm, self.state));
        after.end = ends.into_iter().map(|vm| vm.record.name.clone()).collect();
        let restarts: Vec<Lost<'_>> = restarts.into_iter().filter_map(|vm| Lost::of(vm).ok()).collect();
        if !restarts.is_empty() {
            let placed = self.takers(lost, &ended, now).place(restarts);
            (after.restart, after.not_restarted) = (placed.placed, placed.refused);
        }
        after
    }

    /// The hosts that are left. What these VMs had reserved is free, where it was promised on such a host, as for a first copy; what else was reserved on hosts
    /// that are lost is not looked at any more.
    fn takers<'b>(&'b self, lost: &BTreeSet<HostName>, ended: &[&VmState], now: &'b BootTime) -> Takers<'b> {
        let mut room = self.room.clone();
        ended.iter().for_each(|vm| room.release(vm));
        let left = self.state.hosts.iter().filter(|host| !lost.contains(&host.name));
        let hosts = left.map(|host| Taker { host, has_run_lease: host.is_alive(now) }).collect();
        Takers { hosts, room, failures: &NO_FAILURES, now }
    }
}

/// Whether a VM is one that others restart: its disks are where they reach them.
fn is_restartable(vm: &VmState, state: &ClusterState) -> bool {
    let is_shared = |demand: Demand| {
        demand.datastores.iter().all(|name| state.datastore(name).is_some_and(|it| it.kind == DatastoreKind::Shared))
    };
    vm.record.ha.enabled && Demand::of(&vm.record).is_ok_and(is_shared)
}
