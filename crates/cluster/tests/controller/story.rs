//! A story in TOML: hosts, VMs, and what happens step by step.

use std::collections::{BTreeMap, BTreeSet};

use cluster::controller::{
    Action, Controller, HostReport, Loss, LossCause, Outcome, Plan, ReplicaReport, ReplicaState, Settings,
};
use cluster::records::{
    BootTime, ClaimRecord, ClusterState, FtSettings, HostRecord, Lease, OperationKind, OperationResult, Power,
    VmRecord, VmState,
};
use protocol::{Claim, Generation};
use serde::Deserialize;
use spec::processor::{Features, TscOffer, XsaveComponent, word};
use spec::{
    CpuLevel, CpuOffer, CpuProfile, EngineKind, FailureDomain, FtMode, HostName, Maintenance, Priority, ReplicaId,
    VmName,
};

const BOOT: &str = "boot";
const LEASE_TTL_MS: u64 = 3_000;
/// AES instructions, which are in no level.
const AES: u32 = 1 << 25;
/// How long a guest may take to shut down when it is rebooted.
const PATIENCE_MS: u64 = 180_000;

/// The story of host `a`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Story {
    #[serde(default = "one")]
    first_copies_max: usize,
    /// Hosts, all of them renewing their leases.
    hosts: Vec<Host>,
    vms: Vec<Vm>,
    #[serde(rename = "step")]
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    name: HostName,
    #[serde(default = "much")]
    memory_mib: u64,
    /// What it fails together with; itself alone if that is not said.
    domain: Option<FailureDomain>,
    /// How much of a processor its KVM can be; without, it has no KVM.
    kvm: Option<CpuLevel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    name: VmName,
    #[serde(default = "gibibyte")]
    memory_mib: u64,
    #[serde(default = "here")]
    primary: String,
    secondary: Option<String>,
    #[serde(default = "first")]
    generation: u64,
    syncing_to: Option<HostName>,
    #[serde(default)]
    off: bool,
    /// It is started with its machine.
    #[serde(default)]
    autostart: bool,
    /// It runs on KVM, at this level.
    kvm: Option<CpuLevel>,
    #[serde(default)]
    priority: Priority,
    #[serde(default)]
    ft: Ft,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ft {
    #[default]
    On,
    Off,
    Suspended,
}

/// What has changed, is seen and is expected; what a step does not say is as in the step before.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// In ms since the boot.
    at: u64,
    /// How actions have ended: VM, and `done`, `not wanted`, or why it failed.
    #[serde(default)]
    ended: Vec<(VmName, String)>,
    /// How steps of operations have ended, in the same words.
    #[serde(default)]
    stepped: Vec<(VmName, String)>,
    /// How the ends of replicas with their host have ended, in the same words.
    #[serde(default)]
    left: Vec<(VmName, String)>,
    /// The daemon was killed, and this is the next one: it remembers nothing.
    #[serde(default)]
    new_daemon: bool,
    /// What is asked for: `start`, `force-start` (here, from what is here), `restore`, `stop`, `force-stop`, `reboot`, `force-reboot`, `switchover`,
    /// `failover`, `restart-secondary`, `mode MODE`, `migrate HOST`.
    #[serde(default)]
    ask: BTreeMap<VmName, String>,
    /// The records say how operations have ended: `done`, or why they failed.
    #[serde(default)]
    results: BTreeMap<VmName, String>,
    /// Starts that have begun: the records say in which generation, and that the VM is on.
    #[serde(default)]
    begun: Vec<VmName>,
    /// Changes of power.
    #[serde(default)]
    power: BTreeMap<VmName, Power>,
    /// Somebody asks for another attempt with these VMs.
    #[serde(default)]
    hurry: Vec<VmName>,
    /// Changes of whether VMs are started with their machine.
    #[serde(default)]
    autostart: BTreeMap<VmName, bool>,
    /// Changes of fault tolerance.
    #[serde(default)]
    ft: BTreeMap<VmName, Ft>,
    /// Changes of high availability: `on` is under a lease, `next` from its next start on.
    #[serde(default)]
    ha: BTreeMap<VmName, String>,
    /// Hosts that have lost their run leases.
    #[serde(default)]
    lost: Vec<HostName>,
    /// For how long this host has held its run lease, in ms.
    #[serde(default)]
    run_lease_ms: Option<u64>,
    /// VMs that their hosts cannot start, and have given up.
    #[serde(default)]
    given_up: Vec<VmName>,
    /// Changes of claims: primary, secondary (`-`: none), generation.
    #[serde(default)]
    claims: BTreeMap<VmName, (String, String, u64)>,
    /// Changes of reservations for first copies (`-`: none).
    #[serde(default)]
    syncing_to: BTreeMap<VmName, String>,
    /// Changes of hosts' maintenance.
    #[serde(default)]
    maintenance: BTreeMap<HostName, Maintenance>,
    /// Hosts that do not renew their leases any more.
    #[serde(default)]
    silent: Vec<HostName>,
    /// The machine has booted since VMs were started with it last.
    #[serde(default)]
    booted: bool,
    #[serde(default)]
    stopping: bool,
    #[serde(default)]
    stopping_with_vms: bool,
    #[serde(default)]
    powered_off: BTreeSet<VmName>,
    /// The replicas here, if that changes.
    seen: Option<BTreeMap<VmName, Seen>>,
    /// Actions and reasons, then why nothing is done about the other VMs.
    expect: Vec<String>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    is: Is,
    #[serde(default = "first")]
    generation: u64,
    peer: Option<HostName>,
    #[serde(default)]
    unclaimed_ms: u64,
    loss: Option<Cause>,
    /// What its guest was told of its processors.
    told: Option<CpuLevel>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Is {
    Booting,
    Alone,
    Syncing,
    Protected,
    Secondary,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Cause {
    Request,
    Silence,
    Fault,
}

/// What an action is for: of each kind, one at a time is under way for a VM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Protection,
    Operation,
    Leaving,
}

