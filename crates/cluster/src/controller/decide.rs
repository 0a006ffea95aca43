//! [`Controller`]: what decides.

use std::collections::BTreeMap;

use spec::{CpuProfile, HostName, Maintenance, Priority, VmName};

use super::action::{Action, Outcome, Plan, Planned, Step, Why};
use super::autostart::{self, Autostart};
use super::idle::Idle;
use super::look::Look;
use super::operation::{self, Next, Progress, Waiting};
use super::report::{HostReport, ReplicaReport, ReplicaState};
use super::restart::Restarting;
use super::search::{Phase, Search};
use super::shutdown::Shutdown;
use crate::planner::{
    Basis, Failures, Leaving, NoPlace, Room, leaving, may_hold_secondary_in, place_restarts, place_secondary_in,
};
use crate::records::{BootTime, ClusterState, OperationKind, Power, VmState};

/// How long a secondary may wait for its primary before it is given up, in ms.
const UNCLAIMED_MS_MAX: u64 = 60_000;
/// How long a secondary may take to take its VM over once it suspects that the primary is gone, in ms: before that nobody takes the VM from it.
const TAKEOVER_MS_MAX: u64 = 3_000;

/// What an administrator sets for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most first copies that the host sends at a time, at least 1: what is left of a cluster that has lost a host would be busy with nothing
    /// else otherwise.
    pub first_copies_max: usize,
}

/// Decides what one host does about its VMs.
#[derive(Clone, Debug)]
pub struct Controller {
    settings: Settings,
    searches: BTreeMap<VmName, Search>,
    failures: Failures,
    autostart: Autostart,
    restarting: Restarting,
}

/// A VM that could be given a secondary now.
struct Candidate<'a> {
    vm: &'a VmState,
    processor: Option<&'a CpuProfile>,
    /// Why the secondary that it has is let go for another one; nothing if it has none.
    replaced: Option<Why>,
    priority: Priority,
    alone_since_ms: u64,
}

