//! A cluster that is made up: no chance in it, so that each run of the benchmark plans for the same one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use cluster::controller::{HostReport, Loss, LossCause, ReplicaReport, ReplicaState};
use cluster::records::{
    BootTime, ClaimRecord, ClusterState, DatastoreKind, DatastoreRecord, DatastoreSpace, FtSettings, HostRecord, Lease,
    Power, VmRecord, VmState,
};
use protocol::{Claim, Generation};
use spec::{DatastoreName, EngineKind, HostName, Maintenance, ReplicaId, VmName};

/// Shared datastores that all hosts reach.
const DATASTORES: u32 = 8;
/// What a host offers: VMs reserve 140 GiB of it or so.
const HOST_MEMORY_BYTES: u64 = 256 << 30;
const HOST_CPUS: u32 = 128;
/// The time of all plans.
const NOW_MS: u64 = 1_000_000;
/// For how long a host that was seen counts as alive, in ms.
const TTL_MS: u64 = 3_000;

/// How a VM is protected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Ha,
    Ft,
}

impl Kind {
    fn of(number: u32) -> Self {
        match number % 5 {
            0 => Self::Ft,
            1 => Self::None,
            _ => Self::Ha,
        }
    }
}

/// The cluster.
pub struct MadeUp {
    hosts: u32,
    /// What is wanted of it, and where its VMs are.
    pub state: ClusterState,
}

/// The time at which all is planned.
pub fn now() -> BootTime {
    BootTime { boot_id: "boot".to_owned(), ms: NOW_MS }
}

impl MadeUp {
    /// One with so many hosts and VMs, all of which run where they should.
    pub fn new(hosts: u32, vms: u32) -> Result<Self> {
        let mut state = ClusterState::default();
        for number in 0..DATASTORES {
            let name = datastore(number)?;
            let (path, id) = (format!("/srv/{name}").into(), name.to_string());
            let kind = DatastoreKind::Shared;
            state.datastores.push(DatastoreRecord { name, kind, path, id, unknown: Default::default() });
        }
        for number in 0..hosts {
            state.run_leases.insert(host(number)?);
            state.hosts.push(host_record(number)?);
        }
        for number in 0..vms {
            state.vms.push(vm(number, hosts)?);
        }
        Ok(Self { hosts, state })
    }

    /// The name of a host.
    pub fn host(&self, number: u32) -> Result<HostName> {
        host(number % self.hosts)
    }

    /// The cluster a few seconds after hosts are lost: their leases have ended, and fault tolerant VMs have been taken over.
    pub fn after_loss(&self, lost: &BTreeSet<HostName>) -> ClusterState {
        let mut state = self.state.clone();
        let is_lost = |replica: &ReplicaId| lost.contains(replica.as_str());
        for host in state.hosts.iter_mut().filter(|host| lost.contains(&host.name)) {
            host.lease.ttl_ms = 0;
        }
        state.run_leases.retain(|host| !lost.contains(host));
        for vm in &mut state.vms {
            let Claim { generation, primary, secondary: Some(secondary) } = &vm.claim.claim else { continue };
            let alone = match (is_lost(primary), is_lost(secondary)) {
                (false, false) | (true, true) => continue,
                (true, false) => secondary.clone(),
                (false, true) => primary.clone(),
            };
            let claim = Claim { generation: generation.next(), primary: alone, secondary: None };
            vm.claim = vm.claim.succeeded_by(claim);
        }
        state
    }

    /// What a host sees of itself in a state of this cluster.
    pub fn report(&self, host: &HostName, state: &ClusterState) -> HostReport {
        let mut replicas = BTreeMap::new();
        for VmState { record, claim } in &state.vms {
            let Claim { generation, primary, secondary } = &claim.claim;
            let by = secondary.as_ref().and_then(|id| HostName::try_from(id.as_str().to_owned()).ok());
            let loss = Loss { cause: LossCause::Silence, text: "it fell silent".to_owned() };
            let state = match by {
                Some(by) if host.is(primary) => ReplicaState::Protected { by },
                Some(by) if by == *host => ReplicaState::Secondary { unclaimed_ms: 0 },
                None if host.is(primary) => ReplicaState::Alone { loss: record.ft.enabled.then_some(loss) },
                _ => continue,
            };
            replicas.insert(record.name.clone(), ReplicaReport { generation: *generation, state, processor: None });
        }
        HostReport {
            host: host.clone(),
            has_booted: false,
            is_stopping: false,
            stops_vms: false,
            run_lease_ms: Some(NOW_MS),
            replicas,
            powered_off: BTreeSet::new(),
        }
    }

