//! High availability: VMs on a shared datastore that are restarted where their host is lost, by the shipped [`cluster::controller`] and under its run leases.
//!
//! Of its own, this world has hosts that lose power or the store, daemons that are killed, hosts that fail to start VMs, and a store whose answers are late. There are no locks on disks in it,
//! which would hide a lease that does not do its part.

use std::collections::{BTreeMap, BTreeSet};

use cluster::controller::{
    Action, Controller, Fence, FenceStep, HostReport, Outcome, RENEWAL_MS, RUN_LEASE_MS, ReplicaReport, ReplicaState,
    RunLease, Settings,
};
use cluster::planner::{Basis, Failures, has_lost_its_host};
use cluster::records::{BootTime, ClaimRecord, ClusterState, FtSettings, Power, VmRecord, VmState};
use protocol::{Claim, Generation};
use spec::{HostName, VmName};

use crate::daemon::host_record;
use crate::random::Random;

const HOSTS: [&str; 3] = ["a", "b", "c"];
const VMS: [&str; 3] = ["v", "w", "x"];
/// The time between two looks at the world, in ms.
const TICK_MS: u64 = 20;
/// How long things go wrong or are late, and how long they are not after that, in ms: as long as a host waits that has failed a few times.
const FAULTS_MS: u64 = 30_000;
const CALM_MS: u64 = 40_000;
/// How often a daemon decides and a broker looks, in ms.
const DECIDE_MS: u64 = 200;
const LOOK_MS: u64 = 100;
/// A host that has had nothing to complain of for so long must not stop its VMs, in ms.
const SOUND_MS: u64 = 8_000;
/// A time that does not come.
const NEVER: u64 = u64::MAX;

/// A mistake made on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartMutation {
    /// A host whose daemon does not answer counts as lost.
    RestartBeforeLeaseEnds,
    /// A VM whose host has lost the store runs on.
    DoNotStop,
    /// A lease counts from when its renewal is answered.
    CountFromAnswer,
    /// Nobody renews a lease whose daemon is gone.
    LeaveItToTheDaemon,
}

impl RestartMutation {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::RestartBeforeLeaseEnds, Self::DoNotStop, Self::CountFromAnswer, Self::LeaveItToTheDaemon];
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartViolation {
    /// A VM runs on two hosts.
    RunsTwice(String),
    /// A VM does not run though there are hosts for it.
    NotRestarted(String),
    /// A VM was stopped on a host that lacked nothing.
    StoppedForNothing(String),
}