impl Controller {
    /// One that remembers nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            searches: BTreeMap::new(),
            failures: Failures::default(),
            autostart: Autostart::default(),
            restarting: Restarting::default(),
        }
    }

    /// Hosts that have failed as secondaries lately.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// What the host is to do now. `wanted` is the cluster's state, `seen` what the host sees, observed before `wanted` was read or after.
    pub fn decide(&mut self, wanted: &ClusterState, seen: &HostReport, now: &BootTime) -> Plan {
        let is_at_home = |vm: &VmState| seen.host.is(&vm.claim.claim.primary);
        let is_asked = |vm: &VmState| vm.record.pending().is_some_and(|it| it.host.as_ref() == Some(&seen.host));
        let concerns = |vm: &VmState| is_at_home(vm) || is_asked(vm);
        let is_here = |vm: &VmName| seen.replicas.contains_key(vm) || wanted.vm(vm).is_some_and(concerns);
        self.searches.retain(|vm, search| search.is_busy || search.progress.is_busy || is_here(vm));
        let is_primary = |vm: &VmName| {
            seen.replicas.get(vm).is_some_and(|replica| !matches!(replica.state, ReplicaState::Secondary { .. }))
        };
        for (vm, search) in &mut self.searches {
            // Whatever was sent by a primary that is gone is not sent any more.
            if !search.is_busy && !is_primary(vm) {
                search.let_go();
            }
        }
        let mut plan = Plan::default();
        let mut candidates = Vec::new();
        for (name, replica) in &seen.replicas {
            let vm = wanted.vm(name);
            if let Some(vm) = vm
                && !matches!(replica.state, ReplicaState::Secondary { .. } | ReplicaState::Booting)
            {
                self.observe(vm, replica, now.ms);
            }
            let search = self.searches.entry(name.clone()).or_default();
            let look = Look { basis: Basis { state: wanted, failures: &self.failures, now }, seen };
            match consider(vm, name, replica, search, &look) {
                Considered::Act(action, why) => {
                    search.is_busy = true;
                    plan.actions.push(Planned { vm: name.clone(), action, why });
                }
                Considered::Nothing(idle) => drop(plan.idle.insert(name.clone(), idle)),
                Considered::NeedsSecondary(vm, replaced) => {
                    let processor = replica.processor.as_ref();
                    // Of one whose spec cannot be read nothing is known, and nothing comes.
                    let priority = vm.record.spec.read().map_or(Priority::Lowest, |spec| spec.priority);
                    let alone_since_ms = search.alone_since_ms();
                    candidates.push(Candidate { vm, processor, replaced, priority, alone_since_ms });
                }
            }
        }
        self.give_secondaries(candidates, wanted, now, &mut plan);
        self.settle_absent(wanted, seen, now.ms, &mut plan);
        self.start_with_machine(wanted, seen, now.ms, &mut plan);
        self.restart(wanted, seen, now, &mut plan);
        self.operate(wanted, seen, now, &mut plan);
        self.evacuate(wanted, seen, now, &mut plan);
        self.shut_down(seen, now.ms, &mut plan);
        plan.actions.sort_by(|a, b| a.vm.cmp(&b.vm));
        plan
    }

    /// Whether no VM is to be started any more because the machine has booted.
    pub fn is_autostart_over(&self) -> bool {
        self.autostart.is_over()
    }

    /// Takes note of how an action has ended.
    pub fn note(&mut self, vm: &VmName, action: &Action, outcome: &Outcome, now_ms: u64) {
        if *action == Action::AskForStart {
            return self.autostart.note(vm, outcome);
        }
        if let Action::Restart { on, .. } = action {
            if let Outcome::Failed(message) = outcome {
                self.failures.note(vm, on, message, now_ms);
            }
            return self.restarting.note(vm, outcome, now_ms);
        }
        let search = self.searches.entry(vm.clone()).or_default();
        if let Action::ShutDown { .. } | Action::EndSecondary = action {
            if let Some(shutdown) = &mut search.shutdown {
                shutdown.note(action, outcome, now_ms);
            }
            return;
        }
        if let Action::Step { .. } | Action::NoteResult { .. } = action {
            search.progress.note(action, outcome, now_ms);
            if let (Action::Step { step: Step::RestartSecondary, .. }, Outcome::Done) = (action, outcome) {
                search.let_go();
            }
            return;
        }
        search.is_busy = false;
        match (action, outcome) {
            (Action::Protect { .. }, Outcome::Done) => search.told(now_ms),
            (Action::Protect { .. }, Outcome::NotWanted) => search.given_up(None, now_ms),
            (Action::Protect { secondary }, Outcome::Failed(message)) => {
                search.given_up(Some(message.clone()), now_ms);
                self.failures.note(vm, secondary, message, now_ms);
            }
            (Action::Unprotect | Action::Replace, Outcome::Done) => search.let_go(),
            (Action::Move { .. }, Outcome::Done) => search.moves(now_ms),
            (_, Outcome::Failed(message)) => search.given_up(Some(message.clone()), now_ms),
            (_, Outcome::Done | Outcome::NotWanted) => {}
        }
    }

    /// Somebody asks for another attempt with a VM: what has failed is forgotten.
    pub fn hurry(&mut self, vm: &VmName) {
        self.failures.forget(vm);
        self.restarting.hurry(vm);
        if let Some(search) = self.searches.get_mut(vm) {
            search.hurry();
        }
    }

    fn observe(&mut self, vm: &VmState, replica: &ReplicaReport, now_ms: u64) {
        let name = &vm.record.name;
        let lost = self.searches.entry(name.clone()).or_default().observe(&replica.state, now_ms);
        if let Some(lost) = lost
            && let Some(message) = lost.blame
        {
            self.failures.note(name, &lost.host, &message, now_ms);
        }
    }

    /// Gives the places for first copies that are free to the VMs of the highest priority, and of those to the ones that have been without a secondary for
    /// longest.
    fn give_secondaries(
        &mut self,
        mut candidates: Vec<Candidate<'_>>,
        wanted: &ClusterState,
        now: &BootTime,
        plan: &mut Plan,
    ) {
        if candidates.is_empty() {
            return;
        }
        let mut under_way = self.copies_under_way();
        // One that has a secondary comes after those that have none.
        let order =
            |it: &Candidate<'_>| (it.replaced.is_some(), it.priority, it.alone_since_ms, it.vm.record.name.clone());
        candidates.sort_by_cached_key(order);
        let basis = Basis { state: wanted, failures: &self.failures, now };
        // What was just promised, the next VM is not promised once more.
        let (mut room, mut ahead) = (Room::of(wanted), 0);
        for Candidate { vm, processor, replaced, .. } in candidates {
            let name = &vm.record.name;
            if under_way >= self.settings.first_copies_max.max(1) {
                plan.idle.insert(name.clone(), Idle::Queued { ahead, under_way });
                ahead += 1;
                continue;
            }
            if let Some(why) = replaced {
                under_way += 1;
                self.searches.entry(name.clone()).or_default().is_busy = true;
                plan.actions.push(Planned { vm: name.clone(), action: Action::Replace, why });
                continue;
            }
            room.release(vm);
            let placed = match vm.record.migrates_to(&vm.claim.claim) {
                Some(to) => may_hold_secondary_in(&room, vm, to, processor, &basis).map(|()| to.clone()),
                None => place_secondary_in(&room, vm, processor, &basis),
            };
            match &placed {
                Ok(secondary) => room.hold(&vm.promised_to(secondary)),
                Err(_) => room.hold(vm),
            }
            match placed {
                Ok(secondary) => {
                    under_way += 1;
                    let search = self.searches.entry(name.clone()).or_default();
                    search.phase = Phase::Preparing(secondary.clone());
                    search.is_busy = true;
                    let action = Action::Protect { secondary };
                    plan.actions.push(Planned { vm: name.clone(), action, why: Why::NeedsSecondary });
                }
                Err(error) => drop(plan.idle.insert(name.clone(), no_place(vm, error))),
            }
        }
    }

    /// VMs that are to be started with the machine, which has booted.
    fn start_with_machine(&mut self, wanted: &ClusterState, seen: &HostReport, now_ms: u64, plan: &mut Plan) {
        for (vm, next) in self.autostart.next(wanted, seen, now_ms) {
            match next {
                autostart::Next::Ask => {
                    plan.actions.push(Planned { vm, action: Action::AskForStart, why: Why::MachineBooted });
                }
                autostart::Next::Later(tries) => drop(plan.idle.entry(vm).or_insert(Idle::StartsAgain { tries })),
            }
        }
    }

    /// VMs that are to run and do not, here or on a host that is lost.
    fn restart(&mut self, wanted: &ClusterState, seen: &HostReport, now: &BootTime, plan: &mut Plan) {
        let basis = Basis { state: wanted, failures: &self.failures, now };
        let mut placed = place_restarts(&basis).placed;
        let overdue = self.restarting.overdue(seen, &placed, &basis);
        let is_changed = !overdue.is_empty();
        for (vm, host) in overdue {
            self.failures.note(&vm, &host, "it did not restart the VM in its turn", now.ms);
        }
        let basis = Basis { state: wanted, failures: &self.failures, now };
        if is_changed {
            placed = place_restarts(&basis).placed;
        }
        let (planned, idle) = self.restarting.next(seen, &placed, &basis);
        plan.actions.extend(planned);
        for (vm, idle) in idle {
            plan.idle.entry(vm).or_insert(idle);
        }
    }

    /// What somebody asked for.
    fn operate(&mut self, wanted: &ClusterState, seen: &HostReport, now: &BootTime, plan: &mut Plan) {
        for vm in wanted.vms.iter().filter(|vm| vm.record.pending().is_some()) {
            let name = &vm.record.name;
            let none = Progress::default();
            let progress = self.searches.get(name).map_or(&none, |search| &search.progress);
            let look = Look { basis: Basis { state: wanted, failures: &self.failures, now }, seen };
            let next = operation::next(vm, seen.replicas.get(name), progress, &look);
            if let (Some(search), Some(operation)) = (self.searches.get_mut(name), vm.record.pending()) {
                let is_unfit = matches!(next, Some(Next::Wait(Waiting::Target { .. })));
                search.progress.note_target(operation.id, is_unfit, now.ms);
            }
            match next {
                Some(Next::Act(action, why)) => {
                    self.searches.entry(name.clone()).or_default().progress.is_busy = true;
                    plan.actions.push(Planned { vm: name.clone(), action, why });
                }
                Some(Next::Wait(waiting)) => drop(plan.waiting.insert(name.clone(), waiting)),
                None => {}
            }
        }
    }

    /// The replicas here, on a host that is stopped with its VMs.
    fn shut_down(&mut self, seen: &HostReport, now_ms: u64, plan: &mut Plan) {
        if !seen.stops_vms {
            self.searches.values_mut().for_each(|search| search.shutdown = None);
            return;
        }
        for (name, replica) in &seen.replicas {
            let search = self.searches.entry(name.clone()).or_default();
            let shutdown = search.shutdown.get_or_insert_with(|| Shutdown::since(now_ms));
            match shutdown.next(&replica.state, now_ms) {
                Some(action) => plan.actions.push(Planned { vm: name.clone(), action, why: Why::HostStopping }),
                None => drop(plan.idle.insert(name.clone(), Idle::ShuttingDown)),
            }
        }
    }

    /// How many first copies are under way, or about to be.
    fn copies_under_way(&self) -> usize {
        self.searches.values().filter(|search| search.is_copying()).count()
    }

    /// This host is in maintenance: what runs here is moved to others, as many VMs at a time as there may be first copies.
    fn evacuate(&mut self, wanted: &ClusterState, seen: &HostReport, now: &BootTime, plan: &mut Plan) {
        let maintenance = wanted.host(&seen.host).map_or(Maintenance::Off, |host| host.maintenance);
        if maintenance == Maintenance::Off || seen.is_stopping {
            return;
        }
        let mut runs: Vec<&VmState> = wanted.vms.iter().filter(|vm| seen.runs(vm)).collect();
        runs.sort_by_cached_key(|vm| vm.record.spec.read().map_or(Priority::Lowest, |spec| spec.priority));
        let is_migrating = |vm: &&&VmState| vm.record.migrates_to(&vm.claim.claim).is_some();
        let mut under_way = self.copies_under_way().max(runs.iter().filter(is_migrating).count());
        let mut state = wanted.clone();
        for vm in runs {
            let name = &vm.record.name;
            let search = self.searches.entry(name.clone()).or_default();
            if search.is_busy || search.progress.is_busy || search.moved_lately(now.ms) || vm.record.pending().is_some()
            {
                continue;
            }
            let processor = seen.replicas.get(name).and_then(|replica| replica.processor.as_ref());
            let basis = Basis { state: &state, failures: &self.failures, now };
            let (to, copies) = match leaving(vm, &seen.host, processor, &basis) {
                Leaving::Moves { to, copies } => (to, copies),
                Leaving::LosesProtection { to: Some(to), .. } if maintenance == Maintenance::Forced => (to, false),
                _ => continue,
            };
            if copies && under_way >= self.settings.first_copies_max.max(1) {
                continue;
            }
            under_way += usize::from(copies);
            search.is_busy = true;
            if let Some(moved) = state.vms.iter_mut().find(|other| other.record.name == *name) {
                moved.record.ask(OperationKind::Migrate { to: to.clone() }, None, vm.claim.claim.generation);
            }
            let why = Why::Maintenance { host: seen.host.clone() };
            plan.actions.push(Planned { vm: name.clone(), action: Action::Move { to }, why });
        }
    }

    /// VMs that are at home here and do not run: what the end of their replicas has left to be written down, and to be decided.
    fn settle_absent(&mut self, wanted: &ClusterState, seen: &HostReport, now_ms: u64, plan: &mut Plan) {
        let is_absent =
            |vm: &VmState| seen.host.is(&vm.claim.claim.primary) && !seen.replicas.contains_key(&vm.record.name);
        for (name, search) in &mut self.searches {
            if wanted.vm(name).is_some_and(|vm| !is_absent(vm)) {
                search.absent_for_ms(false, now_ms);
            }
        }
        for vm in wanted.vms.iter().filter(|vm| is_absent(vm)) {
            let name = &vm.record.name;
            let absent_ms = self.searches.entry(name.clone()).or_default().absent_for_ms(true, now_ms);
            let undecided = vm.claim.claim.secondary.as_ref().filter(|_| !vm.record.ft.enabled);
            let (action, why) = if seen.powered_off.contains(name) && vm.record.power == Power::On {
                (Action::NotePowerOff, Why::PoweredOff)
            } else if let Some(by) = undecided {
                // Whoever turns protection off does not want the VM to end that a secondary is about to go on with.
                let patience_ms = u64::from(vm.record.ft.suspicion_ms).saturating_add(TAKEOVER_MS_MAX);
                if absent_ms < patience_ms {
                    plan.idle.insert(name.clone(), Idle::Undecided { by: by.clone() });
                    continue;
                }
                (Action::SettleClaim, Why::ProtectionOff)
            } else if vm.record.syncing_to.is_some() && !vm.record.ft.suspended {
                (Action::ReleaseReservation, Why::NoCopyUnderWay)
            } else {
                continue;
            };
            let search = self.searches.entry(name.clone()).or_default();
            if !search.is_busy && search.too_early(now_ms).is_none() {
                search.is_busy = true;
                plan.actions.push(Planned { vm: name.clone(), action, why });
            }
        }
    }
}