    /// A VM that is off where there is one more, and the host that it could be started on.
    pub fn with_one_more(&self) -> Result<(ClusterState, VmName, HostName)> {
        let mut state = self.state.clone();
        // By its name the last.
        let mut more = vm(u32::MAX, self.hosts)?;
        more.record.power = Power::Off;
        let name = more.record.name.clone();
        state.vms.push(more);
        Ok((state, name, self.host(0)?))
    }
}

fn host(number: u32) -> Result<HostName> {
    Ok(format!("host{number:05}").parse()?)
}

fn datastore(number: u32) -> Result<DatastoreName> {
    Ok(format!("nfs{}", number % DATASTORES).parse()?)
}

fn host_record(number: u32) -> Result<HostRecord> {
    let reached = (0..DATASTORES).map(|number| Ok((datastore(number)?, DatastoreSpace::default())));
    Ok(HostRecord {
        name: host(number)?,
        api_address: "192.0.2.1:7441".parse()?,
        replication_ip: "192.0.2.1".parse()?,
        boot_id: format!("boot of host {number}"),
        domain: Some(format!("rack{}/host{number}", number / 20).parse()?),
        cpus: HOST_CPUS,
        memory_bytes: HOST_MEMORY_BYTES,
        engines: vec![EngineKind::Kvm, EngineKind::Soft],
        kvm_processor: None,
        networks: (0..4).map(|number| format!("br{number}")).collect(),
        reached: reached.collect::<Result<_>>()?,
        maintenance: Maintenance::Off,
        lease: Lease { renewed_boot_ms: NOW_MS, renewed_unix_ms: 0, ttl_ms: TTL_MS },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: String::new(),
        folder: "/var/lib/twinvm".into(),
        unknown: Default::default(),
    })
}

fn vm(number: u32, hosts: u32) -> Result<VmState> {
    let kind = Kind::of(number / hosts);
    let name: VmName = format!("vm{number:010}").parse()?;
    let (memory_gib, cpus) = (1 << (number % 5), 1 + number % 4);
    let priority = ["highest", "high", "medium", "low", "lowest"].into_iter().cycle().nth(number as usize % 5);
    let disk = match kind {
        Kind::Ha => format!("path = \"{name}.qcow2\"\nformat = \"qcow2\"\ndatastore = \"{}\"\n", datastore(number)?),
        Kind::None | Kind::Ft => "path = \"root.qcow2\"\nformat = \"qcow2\"\n".to_owned(),
    };
    let spec = format!(
        "name = \"{name}\"\ncpus = {cpus}\nmemory = \"{memory_gib}G\"\npriority = \"{}\"\nkernel = \"vmlinuz\"\ninitrd = \"initrd.img\"\n\
         cmdline = \"console=ttyS0 root=/dev/vda\"\n[[disk]]\n{disk}[[network]]\nmode = \"bridge\"\nbridge = \"br{}\"\n",
        priority.unwrap_or("medium"),
        number % 4
    );
    let mut record = VmRecord::new(name, spec, FtSettings::disabled(100, 50), 0);
    record.power = Power::On;
    record.ha.enabled = kind == Kind::Ha;
    record.ft.enabled = kind == Kind::Ft;
    let home = number % hosts;
    // In another rack, and another one for each of a host's VMs.
    let other = (home + hosts / 3 + 7 * (number / hosts)) % hosts;
    let secondary = if kind == Kind::Ft { Some(host(other)?.replica()) } else { None };
    let claim = Claim { generation: Generation::new(1), primary: host(home)?.replica(), secondary };
    Ok(VmState { record, claim: ClaimRecord { under_lease: kind == Kind::Ha, ..ClaimRecord::first(claim) } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_vms_of_all_kinds_and_both_replicas_never_on_one_host() {
        let made_up = MadeUp::new(60, 1200).unwrap();
        let vms = &made_up.state.vms;
        let count = |is: fn(&VmState) -> bool| vms.iter().filter(|vm| is(vm)).count();
        assert_eq!([count(|vm| vm.record.ft.enabled), count(|vm| vm.record.ha.enabled), vms.len()], [240, 720, 1200]);
        assert!(vms.iter().all(|vm| vm.claim.claim.secondary.as_ref() != Some(&vm.claim.claim.primary)));
        assert!(vms.iter().all(|vm| vm.record.vm_spec().is_ok()));
    }
}