/// A life of a few VMs, all of which follows from its seed.
#[derive(Clone, Copy, Debug)]
pub struct RestartSchedule {
    /// All chance comes from it.
    pub seed: u64,
    /// A mistake that is made on purpose.
    pub mutation: Option<RestartMutation>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct RestartOutcome {
    /// The first promise that was broken.
    pub violation: Option<RestartViolation>,
    /// How often a VM was restarted on another host, and at home.
    pub elsewhere: u64,
    /// The same on its own host.
    pub at_home: u64,
    /// How often a host tried to restart a VM and could not.
    pub failed: u64,
    /// How often a VM was ended since its lease was about to.
    pub fenced: u64,
}

impl RestartSchedule {
    /// Runs it.
    pub fn run(self) -> RestartOutcome {
        let mut world = World::new(self.seed, self.mutation);
        while world.now < FAULTS_MS + CALM_MS && world.outcome.violation.is_none() {
            world.tick();
        }
        world.judge_end();
        world.outcome
    }
}

/// A question to the store that is under way.
#[derive(Clone, Copy, Debug)]
struct Renewal {
    asked_ms: u64,
    arrives_ms: u64,
    answered_ms: u64,
    /// What the store said; none before it was reached, or if it was not.
    was_there: Option<bool>,
}

struct Process {
    fence: Fence,
    looks_ms: u64,
    renewal: Option<Renewal>,
    /// It is being ended.
    ends_ms: u64,
    generation: Generation,
}

/// A restart that is carried out.
struct Task {
    vm: VmName,
    action: Action,
    at_ms: u64,
    step: TaskStep,
}

enum TaskStep {
    Look,
    Claim { read: Generation, lease: u64 },
    Launch { claimed: Generation, lease: u64 },
}

struct Host {
    name: HostName,
    is_up: bool,
    back_ms: u64,
    daemon_back_ms: u64,
    cut_until_ms: u64,
    /// Until when it cannot start VMs, as their disks are in use or something of its own is broken.
    unable_until_ms: u64,
    /// Since when it has lacked nothing.
    sound_since_ms: u64,
    boots: u64,
    controller: Controller,
    known: ClusterState,
    /// What its daemon has written down.
    file: Option<RunLease>,
    held_since_ms: Option<u64>,
    renewal: Option<Renewal>,
    renews_ms: u64,
    decides_ms: u64,
    processes: BTreeMap<VmName, Process>,
    tasks: Vec<Task>,
}

struct World {
    now: u64,
    random: Random,
    mutation: Option<RestartMutation>,
    hosts: Vec<Host>,
    /// The store: records, and leases by number with their ends.
    state: ClusterState,
    leases: BTreeMap<u64, u64>,
    run_lease_of: BTreeMap<HostName, u64>,
    next_lease: u64,
    store_away_until_ms: u64,
    outcome: RestartOutcome,
}

impl World {
    fn new(seed: u64, mutation: Option<RestartMutation>) -> Self {
        let names: Vec<HostName> = HOSTS.iter().filter_map(|name| name.parse().ok()).collect();
        let vm = |(number, name): (usize, &&str)| {
            let name: VmName = (**name).to_owned().try_into().unwrap_or_else(|error| unreachable!("{error}"));
            let spec = format!("name = \"{name}\"\nmemory = \"1G\"\nkernel = \"k\"\n");
            let mut record = VmRecord::new(name, spec, FtSettings::disabled(100, 50), 0);
            (record.power, record.ha.enabled) = (Power::On, true);
            let primary = names[number % names.len()].replica();
            let first = Claim { generation: Generation::new(1), primary, secondary: None };
            VmState {
                record,
                // Its host may be gone before it has started it.
                claim: ClaimRecord { under_lease: true, ..ClaimRecord::first(first) },
            }
        };
        let state = ClusterState {
            hosts: names.iter().map(|name| host_record(name, None)).collect(),
            vms: VMS.iter().enumerate().map(vm).collect(),
            ..ClusterState::default()
        };
        Self {
            now: 0,
            random: Random::new(seed),
            mutation,
            hosts: names.into_iter().map(Host::new).collect(),
            state,
            leases: BTreeMap::new(),
            run_lease_of: BTreeMap::new(),
            next_lease: 1,
            store_away_until_ms: 0,
            outcome: RestartOutcome::default(),
        }
    }

    fn tick(&mut self) {
        self.now += TICK_MS;
        self.go_wrong();
        let now = self.now;
        self.leases.retain(|_, end_ms| *end_ms > now);
        let leases = &self.leases;
        self.run_lease_of.retain(|_, lease| leases.contains_key(lease));
        for host in 0..self.hosts.len() {
            self.come_back(host);
            if self.hosts[host].is_up {
                self.brokers_look(host);
                self.daemon_renews(host);
                self.tasks_go_on(host);
                self.daemon_decides(host);
            }
        }
        for vm in VMS {
            let running = self.hosts.iter().filter(|host| host.processes.keys().any(|name| name.as_str() == vm));
            if running.count() > 1 {
                self.broken(RestartViolation::RunsTwice(vm.to_owned()));
            }
        }
    }

    fn broken(&mut self, violation: RestartViolation) {
        self.outcome.violation.get_or_insert(violation);
    }

    fn judge_end(&mut self) {
        for vm in VMS {
            if !self.hosts.iter().any(|host| host.processes.keys().any(|name| name.as_str() == vm)) {
                self.broken(RestartViolation::NotRestarted(vm.to_owned()));
            }
        }
    }

    fn go_wrong(&mut self) {
        if self.now > FAULTS_MS || self.random.between(0, 1000) >= TICK_MS {
            return;
        }
        let host = self.random.below(self.hosts.len());
        let for_ms = self.random.between(200, 9_000);
        let until = self.now + for_ms;
        match self.random.below(9) {
            0 | 1 if self.hosts.iter().filter(|host| host.is_up).count() > 1 => {
                // One of them may be gone for good.
                let is_gone = self.random.chance(20) && self.hosts.iter().all(|host| host.back_ms != NEVER);
                let host = &mut self.hosts[host];
                let back_ms = if is_gone || host.back_ms == NEVER { NEVER } else { until };
                (host.is_up, host.back_ms, host.boots) = (false, back_ms, host.boots + 1);
                host.processes.clear();
                host.forget();
            }
            2 | 3 => {
                self.hosts[host].daemon_back_ms = until;
                self.hosts[host].forget();
            }
            4..=6 => self.hosts[host].cut_until_ms = until,
            7 => self.hosts[host].unable_until_ms = until.min(FAULTS_MS),
            _ => self.store_away_until_ms = until,
        }
    }