/// What comes of looking at one replica.
enum Considered<'a> {
    Act(Action, Why),
    Nothing(Idle),
    /// It needs one, or another one, for which the one that it has is let go.
    NeedsSecondary(&'a VmState, Option<Why>),
}

fn consider<'a>(
    vm: Option<&'a VmState>,
    name: &VmName,
    replica: &ReplicaReport,
    search: &Search,
    look: &Look<'_>,
) -> Considered<'a> {
    if search.is_busy {
        return Considered::Nothing(Idle::UnderWay);
    }
    if let ReplicaState::Secondary { unclaimed_ms } = replica.state {
        if unclaimed_ms > UNCLAIMED_MS_MAX {
            return Considered::Act(Action::EndReplica, Why::NoPrimaryCame);
        }
        return Considered::Nothing(Idle::Secondary);
    }
    let Some(vm) = vm else {
        return Considered::Nothing(Idle::Unreadable(format!("no record of VM {name} can be read")));
    };
    if replica.state == ReplicaState::Booting {
        return Considered::Nothing(Idle::Booting);
    }
    let claim = &vm.claim.claim;
    if !look.seen.host.is(&claim.primary) {
        let by = claim.primary.clone();
        let is_alone = matches!(replica.state, ReplicaState::Alone { .. });
        return match replica.generation < claim.generation {
            // Nobody tells a primary without a secondary.
            true if is_alone => Considered::Act(Action::EndReplica, Why::Superseded { by }),
            // It is handing over, or learns of it by its secondary.
            true => Considered::Nothing(Idle::Superseded { by }),
            // A primary that has just won is ahead of what was read.
            false => Considered::Nothing(Idle::StoreIsBehind),
        };
    }
    consider_primary(vm, replica, search, look)
}

