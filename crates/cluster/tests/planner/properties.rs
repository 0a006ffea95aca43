//! What holds of every plan, whatever the cluster is like.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cluster::planner::{Basis, Failures, Room, admits, after_loss, may_restart, place_restarts};
use cluster::records::{ClusterState, Power, VmState};
use proptest::prelude::*;
use spec::{AdmissionPolicy, HostName, VmName};

use crate::case::{Case, now};

/// A cluster of two to six hosts, some of which take nothing, with VMs that have high availability.
fn cluster() -> impl Strategy<Value = ClusterState> {
    let host = (1u32..12, 1u32..12, 0u32..10);
    let vm = (1u32..5, 1u32..4, 0usize..6, 0usize..5);
    let hosts = prop::collection::vec(host, 2..7);
    (hosts, prop::collection::vec(vm, 1..24)).prop_map(|(hosts, vms)| {
        let mut text = String::new();
        for (number, (memory, cpus, what)) in hosts.iter().enumerate() {
            let more = ["reaches = []", "maintenance = \"on\""].get(*what as usize).copied().unwrap_or_default();
            text += &format!("[[hosts]]\nname = \"h{number}\"\nmemory_gib = {memory}\ncpus = {cpus}\n{more}\n");
        }
        for (number, (memory, cpus, on, priority)) in vms.iter().enumerate() {
            let priority = ["highest", "high", "medium", "low", "lowest"][*priority];
            let on = on % hosts.len();
            text += &format!(
                "[[vms]]\nname = \"v{number:02}\"\nmemory_gib = {memory}\ncpus = {cpus}\non = \"h{on}\"\npriority = \"{priority}\"\n"
            );
        }
        toml::from_str::<Case>(&text).unwrap().state()
    })
}

/// Loses hosts: their leases have ended.
fn lose(state: &mut ClusterState, lost: &BTreeSet<usize>) {
    for index in lost {
        let index = index % state.hosts.len();
        state.hosts[index].lease.ttl_ms = 0;
        let name = state.hosts[index].name.clone();
        state.run_leases.remove(&name);
    }
}

fn basis<'a>(state: &'a ClusterState, failures: &'a Failures, now: &'a cluster::records::BootTime) -> Basis<'a> {
    Basis { state, failures, now }
}

/// Where VMs go, one by one and by looking at each host, and the state after that.
fn by_hand(state: &ClusterState, failures: &Failures) -> (Vec<(VmName, HostName)>, ClusterState) {
    let (mut state, now) = (state.clone(), now());
    let is_lost = |vm: &&VmState| !state.run_leases.contains(vm.claim.claim.primary.as_str());
    let mut lost: Vec<VmState> = state.vms.iter().filter(is_lost).cloned().collect();
    lost.sort_by_key(|vm| {
        let spec = vm.record.vm_spec().unwrap();
        (spec.priority, Reverse(spec.memory.bytes()), vm.record.name.clone())
    });
    let mut placed = Vec::new();
    for vm in lost {
        let room = Room::of(&state);
        let fits = |host: &&HostName| may_restart(&vm, host, &basis(&state, failures, &now)).is_ok();
        let names = state.hosts.iter().map(|host| &host.name);
        let best = names.filter(fits).min_by_key(|name| {
            let failed = failures.of(&vm.record.name, name, now.ms).map_or(0, |failure| failure.count);
            (failed, Reverse(room.free_per_mille(state.host(name).unwrap())), (*name).clone())
        });
        if let Some(host) = best.cloned() {
            let known = state.vms.iter_mut().find(|other| other.record.name == vm.record.name).unwrap();
            known.claim.claim.primary = host.replica();
            placed.push((vm.record.name.clone(), host));
        }
    }
    (placed, state)
}

/// What is reserved on each host, and whether that is more than there is.
fn reserved(state: &ClusterState) -> BTreeMap<HostName, (u64, u32, bool)> {
    let room = Room::of(state);
    let of = |host: &cluster::records::HostRecord| {
        let reserved = room.reserved(&host.name);
        let is_over = reserved.memory_bytes > host.memory_bytes || reserved.cpus > host.cpus;
        (host.name.clone(), (reserved.memory_bytes, reserved.cpus, is_over))
    };
    state.hosts.iter().map(of).collect()
}

proptest! {
    #[test]
    fn each_lost_vm_gets_the_best_host_and_none_is_over_committed(
        mut state in cluster(),
        lost in prop::collection::btree_set(0usize..6, 1..3),
        failed in prop::collection::vec((0usize..24, 0usize..6), 0..8),
    ) {
        let before = reserved(&state);
        lose(&mut state, &lost);
        let mut failures = Failures::default();
        for (vm, host) in failed {
            let (vm, host) = (&state.vms[vm % state.vms.len()], &state.hosts[host % state.hosts.len()]);
            // So long ago that it may be tried again, and not so long that it is forgotten.
            failures.note(&vm.record.name, &host.name, "it failed", 0);
        }
        let now = now();
        let plan = place_restarts(&basis(&state, &failures, &now));
        let (placed, after) = by_hand(&state, &failures);
        prop_assert_eq!(&plan.placed, &placed);
        let lost = state.vms.iter().filter(|vm| !state.run_leases.contains(vm.claim.claim.primary.as_str())).count();
        prop_assert_eq!(plan.placed.len() + plan.refused.len(), lost);
        for (_, why) in &plan.refused {
            prop_assert_eq!(why.len(), state.hosts.len(), "each host is named");
        }
        for (host, (memory, cpus, is_over)) in reserved(&after) {
            let (memory_before, cpus_before, _) = before[&host];
            prop_assert!(!is_over || (memory <= memory_before && cpus <= cpus_before), "{} is over-committed", host);
        }
    }

    #[test]
    fn what_was_admitted_is_restarted_whichever_host_is_lost(mut state in cluster()) {
        state.vms.iter_mut().for_each(|vm| vm.record.power = Power::Off);
        let (policy, now) = (AdmissionPolicy::HostFailures { hosts: 1 }, now());
        for index in 0..state.vms.len() {
            let name = state.vms[index].record.name.clone();
            let home: HostName = state.vms[index].claim.claim.primary.as_str().parse().unwrap();
            let mut with = state.clone();
            with.vms[index].record.power = Power::On;
            let fits = !reserved(&with)[&home].2;
            if fits && admits(&policy, &name, &home, &state, &now).is_ok() {
                state = with;
            }
        }
        for host in &state.hosts {
            let after = after_loss(&state, &BTreeSet::from([host.name.clone()]), &now);
            prop_assert!(after.is_covered(), "{:?}", after.not_restarted);
        }
    }
}