    fn come_back(&mut self, host: usize) {
        let now = self.now;
        let is_away = self.store_away_until_ms > now;
        let host = &mut self.hosts[host];
        if !host.is_up && host.back_ms <= now {
            (host.is_up, host.file) = (true, None);
        }
        if !host.is_up || is_away || host.cut_until_ms > now {
            host.sound_since_ms = now;
        }
    }

    fn reaches_store(&self, host: usize) -> bool {
        self.now >= self.store_away_until_ms && self.now >= self.hosts[host].cut_until_ms
    }

    fn ask(&mut self, host: usize) -> Renewal {
        let arrives_ms = self.now + self.random.between(0, 60);
        let is_late = self.is_late();
        let answered_ms = arrives_ms + self.random.between(0, if is_late { 1_800 } else { 100 });
        if is_late {
            self.hosts[host].sound_since_ms = answered_ms;
        }
        Renewal { asked_ms: self.now, arrives_ms, answered_ms, was_there: None }
    }

    fn is_late(&mut self) -> bool {
        self.random.chance(10) && self.now <= FAULTS_MS
    }

    /// The store lets a lease begin anew, if it is there.
    fn store_renews(&mut self, host: usize, lease: u64, renewal: &mut Renewal) {
        if renewal.was_there.is_none() && self.now >= renewal.arrives_ms && self.reaches_store(host) {
            let end = self.leases.get_mut(&lease);
            renewal.was_there = Some(end.is_some());
            if let Some(end) = end {
                *end = self.now + RUN_LEASE_MS;
            }
        }
    }

    /// From when a renewal counts.
    fn counts_from(&self, renewal: &Renewal) -> u64 {
        if self.mutation == Some(RestartMutation::CountFromAnswer) { self.now } else { renewal.asked_ms }
    }

    fn brokers_look(&mut self, host: usize) {
        let vms: Vec<VmName> = self.hosts[host].processes.keys().cloned().collect();
        for vm in vms {
            let Some(mut process) = self.hosts[host].processes.remove(&vm) else { continue };
            if self.broker_looks(host, &mut process) {
                self.hosts[host].processes.insert(vm, process);
            } else {
                self.outcome.fenced += 1;
                if self.now.saturating_sub(self.hosts[host].sound_since_ms) > SOUND_MS {
                    self.broken(RestartViolation::StoppedForNothing(vm.to_string()));
                }
            }
        }
    }

    /// Whether the process goes on.
    fn broker_looks(&mut self, host: usize, process: &mut Process) -> bool {
        if self.now >= process.ends_ms {
            return false;
        }
        let Some(file) = self.hosts[host].file.clone() else { return true };
        if let Some(mut renewal) = process.renewal.take() {
            self.store_renews(host, file.id, &mut renewal);
            if self.now < renewal.answered_ms {
                process.renewal = Some(renewal);
            } else if let Some(was_there) = renewal.was_there {
                process.fence.answered(self.counts_from(&renewal), was_there);
            }
        }
        if self.now < process.looks_ms || process.ends_ms != NEVER {
            return true;
        }
        process.looks_ms = self.now + LOOK_MS;
        process.fence.reads(&file);
        match process.fence.next(self.now) {
            FenceStep::Wait => {}
            FenceStep::Renew if self.mutation == Some(RestartMutation::LeaveItToTheDaemon) => {}
            FenceStep::Renew => {
                if process.renewal.is_none() {
                    process.renewal = Some(self.ask(host));
                }
            }
            FenceStep::Stop if self.mutation == Some(RestartMutation::DoNotStop) => {}
            FenceStep::Stop => process.ends_ms = self.now + self.random.between(0, 200),
        }
        true
    }

    fn has_daemon(&self, host: usize) -> bool {
        self.hosts[host].is_up && self.now >= self.hosts[host].daemon_back_ms
    }