/// Of the replica that runs the VM.
fn consider_primary<'a>(vm: &'a VmState, replica: &ReplicaReport, search: &Search, look: &Look<'_>) -> Considered<'a> {
    let ft = &vm.record.ft;
    let is_wanted = vm.record.wants_secondary(&vm.claim.claim);
    // What is reserved for a suspended secondary stays.
    let is_reserved = vm.record.syncing_to.is_some() && !ft.suspended;
    let too_early = search.too_early(look.basis.now.ms).map(|message| Considered::Nothing(Idle::RetrySoon { message }));
    let replacement = |by: &HostName| {
        if look.seen.is_stopping { None } else { look.replacement(vm, by, replica.processor.as_ref()) }
    };
    match &replica.state {
        _ if !is_wanted && search.has_secondary(&replica.state) => {
            let why = if ft.enabled { Why::ProtectionSuspended } else { Why::ProtectionOff };
            too_early.unwrap_or(Considered::Act(Action::Unprotect, why))
        }
        ReplicaState::Protected { .. } if is_reserved => {
            too_early.unwrap_or(Considered::Act(Action::ReleaseReservation, Why::CopyComplete))
        }
        ReplicaState::Protected { by } | ReplicaState::Syncing { to: by } => match replacement(by) {
            Some(why) => too_early.unwrap_or(Considered::NeedsSecondary(vm, Some(why))),
            None if matches!(replica.state, ReplicaState::Protected { .. }) => {
                Considered::Nothing(Idle::Protected { by: by.clone() })
            }
            None => Considered::Nothing(Idle::Syncing { to: by.clone() }),
        },
        _ => {
            if let Phase::Told { host, .. } = &search.phase
                && is_wanted
            {
                return Considered::Nothing(Idle::Connecting { to: host.clone() });
            }
            if is_reserved {
                return too_early.unwrap_or(Considered::Act(Action::ReleaseReservation, Why::NoCopyUnderWay));
            }
            if !is_wanted {
                return Considered::Nothing(if ft.enabled { Idle::Suspended } else { Idle::Disabled });
            }
            if look.seen.is_stopping {
                return Considered::Nothing(Idle::HostStopping);
            }
            let is_ending = vm.record.pending().is_some_and(|it| it.kind.ends_the_guest());
            if vm.record.power == Power::Off || is_ending {
                return Considered::Nothing(Idle::PoweringOff);
            }
            too_early.unwrap_or(Considered::NeedsSecondary(vm, None))
        }
    }
}

fn no_place(vm: &VmState, error: NoPlace) -> Idle {
    match error {
        NoPlace::Spec(error) => Idle::Unreadable(error.to_string()),
        // That the primary's host cannot be the secondary's is no news.
        NoPlace::Hosts(mut refusals) => {
            refusals.retain(|(host, _)| !host.is(&vm.claim.claim.primary));
            Idle::NoHost(refusals)
        }
    }
}
