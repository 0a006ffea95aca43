//! Which VMs a host restarts: those at home here whose replica is gone, and those that have lost their host and have their place here.

use std::collections::{BTreeMap, BTreeSet};

use spec::{HostName, Priority, VmName};

use super::action::{Action, Outcome, Planned, Why};
use super::idle::Idle;
use super::report::HostReport;
use crate::planner::{Basis, has_lost_its_host};
use crate::records::{Power, VmState};

/// How often a VM is restarted at home within [`BUDGET_SPAN_MS`]: one that ends again and again is left for somebody to look at.
pub const RESTARTS_MAX: usize = 3;
/// The time in which restarts are counted, in ms.
pub const BUDGET_SPAN_MS: u64 = 600_000;
/// How long a host has held its run lease without a break when a VM's end counts against the VM, in ms. One that ended with the lease has done nothing wrong.
const STEADY_MS_MIN: u64 = 5_000;
/// How many restarts a host has under way at a time.
const AT_ONCE_MAX: usize = 4;
/// How long a host has held its own run lease without a break until it starts what others ran, in ms: where all have lost the store, each is to find its own VMs
/// before others do.
const HELD_MS_MIN: u64 = 2_000;
/// How long a host may take to begin with the restarts that are its, in ms, before others count that as a failure of it. Each knows only of its own attempts: were
/// one that has failed to wait for others, who wait for it, nobody would start the VM.
const TURN_MS: u64 = 10_000;

/// What is remembered of restarts.
#[derive(Clone, Debug, Default)]
pub(super) struct Restarting {
    /// Those under way, and whether each is counted.
    busy: BTreeMap<VmName, (Priority, bool)>,
    /// When each VM was restarted at home, in ms.
    at_home_ms: BTreeMap<VmName, Vec<u64>>,
    /// VMs that are another host's to restart, and since when that host has begun with none, in ms.
    awaited: BTreeMap<VmName, (HostName, u64)>,
}

/// A VM that could be restarted here now.
struct Candidate {
    priority: Priority,
    vm: VmName,
    why: Why,
}

impl Restarting {
    /// What is restarted now, and what is not, with the reason. Those of one priority are begun when all of a higher one have been. `placed` is where VMs that
    /// have lost their hosts have their places.
    pub(super) fn next(
        &mut self,
        seen: &HostReport,
        placed: &[(VmName, HostName)],
        basis: &Basis<'_>,
    ) -> (Vec<Planned>, Vec<(VmName, Idle)>) {
        let (mut candidates, idle) = self.at_home(seen, basis);
        candidates.extend(self.of_others(seen, placed, basis));
        candidates.sort_by(|a, b| (a.priority, &a.vm).cmp(&(b.priority, &b.vm)));
        let first =
            self.busy.values().map(|(priority, _)| *priority).chain(candidates.iter().map(|it| it.priority)).min();
        let free = AT_ONCE_MAX.saturating_sub(self.busy.len());
        let begun = candidates.into_iter().filter(|it| Some(it.priority) == first).take(free);
        let begun: Vec<Planned> = begun
            .map(|Candidate { priority, vm, why }| {
                let (on, at_home) = (seen.host.clone(), why == Why::ReplicaGone);
                let is_steady = seen.run_lease_ms.is_some_and(|held_ms| held_ms >= STEADY_MS_MIN);
                self.busy.insert(vm.clone(), (priority, at_home && is_steady));
                Planned { vm, action: Action::Restart { on, at_home }, why }
            })
            .collect();
        (begun, idle)
    }

    fn at_home(&mut self, seen: &HostReport, basis: &Basis<'_>) -> (Vec<Candidate>, Vec<(VmName, Idle)>) {
        let (mut candidates, mut idle) = (Vec::new(), Vec::new());
        let now_ms = basis.now.ms;
        if seen.is_stopping || seen.run_lease_ms.is_none() {
            return (candidates, idle);
        }
        self.at_home_ms.retain(|vm, at_ms| {
            at_ms.retain(|at_ms| now_ms.saturating_sub(*at_ms) < BUDGET_SPAN_MS);
            !at_ms.is_empty() && basis.state.vm(vm).is_some_and(|vm| vm.record.power == Power::On)
        });
        for vm in basis.state.vms.iter().filter(|vm| is_gone_at_home(vm, seen)) {
            let name = &vm.record.name;
            let failure = basis.failures.of(name, &seen.host, now_ms);
            if self.busy.contains_key(name) || failure.is_some_and(|failure| failure.retry_ms() > now_ms) {
                continue;
            }
            let restarts = self.at_home_ms.get(name).map_or(0, Vec::len);
            if restarts >= RESTARTS_MAX {
                idle.push((name.clone(), Idle::RestartedOften { restarts }));
                continue;
            }
            candidates.push(Candidate { priority: priority(vm), vm: name.clone(), why: Why::ReplicaGone });
        }
        (candidates, idle)
    }

