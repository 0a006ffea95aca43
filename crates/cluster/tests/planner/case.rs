//! A case in TOML: hosts, VMs, and what is asked.

use std::collections::{BTreeMap, BTreeSet};

use cluster::planner::{AfterLoss, WhyNot, admits, after_loss};
use cluster::records::{
    BootTime, ClaimRecord, ClusterState, DatastoreKind, DatastoreRecord, DatastoreSpace, FtSettings, HostRecord, Lease,
    Power, VmRecord, VmState,
};
use protocol::{Claim, Generation};
use serde::Deserialize;
use spec::{
    AdmissionPolicy, DatastoreName, EngineKind, HostName, Maintenance, Priority, Protection, ReplicaId, VmName,
};

const BOOT: &str = "boot";

/// A state, and what is asked about it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    hosts: Vec<Host>,
    #[serde(default)]
    vms: Vec<Vm>,
    #[serde(rename = "ask")]
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
    #[serde(default)]
    kvm: bool,
}

/// One question: what if hosts are lost, or whether a VM that is off may be started on a host.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    lose: Option<BTreeSet<HostName>>,
    start: Option<VmName>,
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
    /// For each question what is expected, and what the planner says.
    pub fn answers(&self) -> Vec<(Vec<String>, Vec<String>)> {
        let datastore = |(name, kind): (&str, DatastoreKind)| DatastoreRecord {
            name: name.parse().unwrap(),
            kind,
            path: format!("/{name}").into(),
            id: name.to_owned(),
            unknown: Default::default(),
        };
        let kinds = [("disk", DatastoreKind::Local), ("nfs", DatastoreKind::Shared), ("san", DatastoreKind::Shared)];
        let state = ClusterState {
            hosts: self.hosts.iter().map(Host::record).collect(),
            vms: self.vms.iter().map(Vm::state).collect(),
            datastores: kinds.map(datastore).into(),
            run_leases: self.hosts.iter().filter(|host| !host.dead).map(|host| host.name.clone()).collect(),
            ..ClusterState::default()
        };
        let now = BootTime { boot_id: BOOT.to_owned(), ms: 1000 };
        let answer = |question: &Question| match (&question.lose, &question.start) {
            (Some(lost), None) => words(after_loss(&state, lost, &now)),
            (None, Some(vm)) => {
                let host: HostName = question.on.parse().unwrap();
                match admits(&question.admission, vm, &host, &state, &now) {
                    Ok(()) => vec!["admitted".to_owned()],
                    Err(why) => vec![why.to_string()],
                }
            }
            _ => panic!("a question is about what is lost, or about what is started"),
        };
        self.questions.iter().map(|question| (question.expect.clone(), answer(question))).collect()
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
    fn record(&self) -> HostRecord {
        let reached: BTreeMap<DatastoreName, DatastoreSpace> =
            self.reaches.iter().map(|name| (name.clone(), DatastoreSpace::default())).collect();
        HostRecord {
            name: self.name.clone(),
            api_address: "127.0.0.1:1".parse().unwrap(),
            replication_ip: "127.0.0.1".parse().unwrap(),
            boot_id: BOOT.to_owned(),
            domain: Some(self.name.as_str().parse().unwrap()),
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
        let engine = if self.kvm { "kvm" } else { "auto" };
        let spec = format!(
            "name = \"{name}\"\nmemory = \"{memory_gib}G\"\ncpus = {cpus}\nkernel = \"k\"\npriority = \"{priority}\"\nengine = \"{engine}\"\n\
             [[disk]]\npath = \"d\"\ndatastore = \"{datastore}\"\n{card}"
        );
        let mut record = VmRecord::new(name.clone(), spec, FtSettings::disabled(100, 50), 0);
        record.power = if self.off { Power::Off } else { Power::On };
        record.ha.enabled = self.protection == Protection::Ha;
        record.ft.enabled = self.protection == Protection::Ft;
        let secondary = self.secondary.as_ref().map(ReplicaId::new);
        let claim = Claim { generation: Generation::new(1), primary: ReplicaId::new(&self.on), secondary };
        let under_lease = record.ha.enabled;
        VmState { record, claim: ClaimRecord { under_lease, ..ClaimRecord::first(claim) } }
    }
}
