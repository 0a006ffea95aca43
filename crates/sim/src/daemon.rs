//! [`Daemon`]: a host's daemon, which asks the controller what to do; the records that it reads; and what it has under way.

use cluster::controller::consent::Here;
use cluster::controller::{Action, Controller, HostReport, ReplicaReport, Settings};
use cluster::records::{
    BootTime, ClaimRecord, ClusterState, FtSettings, HostRecord, Lease, Power, UnknownFields, VmRecord, VmState,
};
use protocol::{Claim, DropReason, Generation};
use spec::{EngineKind, FailureDomain, HostName, VmName};

use crate::process::ProcessId;
use crate::random::Random;
use crate::time::{MILLISECOND, Nanoseconds};

/// Daemons wait for seconds where replicas wait for milliseconds, and no schedule lasts so long: their clocks run so many times faster.
pub(crate) const HASTE: u64 = 50;
/// How long a host counts as alive, by those clocks.
const LEASE_MS: u64 = 3_000;
/// The other VMs, which come after the one that is simulated.
const OTHERS: [&str; 3] = ["w", "x", "y"];
/// Which run of its daemon a host begins with.
pub(crate) const FIRST_RUN: u32 = 0;
/// The machine that all hosts are on.
const BOOT: &str = "boot";

/// How many first copies a host makes at a time.
pub(crate) const FIRST_COPIES_MAX: usize = 1;

/// A VM of the first host that is not simulated.
#[derive(Clone, Debug)]
pub(crate) struct OtherVm {
    pub name: VmName,
    /// The host of its secondary, and when the first copy is over.
    pub secondary: Option<HostName>,
    pub copied_at: Nanoseconds,
}

/// A daemon that wants to serve a host which is served.
#[derive(Clone, Debug)]
pub(crate) struct SecondDaemon {
    /// The host's record when it began to wait.
    pub before: HostRecord,
    pub since: Nanoseconds,
}

/// A host's daemon.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub is_up: bool,
    /// New at each start, in the host's record.
    pub instance: String,
    /// New at each start: what was under way before is not gone on with.
    pub run: u32,
    pub controller: Controller,
    /// The store's records as it knows them.
    pub known: ClusterState,
    /// What it sees.
    pub report: HostReport,
    /// The replica that it has seen, and since when no primary has come to it.
    pub watched: Option<(ProcessId, Nanoseconds)>,
    /// It has decided on this, and nothing has to be done until it changes.
    pub is_settled: bool,
}

impl Daemon {
    pub fn new(host: &HostName, run: u32, first_copies_max: usize) -> Self {
        Self {
            is_up: true,
            instance: run.to_string(),
            run,
            controller: Controller::new(Settings { first_copies_max }),
            known: ClusterState::default(),
            report: HostReport {
                host: host.clone(),
                has_booted: false,
                is_stopping: false,
                stops_vms: false,
                run_lease_ms: None,
                replicas: Default::default(),
                powered_off: Default::default(),
            },
            watched: None,
            is_settled: false,
        }
    }

    /// Sees a replica here, or none; whether that is news.
    pub fn sees(&mut self, vm: &VmName, replica: Option<ReplicaReport>) -> bool {
        if self.report.replicas.get(vm) == replica.as_ref() {
            return false;
        }
        match replica {
            Some(replica) => drop(self.report.replicas.insert(vm.clone(), replica)),
            None => drop(self.report.replicas.remove(vm)),
        }
        true
    }
}

/// Something that a daemon does step by step. It may be killed before each.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub host: usize,
    pub run: u32,
    /// What the controller wants; nothing if somebody else asked.
    pub action: Option<Action>,
    pub step: Step,
}

/// What is known of the operation that was asked for last, for judging what becomes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// The number of the operation.
    pub id: u64,
    /// Which run of which host's daemon was asked.
    pub of: (usize, u32),
    /// Whether the VM has been started for it.
    pub is_launched: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Carry out what the controller wants with the replica that it was about.
    Begin { replica: Option<ProcessId> },
    /// On another host: prepare a secondary for this replica, in the generation that its host has read.
    Prepare { target: usize, replica: ProcessId, claim: Claim },
    /// The answer.
    Prepared { target: usize, replica: ProcessId, secondary: Option<ProcessId> },
    /// Wait until the claim names no secondary, and have it dropped.
    LetGo { until: Nanoseconds, reason: DropReason },
    /// On another host: end the secondary, and delete its disks.
    Drop { target: usize, deletes: bool },
    /// Make this host the only one that may run the VM, which is to be started in this generation. `was_home`: it was at home here before.
    Claim { generation: Generation, was_home: bool },
    /// Start its replica.
    Launch { claim: Claim, was_home: bool },
    /// It runs, which is to be noted.
    Launched,
}

