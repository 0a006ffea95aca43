//! What `host::runtime` does: reports to the shipped [`cluster::controller`], and carries out what that decides, step by step.

use cluster::controller::consent::{self, Here, LetGo, Scene};
use cluster::controller::{Action, Idle, Loss, LossCause, Outcome, Planned, ReplicaReport, ReplicaState};
use cluster::records::{BootTime, Lease};
use protocol::{Callers, Claim, DropReason, Replica, Role, Status};
use spec::{HostName, Maintenance};

use crate::coverage::Occurrence;
use crate::daemon::{Step, Task, hasty_ms, here, store_time};
use crate::mutation::Mutation;
use crate::process::{Body, GuestEnd, ProcessId};
use crate::store::NOBODY;
use crate::time::{MICROSECOND, MILLISECOND, Nanoseconds};
use crate::violation::Violation;
use crate::world::{Death, World};

/// Why a step of an operation is made again rather than given up.
pub(crate) const STORE_AWAY: &str = "the store does not answer";
/// How long a host waits for the answer of another one.
const ANSWER_TIMEOUT: Nanoseconds = 50 * MILLISECOND;
/// How long a primary may take to let its secondary go, and how often it is looked whether it has.
const LET_GO_TIMEOUT: Nanoseconds = 300 * MILLISECOND;
const LET_GO_INTERVAL: Nanoseconds = 10 * MILLISECOND;

impl World {
    /// The daemon of a host looks around, and begins what is to be done.
    pub fn daemon_looks(&mut self, host: usize) {
        if !self.has_daemon(host) {
            return;
        }
        let can_read = self.reaches_store(host);
        if can_read && !self.renews_lease(host) {
            return;
        }
        let mut is_news = self.sees_replica(host) | self.sees_others(host);
        let at_store = store_time(self.now);
        let now = BootTime { ms: self.hosts[host].boot_clock.ms(self.now), ..at_store.clone() };
        let has_booted = self.hosts[host].is_autostart_due;
        let daemon = &mut self.hosts[host].daemon;
        daemon.report.has_booted = has_booted;
        if can_read {
            if daemon.known.revision != self.records.revision {
                if daemon.known.hosts.is_empty() {
                    daemon.known.hosts.clone_from(&self.records.hosts);
                    if self.mutation == Some(Mutation::ForgetDomains) {
                        daemon.known.hosts.iter_mut().for_each(|host| host.domain = host.name.as_str().parse().ok());
                    }
                }
                daemon.known.vms.clone_from(&self.records.vms);
                daemon.known.revision = self.records.revision;
                is_news = true;
            }
            for (known, current) in daemon.known.hosts.iter_mut().zip(&self.records.hosts) {
                known.lease = match self.mutation {
                    Some(Mutation::CompareClocks) => {
                        Lease { renewed_boot_ms: current.lease.renewed_unix_ms, ..current.lease }
                    }
                    _ => current.lease.seen(current.is_alive(&at_store), Some(known.lease), now.ms, 0),
                };
                is_news |= known.maintenance != current.maintenance;
                if self.mutation != Some(Mutation::IgnoreMaintenance) {
                    known.maintenance = current.maintenance;
                }
            }
        }
        if daemon.is_settled && !is_news {
            return;
        }
        let plan = daemon.controller.decide(&daemon.known, &daemon.report, &now);
        let stays = |idle: &Idle| matches!(idle, Idle::Protected { .. } | Idle::Secondary | Idle::Syncing { .. });
        daemon.is_settled = plan.actions.is_empty() && plan.waiting.is_empty() && plan.idle.values().all(stays);
        let (run, replica) = (daemon.run, daemon.watched.map(|(process, _)| process));
        self.hosts[host].is_autostart_due &= !self.hosts[host].daemon.controller.is_autostart_over();
        self.others_wait(&plan.idle);
        for (_, idle) in plan.idle {
            self.tell(|world| format!("daemon {}: nothing ({idle})", world.name(host)));
        }
        for planned in plan.actions {
            self.tell(|world| format!("daemon {}: {planned}", world.name(host)));
            self.check_place(host, &planned, can_read);
            if planned.vm != self.vm {
                self.other_acts(host, &planned);
                continue;
            }
            let task = Task { host, run, action: Some(planned.action), step: Step::Begin { replica } };
            self.soon(task);
        }
    }