fn one() -> usize {
    1
}

fn first() -> u64 {
    1
}

fn much() -> u64 {
    1 << 16
}

fn gibibyte() -> u64 {
    1 << 10
}

fn here() -> String {
    "a".to_owned()
}

impl Story {
    /// For each step what is expected and what the controller decides.
    pub fn tell(&self) -> Vec<(Vec<String>, Vec<String>)> {
        let mut controller = Controller::new(Settings { first_copies_max: self.first_copies_max });
        let mut state = ClusterState {
            hosts: self.hosts.iter().map(Host::record).collect(),
            vms: self.vms.iter().map(Vm::state).collect(),
            run_leases: self.hosts.iter().map(|host| host.name.clone()).collect(),
            ..ClusterState::default()
        };
        state.hosts.sort_by(|one, other| one.name.cmp(&other.name));
        state.vms.sort_by(|one, other| one.record.name.cmp(&other.record.name));
        let mut seen = BTreeMap::new();
        let mut silent: BTreeSet<HostName> = BTreeSet::new();
        let mut under_way: BTreeMap<(VmName, Purpose), Action> = BTreeMap::new();
        let mut told = Vec::new();
        for step in &self.steps {
            if step.new_daemon {
                controller = Controller::new(Settings { first_copies_max: self.first_copies_max });
                under_way.clear();
            }
            let endings = [
                (&step.ended, Purpose::Protection),
                (&step.stepped, Purpose::Operation),
                (&step.left, Purpose::Leaving),
            ];
            for (endings, purpose) in endings {
                for (vm, outcome) in endings {
                    let action = under_way.remove(&(vm.clone(), purpose));
                    let action = action.unwrap_or_else(|| panic!("nothing is under way for {vm}"));
                    controller.note(vm, &action, &outcome_of(outcome), step.at);
                }
            }
            step.hurry.iter().for_each(|vm| controller.hurry(vm));
            step.change(&mut state);
            silent.extend(step.silent.iter().cloned());
            for host in state.hosts.iter_mut().filter(|host| !silent.contains(&host.name)) {
                host.lease.renewed_boot_ms = step.at;
            }
            if let Some(now) = &step.seen {
                seen = now.iter().map(|(vm, seen)| (vm.clone(), seen.report())).collect();
            }
            let report = HostReport {
                host: "a".parse().unwrap(),
                has_booted: step.booted,
                is_stopping: step.stopping || step.stopping_with_vms,
                stops_vms: step.stopping_with_vms,
                run_lease_ms: step.run_lease_ms,
                replicas: seen.clone(),
                powered_off: step.powered_off.clone(),
            };
            let plan = controller.decide(&state, &report, &BootTime { boot_id: BOOT.to_owned(), ms: step.at });
            under_way.extend(plan.actions.iter().map(|planned| {
                let purpose = match planned.action {
                    Action::Step { .. } | Action::NoteResult { .. } => Purpose::Operation,
                    Action::ShutDown { .. } | Action::EndSecondary => Purpose::Leaving,
                    _ => Purpose::Protection,
                };
                ((planned.vm.clone(), purpose), planned.action.clone())
            }));
            told.push((step.expect.clone(), words(&plan)));
        }
        told
    }
}

