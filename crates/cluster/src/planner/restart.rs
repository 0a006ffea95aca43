use std::cmp::Reverse;
use std::collections::BTreeSet;

use spec::{HostName, Priority, SpecError, VmName};

use super::demand::{Demand, Room};
use super::placement::check_offer;
use super::{Basis, Failures, NoPlace, WhyNot};
use crate::records::{BootTime, HostRecord, Power, VmState};

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
        Ok(Self { vm, priority: vm.record.spec.read()?.priority, demand: Demand::of(&vm.record)? })
    }
}

/// Whether a VM has lost its host, so that others may start it: it is to run, ran under the run lease of its host, and that lease has ended, or the host has
/// given it up. Its host has stopped it by then, whatever else may have become of that host.
pub fn has_lost_its_host(vm: &VmState, basis: &Basis<'_>) -> bool {
    let claim = &vm.claim;
    vm.record.ha.enabled
        && vm.record.power == Power::On
        && claim.under_lease
        && claim.claim.secondary.is_none()
        // Last, as it has to be looked up.
        && (claim.given_up || !basis.state.run_leases.contains(claim.claim.primary.as_str()))
}

/// Where all VMs that have lost their hosts are restarted: those of the highest priority first, then those that need most memory, then by name. Each gets the
/// host that has failed least lately with it, and of those the one with the largest part of its memory free. Whoever plans from the same state comes to the same.
pub fn place_restarts(basis: &Basis<'_>) -> Restarts {
    let vms = basis.state.vms.iter().filter(|vm| has_lost_its_host(vm, basis));
    let lost: Vec<Lost<'_>> = vms.filter_map(|vm| Lost::of(vm).ok()).collect();
    if lost.is_empty() { Restarts::default() } else { Takers::of(basis).place(lost) }
}

/// Whether `host` can restart a VM that has lost its host.
///
/// # Errors
/// [`NoPlace`], with the reason.
pub fn may_restart(vm: &VmState, host: &HostName, basis: &Basis<'_>) -> Result<(), NoPlace> {
    let demand = Demand::of(&vm.record)?;
    let refused = |why| NoPlace::Hosts(vec![(host.clone(), why)]);
    let record = basis.state.host(host).ok_or_else(|| refused(WhyNot::NotRegistered))?;
    let taker = Taker { host: record, has_run_lease: basis.state.run_leases.contains(host) };
    Takers::of(basis).check(taker, vm, &demand).map_err(refused)
}

/// A host that may restart VMs.
#[derive(Clone, Copy)]
pub(super) struct Taker<'a> {
    pub(super) host: &'a HostRecord,
    pub(super) has_run_lease: bool,
}

/// The hosts that may restart VMs, and what is left on them.
pub(super) struct Takers<'a> {
    /// The hosts.
    pub(super) hosts: Vec<Taker<'a>>,
    /// What is left on them.
    pub(super) room: Room,
    /// What they have failed at lately.
    pub(super) failures: &'a Failures,
    /// The time.
    pub(super) now: &'a BootTime,
}

/// Hosts by the part of their memory that is free, the largest first, then by name; each with its place in [`Takers::hosts`].
type ByRoom<'a> = BTreeSet<(Reverse<u64>, &'a HostName, usize)>;

impl<'a> Takers<'a> {
    fn of(basis: &Basis<'a>) -> Self {
        let Basis { state, failures, now } = *basis;
        let taker = |host: &'a HostRecord| Taker { host, has_run_lease: state.run_leases.contains(&host.name) };
        Self { hosts: state.hosts.iter().map(taker).collect(), room: Room::of(state), failures, now }
    }

    /// Finds a place for each of these VMs, in the order in which they are restarted.
    pub(super) fn place(mut self, mut lost: Vec<Lost<'_>>) -> Restarts {
        lost.sort_by_cached_key(|lost| (lost.priority, Reverse(lost.demand.memory_bytes), lost.vm.record.name.clone()));
        let key = |room: &Room, (index, taker): (usize, &Taker<'a>)| {
            (Reverse(room.free_per_mille(taker.host)), &taker.host.name, index)
        };
        let mut by_room: ByRoom<'a> = self.hosts.iter().enumerate().map(|it| key(&self.room, it)).collect();
        let mut restarts = Restarts::default();
        for Lost { vm, demand, .. } in lost {
            let name = vm.record.name.clone();
            let Some((index, taker)) = self.find(&by_room, vm, &demand) else {
                restarts.refused.push((name, self.refusals(vm, &demand)));
                continue;
            };
            by_room.remove(&key(&self.room, (index, &taker)));
            self.room.take(&taker.host.name, &demand);
            by_room.insert(key(&self.room, (index, &taker)));
            restarts.placed.push((name, taker.host.name.clone()));
        }
        restarts
    }

    /// The host that a VM gets. Where none has failed, that is the first that can take it.
    fn find(&self, by_room: &ByRoom<'a>, vm: &VmState, demand: &Demand) -> Option<(usize, Taker<'a>)> {
        let mut least: Option<(u32, usize, Taker<'a>)> = None;
        for (_, name, index) in by_room {
            let taker = *self.hosts.get(*index)?;
            let failure = self.failures.of(&vm.record.name, name, self.now.ms);
            let failed = failure.map_or(0, |failure| failure.count);
            if least.is_none_or(|(count, ..)| failed < count) && self.check(taker, vm, demand).is_ok() {
                least = Some((failed, *index, taker));
                if failed == 0 {
                    break;
                }
            }
        }
        least.map(|(_, index, taker)| (index, taker))
    }

    /// Why no host can take a VM.
    fn refusals(&self, vm: &VmState, demand: &Demand) -> Vec<(HostName, WhyNot)> {
        let why = |taker: &Taker<'a>| Some((taker.host.name.clone(), self.check(*taker, vm, demand).err()?));
        self.hosts.iter().filter_map(why).collect()
    }

    /// What the restart of a VM asks of a host.
    fn check(&self, Taker { host, has_run_lease }: Taker<'_>, vm: &VmState, demand: &Demand) -> Result<(), WhyNot> {
        check_offer(host, demand, self.now)?;
        if !has_run_lease {
            return Err(WhyNot::NoRunLease);
        }
        self.room.check(host, demand)?;
        match self.failures.of(&vm.record.name, &host.name, self.now.ms) {
            Some(failure) if failure.retry_ms() > self.now.ms => Err(WhyNot::FailedLately {
                count: failure.count,
                message: failure.message.clone(),
                retry_in_ms: failure.retry_ms() - self.now.ms,
            }),
            _ => Ok(()),
        }
    }
}