    /// A host that one fault may take together with the primary's is never asked to protect a VM, nor one in maintenance, if that could be `known`.
    fn check_place(&mut self, host: usize, planned: &Planned, known: bool) {
        let Action::Protect { secondary } = &planned.action else { return };
        let Some(target) = self.host_of(secondary) else { return };
        let vm = self.hosts[host].daemon.known.vm(&planned.vm);
        if vm.is_some_and(|vm| vm.record.ft.is_wanted()) && self.share_domain(host, target) {
            self.broken(Violation::SharesDomain(self.name(host), secondary.to_string()));
        }
        if known && self.records.hosts[target].maintenance != Maintenance::Off {
            self.broken(Violation::PlacedInMaintenance(self.name(host), secondary.to_string()));
        }
    }

    /// Whether one fault may take both hosts.
    pub fn share_domain(&self, one: usize, other: usize) -> bool {
        self.records.hosts[one].shares_domain(&self.records.hosts[other])
    }

    pub fn has_daemon(&self, host: usize) -> bool {
        self.hosts[host].is_up && self.hosts[host].daemon.is_up
    }

    pub fn reaches_store(&self, host: usize) -> bool {
        self.hosts[host].store_unreachable_until <= self.now
    }

    pub fn claim(&self) -> &Claim {
        &self.store.current().claim
    }

    /// What the daemon sees of the replica here; whether that is news. What does not answer is what it said last.
    fn sees_replica(&mut self, host: usize) -> bool {
        let now = self.now;
        let seen = self.hosts[host].process.as_ref().map(|process| (process.id, process.is_paused));
        let Some((id, is_paused)) = seen else {
            let is_powered_off = self.hosts[host].is_powered_off;
            let daemon = &mut self.hosts[host].daemon;
            daemon.watched = None;
            let is_news = daemon.report.powered_off.is_empty() == is_powered_off;
            daemon.report.powered_off.clear();
            daemon.report.powered_off.extend(is_powered_off.then(|| self.vm.clone()));
            return daemon.sees(&self.vm, None) || is_news;
        };
        self.hosts[host].daemon.report.powered_off.clear();
        let watched = self.hosts[host].daemon.watched.filter(|(process, _)| *process == id);
        let is_new = watched.is_none();
        let (_, since) = watched.unwrap_or((id, now));
        self.hosts[host].daemon.watched = Some((id, since));
        if is_paused && !is_new {
            return false;
        }
        let report = self.replica_report(host, is_paused, since);
        self.hosts[host].daemon.sees(&self.vm, report)
    }

    fn replica_report(&self, host: usize, is_paused: bool, since: Nanoseconds) -> Option<ReplicaReport> {
        let process = self.hosts[host].process.as_ref()?;
        let status = process.replica.status();
        let state = match &process.body {
            _ if is_paused => ReplicaState::Booting,
            Body::Listening { .. } => ReplicaState::Secondary { unclaimed_ms: hasty_ms(self.now - since) },
            Body::Following(_) => ReplicaState::Secondary { unclaimed_ms: 0 },
            Body::Running(runner) => {
                let peer = runner.session.as_ref().map(|session| self.host_name(session.secondary));
                let loss = status.reason.map(|reason| Loss { cause: LossCause::of(reason), text: String::new() });
                ReplicaState::of_primary(status.protection, peer, loss)
            }
        };
        Some(ReplicaReport { generation: status.generation, state, processor: None })
    }

    pub fn host_name(&self, host: usize) -> HostName {
        self.records.hosts[host].name.clone()
    }

    /// What runs on a host, for whoever wants something of it.
    pub fn here(&self, host: usize) -> Here {
        match &self.hosts[host].process {
            None => Here::Nothing,
            Some(process) => {
                let is_unclaimed = matches!(process.body, Body::Listening { .. });
                here(process.replica.status().role == Role::Secondary, is_unclaimed)
            }
        }
    }

    // Tasks.

    /// Goes on with a task after about as long as a request takes.
    pub fn soon(&mut self, task: Task) {
        let delay = self.random.between(100 * MICROSECOND, 3 * MILLISECOND);
        self.task_after(delay, task);
    }