    fn of_others(&self, seen: &HostReport, placed: &[(VmName, HostName)], basis: &Basis<'_>) -> Vec<Candidate> {
        let is_steady = seen.run_lease_ms.is_some_and(|held_ms| held_ms >= HELD_MS_MIN);
        let is_lost = |vm: &VmState| has_lost_its_host(vm, basis) && !seen.host.is(&vm.claim.claim.primary);
        if seen.is_stopping || !is_steady {
            return Vec::new();
        }
        let mine = placed.iter().filter(|(vm, host)| *host == seen.host && !self.busy.contains_key(vm));
        let candidate = |(name, _): &(VmName, HostName)| {
            let vm = basis.state.vm(name).filter(|vm| is_lost(vm) && !seen.replicas.contains_key(name))?;
            let host = vm.claim.claim.primary.clone();
            let why = if vm.claim.given_up { Why::GivenUp { host } } else { Why::HostLost { host } };
            Some(Candidate { priority: priority(vm), vm: name.clone(), why })
        };
        mine.filter_map(candidate).collect()
    }

    /// Hosts that have let their turn with a VM pass, of those where VMs have their places (`placed`).
    pub(super) fn overdue(
        &mut self,
        seen: &HostReport,
        placed: &[(VmName, HostName)],
        basis: &Basis<'_>,
    ) -> Vec<(VmName, HostName)> {
        let now_ms = basis.now.ms;
        let of_others = placed.iter().filter(|(_, host)| *host != seen.host);
        let awaited: BTreeMap<VmName, HostName> = of_others.cloned().collect();
        let is_begun = |vm: &VmName| basis.state.vm(vm).is_none_or(|vm| !has_lost_its_host(vm, basis));
        let begun = self.awaited.iter().filter(|(vm, _)| is_begun(vm)).map(|(_, (host, _))| host.clone());
        let begun: BTreeSet<HostName> = begun.collect();
        let since_ms = |vm: &VmName, host: &HostName| {
            let before = self.awaited.get(vm).filter(|(before, _)| before == host && !begun.contains(host));
            before.map_or(now_ms, |(_, since_ms)| *since_ms)
        };
        let awaited = awaited.into_iter().map(|(vm, host)| {
            let since_ms = since_ms(&vm, &host);
            (vm, (host, since_ms))
        });
        let (overdue, awaited): (BTreeMap<_, _>, _) =
            awaited.partition(|(_, (_, since_ms))| now_ms.saturating_sub(*since_ms) >= TURN_MS);
        self.awaited = awaited;
        overdue.into_iter().map(|(vm, (host, _))| (vm, host)).collect()
    }

    /// Takes note of how a restart has ended.
    pub(super) fn note(&mut self, vm: &VmName, outcome: &Outcome, now_ms: u64) {
        let is_counted = self.busy.remove(vm).is_some_and(|(_, is_counted)| is_counted);
        if *outcome == Outcome::Done && is_counted {
            self.at_home_ms.entry(vm.clone()).or_default().push(now_ms);
        }
    }

    /// Somebody asks for another attempt.
    pub(super) fn hurry(&mut self, vm: &VmName) {
        self.at_home_ms.remove(vm);
    }
}

/// Whether a VM is to run here, and does not.
fn is_gone_at_home(vm: &VmState, seen: &HostReport) -> bool {
    let (record, claim) = (&vm.record, &vm.claim.claim);
    record.ha.enabled
        && record.power == Power::On
        && record.pending().is_none()
        && claim.secondary.is_none()
        && seen.host.is(&claim.primary)
        && !seen.replicas.contains_key(&record.name)
        && !seen.powered_off.contains(&record.name)
}

fn priority(vm: &VmState) -> Priority {
    vm.record.spec.read().map_or(Priority::Lowest, |spec| spec.priority)
}
