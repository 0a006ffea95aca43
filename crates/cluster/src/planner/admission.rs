use std::collections::BTreeSet;

use spec::{AdmissionPolicy, HostName, VmName};
use thiserror::Error;

use super::demand::Room;
use super::loss::Losses;
use super::{NoPlace, WhyNot};
use crate::records::{BootTime, ClusterState, HostRecord, Power};

/// Why a VM is not started though its host has room for it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NotAdmitted {
    /// Some VM could not be restarted any more.
    #[error("if {} were lost, VM {vm} could not be restarted: {}", names(.lost), refusals(.why))]
    NotCovered {
        /// The hosts that would be lost.
        lost: Vec<HostName>,
        /// The VM that no host could restart then.
        vm: VmName,
        /// Why not, for each host that would be left.
        why: Vec<(HostName, WhyNot)>,
    },
    /// Too little would be left.
    #[error("{free} of {total} {what} would be left free on all hosts, and {percent}% of it are kept for restarts")]
    TooLittleLeft {
        /// Of what.
        what: &'static str,
        /// What would be left.
        free: u64,
        /// What there is.
        total: u64,
        /// The part that is kept.
        percent: u32,
    },
    /// The host is kept for restarts.
    #[error("host {0} is kept for restarts")]
    Dedicated(HostName),
}

fn names(hosts: &[HostName]) -> String {
    let names: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
    if let [one] = names[..] { format!("host {one}") } else { format!("hosts {}", names.join(" and ")) }
}

fn refusals(why: &[(HostName, WhyNot)]) -> String {
    if why.is_empty() {
        return "there would be no host".to_owned();
    }
    NoPlace::Hosts(why.to_vec()).to_string()
}

/// Whether `vm`, of which `state` says that it is off, may be started by a policy on `host`, which has room for it. What was true before is not held against
/// it: where the hosts that are there do not suffice already, only what makes it worse is refused.
///
/// # Errors
/// [`NotAdmitted`].
pub fn admits(
    policy: &AdmissionPolicy,
    vm: &VmName,
    host: &HostName,
    state: &ClusterState,
    now: &BootTime,
) -> Result<(), NotAdmitted> {
    let mut with = state.clone();
    if let Some(vm) = with.vms.iter_mut().find(|other| other.record.name == *vm) {
        vm.record.power = Power::On;
        (vm.claim.claim.primary, vm.claim.claim.secondary) = (host.replica(), None);
    }
    match policy {
        AdmissionPolicy::Off => Ok(()),
        AdmissionPolicy::HostFailures { hosts } => covers(*hosts, state, &with, now),
        AdmissionPolicy::Percent { memory, cpus } => keeps(*memory, *cpus, &with, now),
        AdmissionPolicy::DedicatedHosts { hosts } if hosts.contains(host) => Err(NotAdmitted::Dedicated(host.clone())),
        AdmissionPolicy::DedicatedHosts { .. } => Ok(()),
    }
}

/// Whether all VMs of `with` can be restarted whichever hosts are lost, or could not be in `before` either.
fn covers(count: u32, before: &ClusterState, with: &ClusterState, now: &BootTime) -> Result<(), NotAdmitted> {
    let alive: Vec<&HostName> = with.hosts.iter().filter(|host| host.is_alive(now)).map(|host| &host.name).collect();
    let count = usize::try_from(count.min(AdmissionPolicy::HOST_FAILURES_MAX)).unwrap_or(0);
    let [with, before] = [with, before].map(Losses::of);
    try_sets(&alive, count, &mut BTreeSet::new(), &mut |lost| {
        let after = with.after(lost, now);
        if after.is_covered() {
            return Ok(());
        }
        let was_short = before.after(lost, now);
        let short = |vm: &VmName| was_short.not_restarted.iter().any(|(other, _)| other == vm);
        match after.not_restarted.into_iter().find(|(vm, _)| !short(vm)) {
            Some((vm, why)) => Err(NotAdmitted::NotCovered { lost: lost.iter().cloned().collect(), vm, why }),
            None => Ok(()),
        }
    })
}

/// Checks all sets of so many hosts together with those that are `lost`, in order of their names, until one fails. They are made one after the other: of some
/// hundred hosts there are millions.
fn try_sets(
    hosts: &[&HostName],
    count: usize,
    lost: &mut BTreeSet<HostName>,
    check: &mut dyn FnMut(&BTreeSet<HostName>) -> Result<(), NotAdmitted>,
) -> Result<(), NotAdmitted> {
    if count == 0 {
        return check(lost);
    }
    for (number, host) in hosts.iter().enumerate() {
        lost.insert((*host).clone());
        try_sets(hosts.get(number + 1..).unwrap_or_default(), count - 1, lost, check)?;
        lost.remove(*host);
    }
    Ok(())
}

fn keeps(memory: u32, cpus: u32, with: &ClusterState, now: &BootTime) -> Result<(), NotAdmitted> {
    let room = Room::of(with);
    let alive = || with.hosts.iter().filter(|host| host.is_alive(now));
    let sum = |of: &dyn Fn(&HostRecord) -> u64| alive().map(of).fold(0, u64::saturating_add);
    let check = |what, free: u64, total: u64, percent: u32| {
        let kept = u128::from(total) * u128::from(percent);
        let is_kept = u128::from(free) * 100 >= kept;
        if is_kept { Ok(()) } else { Err(NotAdmitted::TooLittleLeft { what, free, total, percent }) }
    };
    let free_bytes = sum(&|host| room.free(host).0);
    check("MiB of memory", free_bytes >> 20, sum(&|host| host.memory_bytes) >> 20, memory)?;
    check("vCPUs", sum(&|host| u64::from(room.free(host).1)), sum(&|host| u64::from(host.cpus)), cpus)
}
