//! A case in TOML: hosts, VMs, and what is asked.

use std::collections::{BTreeMap, BTreeSet};

use cluster::planner::{
    AfterLoss, Basis, Failures, Leaving, NoPlace, WhyNot, admits, after_loss, leaving, place_primary, place_secondary,
};
use cluster::records::{
    BootTime, ClaimRecord, ClusterState, DatastoreKind, DatastoreRecord, DatastoreSpace, FtSettings, HostRecord, Lease,
    Power, VmRecord, VmState,
};
use protocol::{Claim, Generation};
use serde::Deserialize;
use spec::{
    AdmissionPolicy, DatastoreName, EngineKind, FailureDomain, HostName, Maintenance, Priority, Protection, ReplicaId,
    VmName,
};

const BOOT: &str = "boot";

/// A state, and what is asked about it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    hosts: Vec<Host>,
    #[serde(default)]
    vms: Vec<Vm>,
    /// What has failed, each time a second before the questions: VM, host, and what went wrong.
    #[serde(default)]
    failed: Vec<(VmName, HostName, String)>,
    #[serde(rename = "ask", default)]
    questions: Vec<Question>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    name: HostName,
    #[serde(default = "eight")]
    memory_gib: u64,
    #[serde(default = "sixteen")]
    cpus: u32,
    /// Which datastores it reaches.
    #[serde(default = "nfs")]
    reaches: Vec<DatastoreName>,
    #[serde(default)]
    networks: Vec<String>,
    /// What it fails together with: itself if that is not said, and its machine if it is empty.
    domain: Option<String>,
    /// The machine that it is on.
    #[serde(default = "machine")]
    machine: String,
    #[serde(default)]
    maintenance: Maintenance,
    /// Its lease has ended.
    #[serde(default)]
    dead: bool,
    #[serde(default)]
    kvm: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    name: VmName,
    #[serde(default = "one")]
    memory_gib: u64,
    #[serde(default = "one_cpu")]
    cpus: u32,
    #[serde(default = "here")]
    on: String,
    secondary: Option<String>,
    /// The host that is given its first copy.
    syncing_to: Option<HostName>,
    /// Hosts with older copies of its disks, the newest first.
    #[serde(default)]
    copies: Vec<String>,
    #[serde(default)]
    off: bool,
    #[serde(default = "ha")]
    protection: Protection,
    #[serde(default)]
    priority: Priority,
    /// `nfs` and `san` are shared, `disk` is local.
    #[serde(default = "shared")]
    datastore: DatastoreName,
    bridge: Option<String>,
    /// It has a card on a user-mode network.
    #[serde(default)]
    user_network: bool,
    #[serde(default)]
    kvm: bool,
    /// Its spec is not one that this version understands.
    #[serde(default)]
    unreadable: bool,
}

/// One question: what if hosts are lost, whether a VM that is off may be started on a host, where it is started, or by force; where the secondary of a VM goes, and
/// what becomes of it when a host is in maintenance.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    lose: Option<BTreeSet<HostName>>,
    start: Option<VmName>,
    place: Option<VmName>,
    force: Option<VmName>,
    protect: Option<VmName>,
    leave: Option<VmName>,
    #[serde(default = "here")]
    on: String,
    #[serde(default)]
    admission: AdmissionPolicy,
    expect: Vec<String>,
}

fn eight() -> u64 {
    8
}

fn sixteen() -> u32 {
    16
}

fn one() -> u64 {
    1
}

fn one_cpu() -> u32 {
    1
}

fn here() -> String {
    "a".to_owned()
}

fn machine() -> String {
    BOOT.to_owned()
}

fn ha() -> Protection {
    Protection::Ha
}

fn shared() -> DatastoreName {
    "nfs".parse().unwrap()
}

fn nfs() -> Vec<DatastoreName> {
    vec![shared()]
}

impl Case {
    /// The state that it describes.
    pub fn state(&self) -> ClusterState {
        let datastore = |(name, kind): (&str, DatastoreKind)| DatastoreRecord {
            name: name.parse().unwrap(),
            kind,
            path: format!("/{name}").into(),
            id: name.to_owned(),
            unknown: Default::default(),
        };
        let kinds = [("disk", DatastoreKind::Local), ("nfs", DatastoreKind::Shared), ("san", DatastoreKind::Shared)];
        let mut state = ClusterState {
            hosts: self.hosts.iter().map(Host::record).collect(),
            vms: self.vms.iter().map(Vm::state).collect(),
            datastores: kinds.map(datastore).into(),
            run_leases: self.hosts.iter().filter(|host| !host.dead).map(|host| host.name.clone()).collect(),
            ..ClusterState::default()
        };
        state.hosts.sort_by(|one, other| one.name.cmp(&other.name));
        state.vms.sort_by(|one, other| one.record.name.cmp(&other.record.name));
        state
    }