    fn daemon_renews(&mut self, host: usize) {
        if !self.has_daemon(host) {
            return;
        }
        if let Some(mut renewal) = self.hosts[host].renewal.take() {
            let id = self.hosts[host].file.as_ref().map_or(0, |lease| lease.id);
            self.store_renews(host, id, &mut renewal);
            if self.now < renewal.answered_ms {
                self.hosts[host].renewal = Some(renewal);
            } else if let Some(was_there) = renewal.was_there {
                self.note_renewal(host, &renewal, was_there);
            }
        }
        if self.hosts[host].renewal.is_none() && self.now >= self.hosts[host].renews_ms {
            self.hosts[host].renews_ms = self.now + RENEWAL_MS;
            self.hosts[host].renewal = Some(self.ask(host));
        }
    }

    /// What `host::run_lease` does.
    fn note_renewal(&mut self, host: usize, renewal: &Renewal, was_there: bool) {
        let (now, from) = (self.now, self.counts_from(renewal));
        let name = self.hosts[host].name.clone();
        let boot_id = self.hosts[host].boots.to_string();
        if was_there {
            let own = &mut self.hosts[host];
            if let Some(lease) = &mut own.file {
                let is_good = own.held_since_ms.filter(|_| lease.is_good(now));
                own.held_since_ms = is_good.or(Some(now));
                lease.renewed(from);
            }
        } else if self.reaches_store(host) {
            let id = self.next_lease;
            self.next_lease += 1;
            self.leases.insert(id, now + RUN_LEASE_MS);
            self.run_lease_of.insert(name, id);
            self.hosts[host].file = Some(RunLease::granted(id, boot_id, from));
            self.hosts[host].held_since_ms = Some(now);
        }
    }

    fn daemon_decides(&mut self, host: usize) {
        if !self.has_daemon(host) || self.now < self.hosts[host].decides_ms {
            return;
        }
        self.hosts[host].decides_ms = self.now + DECIDE_MS;
        if self.reaches_store(host) {
            self.hosts[host].known = self.read();
        }
        let now = self.now;
        let own = &mut self.hosts[host];
        let report = |process: &Process| ReplicaReport {
            generation: process.generation,
            state: ReplicaState::Alone { loss: None },
            processor: None,
        };
        let lease = own.file.as_ref().filter(|lease| lease.is_good(now)).and(own.held_since_ms);
        let report = HostReport {
            host: own.name.clone(),
            has_booted: false,
            is_stopping: false,
            stops_vms: false,
            run_lease_ms: lease.map(|since_ms| now - since_ms),
            replicas: own.processes.iter().map(|(vm, process)| (vm.clone(), report(process))).collect(),
            powered_off: BTreeSet::new(),
        };
        let plan = own.controller.decide(&own.known, &report, &boot_time(now));
        for planned in plan.actions {
            let at_ms = now + self.random.between(0, 300);
            let task = Task { vm: planned.vm, action: planned.action, at_ms, step: TaskStep::Look };
            self.hosts[host].tasks.push(task);
        }
    }

    /// The records as the store has them now.
    fn read(&self) -> ClusterState {
        let mut state = self.state.clone();
        state.run_leases = self.run_lease_of.keys().cloned().collect();
        if self.mutation == Some(RestartMutation::RestartBeforeLeaseEnds) {
            let is_there = |name: &HostName| {
                (0..self.hosts.len()).any(|host| self.hosts[host].name == *name && self.has_daemon(host))
            };
            state.run_leases.retain(is_there);
        }
        for host in &mut state.hosts {
            host.lease.renewed_boot_ms = self.now;
            host.lease.ttl_ms = if state.run_leases.contains(&host.name) { RUN_LEASE_MS } else { 0 };
        }
        state
    }

    /// What `host::restart` does, step by step.
    fn tasks_go_on(&mut self, host: usize) {
        if !self.has_daemon(host) {
            return;
        }
        for mut task in std::mem::take(&mut self.hosts[host].tasks) {
            if self.now < task.at_ms {
                self.hosts[host].tasks.push(task);
                continue;
            }
            let next = if self.reaches_store(host) { self.step(host, &task) } else { Err(Outcome::NotWanted) };
            match next {
                Ok(Some(step)) => {
                    task.step = step;
                    let late_ms = if self.is_late() { 4_000 } else { 200 };
                    task.at_ms = self.now + self.random.between(0, late_ms);
                    self.hosts[host].tasks.push(task);
                }
                Ok(None) => self.hosts[host].controller.note(&task.vm, &task.action, &Outcome::Done, self.now),
                Err(outcome) => {
                    if outcome != Outcome::NotWanted {
                        self.outcome.failed += 1;
                        self.give_up(host, &task.vm);
                    }
                    self.hosts[host].controller.note(&task.vm, &task.action, &outcome, self.now);
                }
            }
        }
    }

