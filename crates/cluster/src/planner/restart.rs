use std::cmp::Reverse;

use spec::{HostName, Priority, SpecError, VmName};

use super::demand::{Demand, Room};
use super::placement::check_offer;
use super::{Basis, NoPlace, WhyNot};
use crate::records::{HostRecord, Power, VmState};

/// Where VMs are restarted that have lost their host, in the order in which they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    /// Those for which there is a host, which is named.
    pub placed: Vec<(VmName, HostName)>,
    /// Those for which there is none, each host with its reason.
    pub refused: Vec<(VmName, Vec<(HostName, WhyNot)>)>,
}

/// A VM that is to be restarted, and what it needs.
pub(super) struct Lost<'a> {
    vm: &'a VmState,
    priority: Priority,
    demand: Demand,
}

impl<'a> Lost<'a> {
    /// Fails for one whose spec cannot be read: it cannot be started either.
    pub(super) fn of(vm: &'a VmState) -> Result<Self, SpecError> {
        Ok(Self { vm, priority: vm.record.vm_spec()?.priority, demand: Demand::of(&vm.record)? })
    }
}

/// Whether a VM has lost its host, so that others may start it: it is to run, ran under the run lease of its host, and that lease has ended, or the host has
/// given it up. Its host has stopped it by then, whatever else may have become of that host.
pub fn has_lost_its_host(vm: &VmState, basis: &Basis<'_>) -> bool {
    let claim = &vm.claim;
    let holds_lease = basis.state.run_leases.contains(claim.claim.primary.as_str());
    vm.record.ha.enabled
        && vm.record.power == Power::On
        && claim.under_lease
        && claim.claim.secondary.is_none()
        && (!holds_lease || claim.given_up)
}

/// Where all VMs that have lost their hosts are restarted: those of the highest priority first, then those that need most memory, then by name. Each gets the
/// host that has failed least lately with it, and of those the one with the largest part of its memory free. Whoever plans from the same state comes to the same.
pub fn place_restarts(basis: &Basis<'_>) -> Restarts {
    let vms = basis.state.vms.iter().filter(|vm| has_lost_its_host(vm, basis));
    let lost: Vec<Lost<'_>> = vms.filter_map(|vm| Lost::of(vm).ok()).collect();
    if lost.is_empty() { Restarts::default() } else { place_lost(lost, &mut Room::of(basis.state), basis) }
}

/// The same for VMs that are given, into what room is left.
pub(super) fn place_lost(mut lost: Vec<Lost<'_>>, room: &mut Room, basis: &Basis<'_>) -> Restarts {
    lost.sort_by_key(|lost| (lost.priority, Reverse(lost.demand.memory_bytes), lost.vm.record.name.clone()));
    let mut restarts = Restarts::default();
    for Lost { vm, demand, .. } in lost {
        let name = vm.record.name.clone();
        match place(vm, &demand, room, basis) {
            Ok(host) => {
                room.take(&host.name, &demand);
                restarts.placed.push((name, host.name.clone()));
            }
            Err(refusals) => restarts.refused.push((name, refusals)),
        }
    }
    restarts
}

/// Whether `host` can restart a VM that has lost its host.
///
/// # Errors
/// [`NoPlace`], with the reason.
pub fn may_restart(vm: &VmState, host: &HostName, basis: &Basis<'_>) -> Result<(), NoPlace> {
    let demand = Demand::of(&vm.record)?;
    let refused = |why| NoPlace::Hosts(vec![(host.clone(), why)]);
    let record = basis.state.host(host).ok_or_else(|| refused(WhyNot::NotRegistered))?;
    check_restart(record, vm, &demand, &Room::of(basis.state), basis).map_err(refused)
}

fn place<'a>(
    vm: &VmState,
    demand: &Demand,
    room: &Room,
    basis: &Basis<'a>,
) -> Result<&'a HostRecord, Vec<(HostName, WhyNot)>> {
    let failed = |host: &HostRecord| {
        basis.failures.of(&vm.record.name, &host.name, basis.now.ms).map_or(0, |failure| failure.count)
    };
    let (mut fitting, mut refusals) = (Vec::new(), Vec::new());
    for host in &basis.state.hosts {
        match check_restart(host, vm, demand, room, basis) {
            Ok(()) => fitting.push(host),
            Err(why) => refusals.push((host.name.clone(), why)),
        }
    }
    let order = |host: &&HostRecord| (failed(host), Reverse(room.free_per_mille(host)), host.name.clone());
    fitting.into_iter().min_by_key(order).ok_or(refusals)
}

/// What the restart of a VM asks of a host.
fn check_restart(
    host: &HostRecord,
    vm: &VmState,
    demand: &Demand,
    room: &Room,
    basis: &Basis<'_>,
) -> Result<(), WhyNot> {
    check_offer(host, demand, basis.now)?;
    if !basis.state.run_leases.contains(&host.name) {
        return Err(WhyNot::NoRunLease);
    }
    room.check(host, demand)?;
    match basis.failures.of(&vm.record.name, &host.name, basis.now.ms) {
        Some(failure) if failure.retry_ms() > basis.now.ms => Err(WhyNot::FailedLately {
            count: failure.count,
            message: failure.message.clone(),
            retry_in_ms: failure.retry_ms() - basis.now.ms,
        }),
        _ => Ok(()),
    }
}