/// A host with room for all VMs.
pub(crate) fn host_record(name: &HostName, domain: Option<FailureDomain>) -> HostRecord {
    HostRecord {
        name: name.clone(),
        api_address: ([127, 0, 0, 1], 1).into(),
        replication_ip: [127, 0, 0, 1].into(),
        boot_id: BOOT.to_owned(),
        domain,
        cpus: 8,
        memory_bytes: 1 << 40,
        engines: vec![EngineKind::Soft],
        kvm_processor: None,
        networks: Vec::new(),
        reached: Default::default(),
        maintenance: Default::default(),
        lease: Lease { renewed_boot_ms: 0, renewed_unix_ms: 0, ttl_ms: LEASE_MS },
        version: String::new(),
        instance: FIRST_RUN.to_string(),
        folder: Default::default(),
        unknown: UnknownFields::default(),
    }
}

/// The records of the cluster in the beginning: one VM on the first host, and so many others.
pub(crate) fn records(
    hosts: &[HostName],
    seed: u64,
    claim: &Claim,
    vm: &VmName,
    others: usize,
) -> (ClusterState, Vec<OtherVm>) {
    let state = |vm: &VmName| {
        let ft = FtSettings { enabled: true, ..FtSettings::disabled(100, 50) };
        let spec = format!("name = \"{vm}\"\nmemory = \"1G\"\nkernel = \"k\"\n");
        let mut record = VmRecord::new(vm.clone(), spec, ft, 0);
        record.power = Power::On;
        VmState { record, claim: ClaimRecord::first(claim.clone()) }
    };
    let others: Vec<VmName> = OTHERS[..others].iter().filter_map(|name| (*name).to_owned().try_into().ok()).collect();
    let vms = std::iter::once(vm).chain(&others).map(state).collect();
    let cluster = ClusterState {
        revision: 1,
        hosts: hosts.iter().zip(domains(hosts, seed)).map(|(name, domain)| host_record(name, Some(domain))).collect(),
        vms,
        ..ClusterState::default()
    };
    (cluster, others.into_iter().map(|name| OtherVm { name, secondary: None, copied_at: 0 }).collect())
}

/// What each host fails together with. Of three hosts two may be in one rack, one of them perhaps in a part of it that has a name.
fn domains(hosts: &[HostName], seed: u64) -> Vec<FailureDomain> {
    // Drawn apart from all else, so that whether hosts have domains does not change what happens.
    let mut random = Random::new(!seed);
    let apart = if hosts.len() > 2 { random.below(hosts.len() + 1) } else { hosts.len() };
    let path = |number: usize| match apart {
        apart if apart == hosts.len() => format!("rack{number}"),
        apart if apart == number => "rack1/power1".to_owned(),
        _ if random.chance(50) => "rack2".to_owned(),
        _ => "rack2/power1".to_owned(),
    };
    let domains = (0..hosts.len()).map(path);
    domains.map(|path| path.parse().unwrap_or_else(|error| unreachable!("{error}"))).collect()
}

/// The time by the daemons' clocks, since the simulation began: as the store counts leases.
pub(crate) fn store_time(now: Nanoseconds) -> BootTime {
    BootTime { boot_id: BOOT.to_owned(), ms: hasty_ms(now) }
}

/// When a host's machine was booted. No two clocks of hosts say the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BootClock {
    since: Nanoseconds,
    /// What it said then, in ms.
    said_ms: u64,
}

impl BootClock {
    /// Those of so many hosts, which were booted before the simulation began. Drawn apart from all else, so that they do not change what happens.
    pub fn of_hosts(seed: u64, count: usize) -> Vec<Self> {
        let mut random = Random::new(!seed ^ 1);
        (0..count).map(|_| Self { since: 0, said_ms: random.between(0, 100 * LEASE_MS) }).collect()
    }

    /// One of a machine that is booted now.
    pub fn new(now: Nanoseconds) -> Self {
        Self { since: now, said_ms: 0 }
    }

    /// The time since the machine was booted, in ms.
    pub fn ms(self, now: Nanoseconds) -> u64 {
        self.said_ms + hasty_ms(now - self.since)
    }
}

pub(crate) fn hasty_ms(now: Nanoseconds) -> u64 {
    now * HASTE / MILLISECOND
}

/// What a daemon makes of a secondary: `is_unclaimed`: no primary has come to it.
pub(crate) fn here(is_secondary: bool, is_unclaimed: bool) -> Here {
    match (is_secondary, is_unclaimed) {
        (true, true) => Here::Waiting,
        (true, false) => Here::Following,
        (false, _) => Here::Primary,
    }
}