    /// For each question what is expected, and what the planner says.
    pub fn answers(&self) -> Vec<(Vec<String>, Vec<String>)> {
        let (state, now) = (self.state(), now());
        let mut failures = Failures::default();
        self.failed.iter().for_each(|(vm, host, message)| failures.note(vm, host, message, 0));
        let basis = Basis { state: &state, failures: &failures, now: &now };
        let vm = |name: &VmName| state.vm(name).unwrap_or_else(|| panic!("there is no VM {name}"));
        let placed = |placed: Result<HostName, NoPlace>| match placed {
            Ok(host) => vec![format!("host {host}")],
            Err(why) => vec![why.to_string()],
        };
        let answer = |asked: &Question| {
            let host: HostName = asked.on.parse().unwrap();
            match asked {
                Question { lose: Some(lost), .. } => words(after_loss(&state, lost, &now)),
                Question { start: Some(name), .. } => match admits(&asked.admission, name, &host, &state, &now) {
                    Ok(()) => vec!["admitted".to_owned()],
                    Err(why) => vec![why.to_string()],
                },
                Question { place: Some(name), .. } => placed(place_primary(vm(name), &state, false, &now)),
                Question { force: Some(name), .. } => placed(place_primary(vm(name), &state, true, &now)),
                Question { protect: Some(name), .. } => placed(place_secondary(vm(name), None, &basis)),
                Question { leave: Some(name), .. } => vec![leaves(leaving(vm(name), &host, None, &basis))],
                _ => panic!("nothing is asked"),
            }
        };
        self.questions.iter().map(|question| (question.expect.clone(), answer(question))).collect()
    }
}

/// The time of all questions.
pub fn now() -> BootTime {
    BootTime { boot_id: BOOT.to_owned(), ms: 1000 }
}

fn leaves(leaving: Leaving) -> String {
    match leaving {
        Leaving::Moves { to, copies: true } => format!("is copied to {to}"),
        Leaving::Moves { to, copies: false } => format!("goes on on {to}"),
        Leaving::SecondaryMoves { to } => format!("has its next secondary on {to}"),
        Leaving::Waits { to } => format!("waits for a secondary on {to}"),
        Leaving::LosesProtection { to: Some(to), why } => format!("would run on {to} without protection: {why}"),
        Leaving::LosesProtection { to: None, why } => format!("would have no secondary: {why}"),
        Leaving::Stays { why } => format!("stays: {why}"),
    }
}

fn words(after: AfterLoss) -> Vec<String> {
    let AfterLoss { go_on, lose_secondary, restart, not_restarted, end } = after;
    let why = |why: Vec<(HostName, WhyNot)>| {
        let hosts: Vec<String> = why.iter().map(|(host, why)| format!("{host} {why}")).collect();
        hosts.join("; ")
    };
    let go_on = go_on.into_iter().map(|(vm, host)| format!("{vm} goes on on {host}"));
    let lose = lose_secondary.into_iter().map(|vm| format!("{vm} loses its secondary"));
    let restart = restart.into_iter().map(|(vm, host)| format!("{vm} is restarted on {host}"));
    let not = not_restarted.into_iter().map(|(vm, refusals)| format!("{vm} is not restarted: {}", why(refusals)));
    let end = end.into_iter().map(|vm| format!("{vm} ends"));
    go_on.chain(lose).chain(restart).chain(not).chain(end).collect()
}

impl Host {
    fn failure_domain(&self) -> Option<FailureDomain> {
        let domain = self.domain.as_deref().unwrap_or(self.name.as_str());
        (!domain.is_empty()).then(|| domain.parse().unwrap())
    }

    fn record(&self) -> HostRecord {
        let reached: BTreeMap<DatastoreName, DatastoreSpace> =
            self.reaches.iter().map(|name| (name.clone(), DatastoreSpace::default())).collect();
        HostRecord {
            name: self.name.clone(),
            api_address: "127.0.0.1:1".parse().unwrap(),
            replication_ip: "127.0.0.1".parse().unwrap(),
            boot_id: self.machine.clone(),
            domain: self.failure_domain(),
            cpus: self.cpus,
            memory_bytes: self.memory_gib << 30,
            engines: self.kvm.then_some(EngineKind::Kvm).into_iter().chain([EngineKind::Soft]).collect(),
            kvm_processor: None,
            networks: self.networks.clone(),
            reached,
            maintenance: self.maintenance,
            lease: Lease { renewed_boot_ms: 1000, renewed_unix_ms: 0, ttl_ms: if self.dead { 0 } else { 3000 } },
            version: String::new(),
            instance: String::new(),
            folder: Default::default(),
            unknown: Default::default(),
        }
    }
}

impl Vm {
    fn state(&self) -> VmState {
        let Self { name, memory_gib, cpus, priority, datastore, .. } = self;
        let card = self
            .bridge
            .as_ref()
            .map_or(String::new(), |bridge| format!("[[network]]\nmode = \"bridge\"\nbridge = \"{bridge}\"\n"));
        let user = if self.user_network { "[[network]]\nmode = \"user\"\n" } else { "" };
        let engine = if self.kvm { "kvm" } else { "auto" };
        let spec = format!(
            "name = \"{name}\"\nmemory = \"{memory_gib}G\"\ncpus = {cpus}\nkernel = \"k\"\npriority = \"{priority}\"\nengine = \"{engine}\"\n\
             [[disk]]\npath = \"d\"\ndatastore = \"{datastore}\"\n{card}{user}"
        );
        let spec = if self.unreadable { "of a newer version".to_owned() } else { spec };
        let mut record = VmRecord::new(name.clone(), spec, FtSettings::disabled(100, 50), 0);
        record.power = if self.off { Power::Off } else { Power::On };
        record.ha.enabled = self.protection == Protection::Ha;
        record.ft.enabled = self.protection == Protection::Ft;
        let secondary = self.secondary.as_ref().map(ReplicaId::new);
        let claim = Claim { generation: Generation::new(1), primary: ReplicaId::new(&self.on), secondary };
        record.syncing_to = self.syncing_to.clone();
        let (under_lease, copies) = (record.ha.enabled, self.copies.iter().map(ReplicaId::new).collect());
        VmState { record, claim: ClaimRecord { under_lease, copies, ..ClaimRecord::first(claim) } }
    }
}
