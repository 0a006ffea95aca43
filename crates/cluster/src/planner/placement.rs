use std::cmp::Ordering;

use spec::{CpuLevel, CpuProfile, DatastoreName, EngineKind, HostName, Maintenance, ReplicaId, SpecError};
use thiserror::Error;

use super::demand::{Demand, Room};
use super::{Basis, WhyNot};
use crate::records::{BootTime, ClusterState, DatastoreKind, HostRecord, VmState};

/// Why there is no place for a replica.
#[derive(Debug, Error)]
pub enum NoPlace {
    /// The VM's spec is not one that this version understands.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No host fits.
    #[error("{}", sentence(.0))]
    Hosts(Vec<(HostName, WhyNot)>),
}

fn sentence(refusals: &[(HostName, WhyNot)]) -> String {
    if refusals.is_empty() {
        return "no host is registered".to_owned();
    }
    let refusals: Vec<String> = refusals.iter().map(|(host, why)| format!("{host} {why}")).collect();
    refusals.join("; ")
}

/// The host that is to hold the secondary of a VM.
///
/// It is never that of the primary, shares no failure domain with it unless the VM is only moved, is alive, runs the VM's engine, can be the processor that the guest was told it has, reaches its networks, and
/// has the memory and vCPUs of a whole second VM free. Of those that fit comes first the one that has failed least lately, then the one whose copy of the disks is
/// newest, since it needs only what differs, then the one with the least part of its memory reserved, then the first by name.
///
/// # Errors
/// [`NoPlace`], with a reason for each host.
pub fn place_secondary(vm: &VmState, processor: Option<&CpuProfile>, basis: &Basis<'_>) -> Result<HostName, NoPlace> {
    place_secondary_in(&Room::without(basis.state, vm), vm, processor, basis)
}

/// The same, where what is left without the VM is known.
pub(crate) fn place_secondary_in(
    room: &Room,
    vm: &VmState,
    processor: Option<&CpuProfile>,
    basis: &Basis<'_>,
) -> Result<HostName, NoPlace> {
    let demand = Demand { processor: processor.cloned(), ..Demand::of(&vm.record)? };
    let claim = &vm.claim.claim;
    let check = |host: &HostRecord| check_secondary(host, &demand, vm, room, basis);
    let failures = |host: &HostRecord| basis.failures.of(&vm.record.name, &host.name, basis.now.ms);
    let failed = |host: &HostRecord| failures(host).map_or(0, |failure| failure.count);
    let copies: Vec<&ReplicaId> = claim.secondary.iter().chain(&vm.claim.copies).collect();
    best(basis.state, check, |a, b| {
        failed(a)
            .cmp(&failed(b))
            .then_with(|| age_of_copy(a, &copies).cmp(&age_of_copy(b, &copies)))
            .then_with(|| by_load(a, b, room))
    })
}

/// Whether `host` can hold the secondary of a VM now, as [`place_secondary`] decides it.
///
/// # Errors
/// [`NoPlace`], with the reason.
pub fn may_hold_secondary(
    vm: &VmState,
    host: &HostName,
    processor: Option<&CpuProfile>,
    basis: &Basis<'_>,
) -> Result<(), NoPlace> {
    may_hold_secondary_in(&Room::without(basis.state, vm), vm, host, processor, basis)
}

/// The same, where what is left without the VM is known.
pub(crate) fn may_hold_secondary_in(
    room: &Room,
    vm: &VmState,
    host: &HostName,
    processor: Option<&CpuProfile>,
    basis: &Basis<'_>,
) -> Result<(), NoPlace> {
    let demand = Demand { processor: processor.cloned(), ..Demand::of(&vm.record)? };
    let refused = |why| NoPlace::Hosts(vec![(host.clone(), why)]);
    let record = basis.state.host(host).ok_or_else(|| refused(WhyNot::NotRegistered))?;
    check_secondary(record, &demand, vm, room, basis).map_err(refused)
}

/// What a secondary asks of its host.
fn check_secondary(
    host: &HostRecord,
    demand: &Demand,
    vm: &VmState,
    room: &Room,
    basis: &Basis<'_>,
) -> Result<(), WhyNot> {
    let Basis { state, failures, now } = *basis;
    let claim = &vm.claim.claim;
    if host.name.is(&claim.primary) {
        return Err(WhyNot::IsPrimary);
    }
    let is_shared = |name: &&DatastoreName| state.datastore(name).is_none_or(|it| it.kind == DatastoreKind::Shared);
    if let Some(datastore) = demand.datastores.iter().find(is_shared) {
        return Err(WhyNot::SharedDisks(datastore.clone()));
    }
    // Copies of disks on a local datastore are in the VM's folder, as all are.
    check_machine(host, demand, now)?;
    room.check(host, demand)?;
    let primary = state.host_of(&claim.primary);
    // A VM that is only moved is protected neither before nor after.
    if vm.record.ft.is_wanted() {
        check_domain(host, primary, &claim.primary)?;
    }
    if demand.user_network && primary.is_none_or(|primary| primary.boot_id != host.boot_id) {
        return Err(WhyNot::OtherMachine);
    }
    match failures.of(&vm.record.name, &host.name, now.ms) {
        Some(failure) if failure.retry_ms() > now.ms => Err(WhyNot::FailedLately {
            count: failure.count,
            message: failure.message.clone(),
            retry_in_ms: failure.retry_ms() - now.ms,
        }),
        _ => Ok(()),
    }
}