    fn step(&mut self, host: usize, task: &Task) -> Result<Option<TaskStep>, Outcome> {
        let (now, me) = (self.now, self.hosts[host].name.clone());
        let Action::Restart { at_home, .. } = &task.action else { return Ok(None) };
        let state = self.read();
        let current = state.vm(&task.vm).ok_or(Outcome::NotWanted)?;
        match task.step {
            TaskStep::Look => {
                let basis = Basis { state: &state, failures: &Failures::default(), now: &boot_time(now) };
                let is_home = me.is(&current.claim.claim.primary);
                if is_home != *at_home || !(is_home || has_lost_its_host(current, &basis)) {
                    return Err(Outcome::NotWanted);
                }
                if self.is_unable(host) && self.random.chance(50) {
                    return Err(failed());
                }
                let lease =
                    self.hosts[host].file.as_ref().filter(|lease| lease.is_good(now)).ok_or(Outcome::NotWanted)?.id;
                Ok(Some(TaskStep::Claim { read: current.claim.claim.generation, lease }))
            }
            TaskStep::Claim { read, lease } => {
                let generation = self.claim(&task.vm, &me, read)?;
                Ok(Some(TaskStep::Launch { claimed: generation, lease }))
            }
            TaskStep::Launch { claimed, lease } => {
                let mut fence = Fence::new(lease);
                self.hosts[host].file.iter().for_each(|file| fence.reads(file));
                if fence.next(now) == FenceStep::Stop || self.is_unable(host) {
                    return Err(failed());
                }
                let generation = self.claim(&task.vm, &me, claimed)?;
                let looks_ms = now + LOOK_MS;
                let process = Process { fence, looks_ms, renewal: None, ends_ms: NEVER, generation };
                self.hosts[host].processes.insert(task.vm.clone(), process);
                if *at_home {
                    self.outcome.at_home += 1
                } else {
                    self.outcome.elsewhere += 1
                }
                Ok(None)
            }
        }
    }

    /// What `host::registry` does.
    fn give_up(&mut self, host: usize, vm: &VmName) {
        let me = &self.hosts[host].name;
        let vm = self.state.vms.iter_mut().find(|other| other.record.name == *vm);
        if let Some(vm) = vm.filter(|vm| me.is(&vm.claim.claim.primary) && !vm.claim.given_up) {
            let claim = Claim { generation: vm.claim.claim.generation.next(), ..vm.claim.claim.clone() };
            vm.claim = ClaimRecord { under_lease: true, given_up: true, ..vm.claim.succeeded_by(claim) };
        }
    }

    fn is_unable(&self, host: usize) -> bool {
        self.now < self.hosts[host].unable_until_ms
    }

    /// The arbiter's compare-and-swap.
    fn claim(&mut self, vm: &VmName, host: &HostName, read: Generation) -> Result<Generation, Outcome> {
        let vm = self.state.vms.iter_mut().find(|other| other.record.name == *vm).ok_or(Outcome::NotWanted)?;
        if vm.claim.claim.generation != read {
            return Err(Outcome::NotWanted);
        }
        let claim = Claim { generation: read.next(), primary: host.replica(), secondary: None };
        vm.claim = ClaimRecord { under_lease: true, ..vm.claim.succeeded_by(claim) };
        Ok(read.next())
    }
}

impl Host {
    fn new(name: HostName) -> Self {
        Self {
            name,
            is_up: true,
            back_ms: 0,
            daemon_back_ms: 0,
            cut_until_ms: 0,
            unable_until_ms: 0,
            sound_since_ms: 0,
            boots: 0,
            controller: Controller::new(Settings { first_copies_max: 1 }),
            known: ClusterState::default(),
            file: None,
            held_since_ms: None,
            renewal: None,
            renews_ms: 0,
            decides_ms: 0,
            processes: BTreeMap::new(),
            tasks: Vec::new(),
        }
    }

    /// What its daemon had in mind is gone.
    fn forget(&mut self) {
        self.controller = Controller::new(Settings { first_copies_max: 1 });
        self.known = ClusterState::default();
        (self.held_since_ms, self.renewal) = (None, None);
        self.tasks.clear();
    }
}

fn failed() -> Outcome {
    Outcome::Failed("it cannot be started".to_owned())
}

fn boot_time(ms: u64) -> BootTime {
    BootTime { boot_id: "boot".to_owned(), ms }
}