    /// The next step of a task.
    pub fn task(&mut self, task: Task) {
        if let Step::Prepare { target, .. } | Step::Drop { target, .. } = task.step {
            return self.asked(target, task);
        }
        let host = task.host;
        if !self.has_daemon(host) || self.hosts[host].daemon.run != task.run {
            return self.coverage.note(Occurrence::TaskLost);
        }
        match task.step.clone() {
            Step::Begin { replica } => self.begins(host, task, replica),
            Step::Prepared { target, replica, secondary } => self.prepared(task, target, replica, secondary),
            Step::LetGo { until, reason } => self.lets_go(task, until, reason),
            Step::Claim { generation, was_home } => self.claims_for_start(task, generation, was_home),
            Step::Launch { claim, was_home } => self.launches(task, claim, was_home),
            Step::Launched => self.ends(&task, &Outcome::Done),
            Step::Prepare { .. } | Step::Drop { .. } => {}
        }
    }

    /// The task is over.
    pub fn ends(&mut self, task: &Task, outcome: &Outcome) {
        if let Some(action) = &task.action {
            self.tell(|world| format!("daemon {}: {action}: {outcome:?}", world.name(task.host)));
            let outcome = &self.notes_result(task.host, action, outcome);
            let (vm, now) = (self.vm.clone(), self.hosts[task.host].boot_clock.ms(self.now));
            let daemon = &mut self.hosts[task.host].daemon;
            daemon.is_settled = false;
            daemon.controller.note(&vm, action, outcome, now);
        }
    }

    pub fn fails(&mut self, task: &Task, why: &str) {
        self.ends(task, &Outcome::Failed(why.to_owned()));
    }

    fn begins(&mut self, host: usize, mut task: Task, replica: Option<ProcessId>) {
        // The store need not answer for these.
        match task.action {
            Some(Action::ShutDown { force }) => return self.shuts_down(&task, force),
            Some(Action::EndSecondary) => return self.ends_secondary(&task),
            _ => {}
        }
        if !self.reaches_store(host) {
            return self.fails(&task, STORE_AWAY);
        }
        let replica = replica.filter(|_| replica == self.process_id(host));
        if task.action.as_ref().is_some_and(|action| !self.scene(host).wants(action)) {
            return self.ends(&task, &Outcome::NotWanted);
        }
        match (task.action.clone(), replica) {
            (Some(Action::Step { operation, step, .. }), _) => self.takes_step(task, operation, &step),
            (Some(Action::NoteResult { .. }), _) => self.ends(&task, &Outcome::Done),
            (Some(Action::ReleaseReservation), _) => {
                self.reserve(None);
                self.ends(&task, &Outcome::Done);
            }
            (Some(Action::NotePowerOff), _) => {
                if self.scene(host).notes_power_off() {
                    self.notes_power_off(host);
                }
                self.hosts[host].is_powered_off = false;
                self.ends(&task, &Outcome::Done);
            }
            (Some(Action::AskForStart), None) => self.starts_with_machine(&task),
            (Some(Action::Move { to }), Some(_)) => self.asks_to_leave(&task, &to),
            (Some(Action::SettleClaim), None) => self.settles_claim(&task),
            (Some(Action::Protect { secondary }), Some(replica)) => {
                let claim = self.claim().clone();
                let Some(target) = self.host_of(&secondary) else { return };
                self.reserve(Some(secondary));
                task.step = Step::Prepare { target, replica, claim };
                self.soon(task);
            }
            (Some(Action::Replace), Some(_)) => self.begins_to_let_go(host, task, DropReason::Restart),
            (Some(Action::Unprotect), Some(_)) => {
                let is_enabled = self.records.vms[0].record.ft.enabled;
                let reason = if is_enabled { DropReason::Suspend } else { DropReason::Off };
                self.begins_to_let_go(host, task, reason);
            }
            (Some(Action::EndReplica), Some(_)) => {
                let outcome = if self.ends_displaced(host) { Outcome::Done } else { Outcome::NotWanted };
                self.ends(&task, &outcome);
            }
            _ => self.ends(&task, &Outcome::NotWanted),
        }
    }