/// A secondary must outlive what takes its primary.
fn check_domain(host: &HostRecord, primary: Option<&HostRecord>, name: &ReplicaId) -> Result<(), WhyNot> {
    let Some(primary) = primary else { return Err(WhyNot::UnknownDomain(name.clone())) };
    match (&host.domain, &primary.domain) {
        _ if !host.shares_domain(primary) => Ok(()),
        (Some(own), Some(of_primary)) => {
            Err(WhyNot::SameDomain { own: own.clone(), primary: name.clone(), of_primary: of_primary.clone() })
        }
        _ => Err(WhyNot::SameMachine(name.clone())),
    }
}

/// The host on which a VM is to start that does not run: the one that ran it last, as its disks are the newest. If `forced`, also
/// another one that has a copy, the newest first. That loses what was written since, and needs somebody who knows that the VM
/// does not run any more on the host that does not answer.
///
/// # Errors
/// [`NoPlace`], with a reason for each host.
pub fn place_primary(vm: &VmState, state: &ClusterState, forced: bool, now: &BootTime) -> Result<HostName, NoPlace> {
    let (demand, room) = (Demand::of(&vm.record)?, Room::without(state, vm));
    let claim = &vm.claim.claim;
    let copies: Vec<&ReplicaId> =
        std::iter::once(&claim.primary).chain(&claim.secondary).chain(&vm.claim.copies).collect();
    let check = |host: &HostRecord| {
        if age_of_copy(host, &copies) == copies.len() {
            return Err(WhyNot::NoDisks);
        }
        check_offer(host, &demand, now)?;
        room.check(host, &demand)?;
        match HostName::try_from(claim.primary.as_str().to_owned()) {
            Ok(newest) if newest != host.name && !forced => Err(WhyNot::OlderDisks(newest)),
            _ => Ok(()),
        }
    };
    best(state, check, |a, b| age_of_copy(a, &copies).cmp(&age_of_copy(b, &copies)))
}

/// The host that comes first in `order`, then by name, of those that pass `check`.
fn best(
    state: &ClusterState,
    check: impl Fn(&HostRecord) -> Result<(), WhyNot>,
    order: impl Fn(&HostRecord, &HostRecord) -> Ordering,
) -> Result<HostName, NoPlace> {
    let mut best: Option<&HostRecord> = None;
    let mut refusals = Vec::new();
    for host in &state.hosts {
        match check(host) {
            Err(why) => refusals.push((host.name.clone(), why)),
            Ok(()) if best.is_none_or(|best| order(host, best).then_with(|| host.name.cmp(&best.name)).is_lt()) => {
                best = Some(host);
            }
            Ok(()) => {}
        }
    }
    best.map(|host| host.name.clone()).ok_or(NoPlace::Hosts(refusals))
}

/// What whoever uses the VM's disks where they are asks of its host, but for room.
pub(super) fn check_offer(host: &HostRecord, demand: &Demand, now: &BootTime) -> Result<(), WhyNot> {
    check_machine(host, demand, now)?;
    if let Some(datastore) = demand.datastores.iter().find(|datastore| !host.reached.contains_key(*datastore)) {
        return Err(WhyNot::NoDatastore(datastore.clone()));
    }
    Ok(())
}

/// What any replica asks of its host, but for room: whether the host can run the VM at all, and takes VMs now.
fn check_machine(host: &HostRecord, demand: &Demand, now: &BootTime) -> Result<(), WhyNot> {
    if !host.is_alive(now) {
        return Err(WhyNot::LeaseEnded { silent_ms: host.silent_ms(now) });
    }
    if host.maintenance != Maintenance::Off {
        return Err(WhyNot::InMaintenance);
    }
    if let Some(engine) = demand.engine.filter(|engine| !host.engines.contains(engine)) {
        return Err(WhyNot::NoEngine(engine));
    }
    check_processor(host, demand)?;
    if let Some(bridge) = demand.bridges.iter().find(|bridge| !host.networks.contains(bridge)) {
        return Err(WhyNot::NoNetwork(bridge.clone()));
    }
    Ok(())
}

/// Whether a host can be the processor of a VM. One that says nothing of its own finds out when it is asked to hold a replica.
fn check_processor(host: &HostRecord, demand: &Demand) -> Result<(), WhyNot> {
    let offer = host.kvm_processor.as_ref().filter(|_| demand.engine != Some(EngineKind::Soft));
    let Some(offer) = offer else { return Ok(()) };
    match &demand.processor {
        Some(processor) => match offer.refusal(processor) {
            Some(why) => Err(WhyNot::OtherProcessor(why)),
            None => Ok(()),
        },
        None if demand.cpu_level == CpuLevel::V3 => {
            let missing = offer.lacks_of_v3();
            if missing.is_empty() { Ok(()) } else { Err(WhyNot::TooLittleProcessor { missing: missing.join(", ") }) }
        }
        None => Ok(()),
    }
}

/// Place of a host in a list of copies of which the newest is first; the list's length if it has none.
fn age_of_copy(host: &HostRecord, copies: &[&ReplicaId]) -> usize {
    copies.iter().position(|replica| host.name.is(replica)).unwrap_or(copies.len())
}

/// By the part of the memory that is reserved, the least first.
fn by_load(a: &HostRecord, b: &HostRecord, room: &Room) -> Ordering {
    let part = |of: &HostRecord, other: &HostRecord| {
        u128::from(room.reserved(&of.name).memory_bytes) * u128::from(other.memory_bytes)
    };
    part(a, b).cmp(&part(b, a))
}