fn words(plan: &Plan) -> Vec<String> {
    let idle = plan.idle.iter().map(|(vm, idle)| format!("{vm}: nothing ({idle})"));
    let waiting = plan.waiting.iter().map(|(vm, waiting)| format!("{vm}: waits ({waiting})"));
    plan.actions.iter().map(ToString::to_string).chain(idle).chain(waiting).collect()
}

fn kind_of(text: &str, from: &str) -> OperationKind {
    let start = |from_stale_disks, snapshot: Option<&str>| OperationKind::Start {
        from_stale_disks,
        snapshot: snapshot.map(|name| name.parse().unwrap()),
    };
    let from: HostName = from.parse().unwrap();
    match text {
        "start" => start(false, None),
        "force-start" => start(true, None),
        "restore" => start(false, Some("s")),
        "stop" | "force-stop" => OperationKind::Stop { force: text == "force-stop" },
        "reboot" | "force-reboot" => OperationKind::Reboot { force: text == "force-reboot", patience_ms: PATIENCE_MS },
        "switchover" => OperationKind::Switchover { from },
        "failover" => OperationKind::Failover { from },
        "restart-secondary" => OperationKind::RestartSecondary,
        "mode mirror" => OperationKind::ChangeMode { mode: FtMode::Mirror },
        "mode lockstep" => OperationKind::ChangeMode { mode: FtMode::Lockstep },
        other if other.starts_with("migrate ") => OperationKind::Migrate { to: other[8..].parse().unwrap() },
        other => panic!("nobody can ask for {other}"),
    }
}

fn outcome_of(text: &str) -> Outcome {
    match text {
        "done" => Outcome::Done,
        "not wanted" => Outcome::NotWanted,
        why => Outcome::Failed(why.to_owned()),
    }
}

impl Step {
    fn change(&self, state: &mut ClusterState) {
        state.run_leases.retain(|host| !self.lost.contains(host));
        for host in &mut state.hosts {
            host.maintenance = self.maintenance.get(&host.name).copied().unwrap_or(host.maintenance);
        }
        for vm in &mut state.vms {
            let name = &vm.record.name.clone();
            vm.record.autostart = self.autostart.get(name).copied().unwrap_or(vm.record.autostart);
            if let Some(ft) = self.ft.get(name) {
                set_ft(&mut vm.record.ft, *ft);
            }
            if let Some(ha) = self.ha.get(name) {
                vm.record.ha.enabled = ha != "off";
                vm.claim.under_lease = ha == "on";
            }
            if let Some((primary, secondary, generation)) = self.claims.get(name) {
                vm.claim.claim = claim(primary, Some(secondary).filter(|host| *host != "-"), *generation);
                vm.claim.given_up = false;
            }
            vm.claim.given_up |= self.given_up.contains(name);
            if let Some(host) = self.syncing_to.get(name) {
                vm.record.syncing_to = host.parse().ok();
            }
            if let Some(power) = self.power.get(name) {
                vm.record.power = *power;
            }
            let claim = &vm.claim.claim;
            if let (Some(result), Some(id)) = (self.results.get(name), vm.record.pending().map(|it| it.id)) {
                let failed = |why: &str| OperationResult::Failed { why: why.to_owned() };
                vm.record.end(id, if result == "done" { OperationResult::Done } else { failed(result) });
            }
            if let Some(text) = self.ask.get(name) {
                let host = (text == "force-start").then(|| "a".parse().unwrap());
                vm.record.ask(kind_of(text, claim.primary.as_str()), host, claim.generation);
            }
            if self.begun.contains(name) {
                vm.record.power = Power::On;
                vm.record.begin_start(claim.generation);
            }
        }
    }
}