    /// What is known of the VM on a host right before something is done about it.
    pub fn scene(&self, host: usize) -> Scene<'_> {
        let has_replica = self.process_id(host).is_some();
        Scene {
            record: &self.records.vms[0].record,
            claim: self.claim(),
            host: &self.records.hosts[host].name,
            has_replica,
        }
    }

    /// The guest has ended at home, which is noted.
    fn notes_power_off(&mut self, host: usize) {
        self.coverage.note(Occurrence::PowerOffNoted);
        if self.claim().secondary.is_some() {
            self.coverage.note(Occurrence::PowerOffDecided);
        }
        // Also what a replica that is gone has asked the store for is decided by that.
        if self.mutation != Some(Mutation::NoteUndecidedPowerOff) {
            self.claim_alone(host, NOBODY);
        }
        self.records.vms[0].record.power_off();
        self.records.revision += 1;
    }

    /// The host is being stopped with its VM, which runs there.
    fn shuts_down(&mut self, task: &Task, force: bool) {
        let host = task.host;
        let outcome = match self.process_id(host) {
            None => Outcome::NotWanted,
            Some(_) if force => {
                self.end_process(host, Death::Retired, true);
                Outcome::Done
            }
            Some(_) if self.is_paused(host) => Outcome::Failed("it does not answer".to_owned()),
            Some(_) => {
                self.coverage.note(Occurrence::HostStopped);
                self.guest_ends(host, GuestEnd::PowerOff);
                Outcome::Done
            }
        };
        self.ends(task, &outcome);
    }

    /// The host is being stopped with its VM, whose secondary is there. Asked now: it may have taken over.
    fn ends_secondary(&mut self, task: &Task) {
        let host = task.host;
        let is_primary = matches!(self.here(host), Here::Primary);
        let asks = self.mutation != Some(Mutation::EndWithoutAsking);
        let outcome = match self.process_id(host) {
            Some(_) if is_primary && !asks => return self.broken(Violation::EndedNeeded(self.name(host))),
            Some(_) if !is_primary => {
                self.coverage.note(Occurrence::HostStoppedSecondary);
                self.end_process(host, Death::Retired, true);
                Outcome::Done
            }
            _ => Outcome::NotWanted,
        };
        self.ends(task, &outcome);
    }

    /// The VM does not run, and is to go without a secondary: the claim decides whether one takes it over.
    fn settles_claim(&mut self, task: &Task) {
        self.coverage.note(Occurrence::OffUndecided);
        if self.mutation != Some(Mutation::DropUndecided) {
            self.claim_alone(task.host, NOBODY);
        }
        self.drop_secondaries(task, true);
        self.ends(task, &Outcome::Done);
    }

    fn host_of(&self, name: &HostName) -> Option<usize> {
        self.records.hosts.iter().position(|host| host.name == *name)
    }

    /// The record changes.
    pub fn reserve(&mut self, syncing_to: Option<HostName>) {
        if self.records.vms[0].record.reserve(syncing_to.as_ref()) {
            self.records.revision += 1;
        }
    }

    /// The primary is told to let its secondary go.
    pub fn begins_to_let_go(&mut self, host: usize, mut task: Task, reason: DropReason) {
        if self.runner(host).is_none() || self.is_paused(host) {
            return self.fails(&task, "the replica does not answer");
        }
        self.unprotect(host, reason);
        task.step = Step::LetGo { until: self.now + LET_GO_TIMEOUT, reason };
        self.soon(task);
    }

    fn lets_go(&mut self, task: Task, until: Nanoseconds, reason: DropReason) {
        let (host, decides) = (task.host, self.mutation != Some(Mutation::DropUndecided));
        let becomes =
            if self.reaches_store(host) { consent::let_go(self.claim(), &self.host_name(host)) } else { LetGo::Wait };
        match becomes {
            LetGo::Wait if decides => {
                if self.now > until {
                    return self.fails(&task, "it is not decided yet whether the secondary takes over");
                }
                self.task_after(LET_GO_INTERVAL, task);
            }
            LetGo::TakenOver => {
                self.coverage.note(Occurrence::TakenOverMeanwhile);
                self.fails(&task, "it was taken over meanwhile");
            }
            LetGo::Wait | LetGo::Drop => {
                self.drop_secondaries(&task, reason == DropReason::Off);
                self.ends(&task, &Outcome::Done);
            }
        }
    }

    /// All other hosts are asked to end their secondaries.
    pub fn drop_secondaries(&mut self, task: &Task, deletes: bool) {
        for target in (0..self.hosts.len()).filter(|&target| target != task.host) {
            let step = Step::Drop { target, deletes };
            self.soon(Task { step, action: None, ..task.clone() });
        }
    }

    /// Another host is asked for something.
    fn asked(&mut self, target: usize, mut task: Task) {
        let answers = self.has_daemon(target)
            && self.hosts[task.host].blocked_until[target] <= self.now
            && self.hosts[target].blocked_until[task.host] <= self.now;
        match task.step {
            Step::Prepare { replica, claim, .. } => {
                let secondary = if answers { self.prepares(target, task.host, replica, &claim) } else { None };
                task.step = Step::Prepared { target, replica, secondary };
                if answers { self.soon(task) } else { self.task_after(ANSWER_TIMEOUT, task) }
            }
            Step::Drop { deletes, .. } if answers => self.drops(target, task.host, deletes),
            _ => {}
        }
    }

    /// A secondary is prepared on `target`, for a replica on `primary`.
    fn prepares(&mut self, target: usize, primary: usize, replica: ProcessId, read: &Claim) -> Option<ProcessId> {
        if !self.reaches_store(target) || self.hosts[target].disks.are_broken(self.now) {
            return None;
        }
        let (primary, decides) = (self.hosts[primary].name.clone(), self.mutation != Some(Mutation::PrepareUndecided));
        match consent::may_prepare(self.claim(), &self.host_name(target), &primary, read.generation) {
            Err(consent::NotPrepared::Undecided) if !decides => {}
            Err(why) => {
                self.coverage.note(match why {
                    consent::NotPrepared::Undecided => Occurrence::NotPreparedUndecided,
                    _ => Occurrence::NotPrepared,
                });
                return None;
            }
            Ok(()) => {}
        }
        self.retires(target);
        self.tell(|world| format!("{}: a secondary starts", world.name(target)));
        let listens = Body::Listening { expects: replica, callers: Callers::default(), open: Vec::new() };
        self.start_process(target, Replica::secondary(self.hosts[target].name.clone()), listens);
        self.process_id(target)
    }

    /// The other host has prepared a secondary, or not: the primary is told of it.
    fn prepared(&mut self, task: Task, target: usize, replica: ProcessId, secondary: Option<ProcessId>) {
        let host = task.host;
        let Some(secondary) = secondary else { return self.fails(&task, "no secondary was prepared") };
        let is_wanted = task.action.as_ref().is_some_and(|action| self.scene(host).wants(action));
        let is_enabled = self.records.vms[0].record.ft.enabled;
        let outcome = if !self.reaches_store(host) {
            Outcome::Failed("the store does not answer".to_owned())
        } else if !is_wanted || self.process_id(host) != Some(replica) {
            Outcome::NotWanted
        } else if self.wants_secondary(host) {
            self.protect(host, secondary);
            Outcome::Done
        } else {
            Outcome::Failed("the replica takes no secondary now".to_owned())
        };
        if outcome != Outcome::Done {
            let step = Step::Drop { target, deletes: !is_enabled };
            self.soon(Task { step, action: None, ..task.clone() });
        }
        self.ends(&task, &outcome);
    }

    fn drops(&mut self, target: usize, asker: usize, deletes: bool) {
        if !self.reaches_store(target) {
            return;
        }
        let asker = self.hosts[asker].name.clone();
        let decides = self.mutation != Some(Mutation::DropUndecided);
        match consent::may_drop(self.claim(), &self.host_name(target), Some(asker.as_str())) {
            Err(consent::NotDropped::IsSecondary) if !decides => {}
            Err(_) => return self.coverage.note(Occurrence::NotDropped),
            Ok(()) => {}
        }
        self.retires(target);
        if deletes {
            self.deletes_disk(target);
        }
    }

    /// The disk on a host is deleted, which must not be the newest.
    pub fn deletes_disk(&mut self, host: usize) {
        self.tell(|world| format!("{}: its disk is deleted", world.name(host)));
        let name = self.host_name(host);
        if name.is(&self.claim().primary) || self.claim().secondary.as_ref().is_some_and(|it| name.is(it)) {
            self.broken(Violation::DeletedNewest(self.name(host)));
        }
        self.hosts[host].disks.delete();
    }

    /// A daemon ends the replica on its host, on which nothing may depend.
    pub fn retires(&mut self, host: usize) {
        let Some(id) = self.process_id(host) else { return };
        self.tell(|world| format!("{}: its replica is ended", world.name(host)));
        let entry = self.store.current();
        if entry.author == id || entry.secondary == Some(id) {
            self.broken(Violation::EndedNeeded(self.name(host)));
        }
        self.coverage.note(Occurrence::Retired);
        self.end_process(host, Death::Retired, true);
    }

    /// Ends a replica that has no place any more; whether it has none.
    fn ends_displaced(&mut self, host: usize) -> bool {
        let Some(process) = &self.hosts[host].process else { return false };
        let Status { role, generation, .. } = process.replica.status();
        if !consent::is_displaced(self.claim(), &self.host_name(host), self.here(host), generation) {
            return false;
        }
        if role == Role::Primary {
            self.coverage.note(Occurrence::DisplacedEnded);
        }
        self.retires(host);
        true
    }
}