impl Host {
    fn record(&self) -> HostRecord {
        HostRecord {
            name: self.name.clone(),
            api_address: "127.0.0.1:1".parse().unwrap(),
            replication_ip: "127.0.0.1".parse().unwrap(),
            boot_id: BOOT.to_owned(),
            domain: Some(self.domain.clone().unwrap_or_else(|| self.name.as_str().parse().unwrap())),
            cpus: 64,
            memory_bytes: self.memory_mib << 20,
            engines: self.kvm.map(|_| EngineKind::Kvm).into_iter().chain([EngineKind::Soft]).collect(),
            kvm_processor: self.kvm.map(offer),
            networks: Vec::new(),
            reached: Default::default(),
            maintenance: Default::default(),
            lease: Lease { renewed_boot_ms: 0, renewed_unix_ms: 0, ttl_ms: LEASE_TTL_MS },
            version: String::new(),
            instance: String::new(),
            folder: Default::default(),
            unknown: Default::default(),
        }
    }
}

/// A KVM that can be all of a level and no more; `host` stands for more than x86-64-v3.
fn offer(level: CpuLevel) -> CpuOffer {
    let CpuProfile { vendor, features, physical_bits, xsave, .. } = profile(level);
    let tsc = TscOffer::Scaled;
    CpuOffer { vendor: Some(vendor), features, arch_capabilities: 0, physical_bits, xsave, tsc }
}

/// What a guest of this level was told.
fn profile(level: CpuLevel) -> CpuProfile {
    let portable = CpuProfile { signature: 0x0005_0657, ..CpuProfile::in_order() };
    let avx = XsaveComponent { number: 2, offset: 576, bytes: 256 };
    match level {
        CpuLevel::Portable => portable,
        CpuLevel::V3 => CpuProfile { features: Features::PORTABLE.or(Features::V3), xsave: vec![avx], ..portable },
        CpuLevel::Host => {
            let v3 = profile(CpuLevel::V3);
            CpuProfile { features: v3.features.with((word::BASIC_ECX, AES)), ..v3 }
        }
    }
}

impl Vm {
    fn state(&self) -> VmState {
        let Self { name, memory_mib, priority, .. } = self;
        let cpu = self.kvm.unwrap_or_default();
        let spec = format!(
            "name = \"{name}\"\nmemory = \"{memory_mib}M\"\nkernel = \"k\"\npriority = \"{priority}\"\ncpu = \"{cpu}\"\n"
        );
        let mut record = VmRecord::new(self.name.clone(), spec, FtSettings::disabled(100, 50), 0);
        // Not noted where its spec leaves no other: the decisions must not depend on the note then.
        record.engine = self.kvm.filter(|level| *level == CpuLevel::Portable).map(|_| EngineKind::Kvm);
        record.power = if self.off { Power::Off } else { Power::On };
        record.autostart = self.autostart;
        record.syncing_to = self.syncing_to.clone();
        set_ft(&mut record.ft, self.ft);
        VmState { record, claim: ClaimRecord::first(claim(&self.primary, self.secondary.as_ref(), self.generation)) }
    }
}

fn set_ft(settings: &mut FtSettings, ft: Ft) {
    (settings.enabled, settings.suspended) = match ft {
        Ft::On => (true, false),
        Ft::Off => (false, false),
        Ft::Suspended => (true, true),
    };
}

fn claim(primary: &str, secondary: Option<&String>, generation: u64) -> Claim {
    Claim {
        generation: Generation::new(generation),
        primary: ReplicaId::new(primary),
        secondary: secondary.map(ReplicaId::new),
    }
}

impl Seen {
    fn report(&self) -> ReplicaReport {
        let peer = || self.peer.clone().expect("a peer");
        let loss = |cause| {
            let cause = match cause {
                Cause::Request => LossCause::Request,
                Cause::Silence => LossCause::Silence,
                Cause::Fault => LossCause::Fault,
            };
            Loss { cause, text: format!("{cause:?}").to_lowercase() }
        };
        let state = match self.is {
            Is::Booting => ReplicaState::Booting,
            Is::Alone => ReplicaState::Alone { loss: self.loss.map(loss) },
            Is::Syncing => ReplicaState::Syncing { to: peer() },
            Is::Protected => ReplicaState::Protected { by: peer() },
            Is::Secondary => ReplicaState::Secondary { unclaimed_ms: self.unclaimed_ms },
        };
        ReplicaReport { generation: Generation::new(self.generation), state, processor: self.told.map(profile) }
    }
}
