//! What the user and the operator ask of hosts: protection on and off, starts of the VM.

use cluster::controller::{Action, Outcome, Step as OperationStep, consent};
use cluster::records::{OperationKind, OperationResult, Power};
use protocol::{Claim, DropReason, Epoch, Generation, Replica};
use spec::{FtMode, HostName, Maintenance};

use crate::controller::STORE_AWAY;
use crate::coverage::Occurrence;
use crate::daemon::{Asked, Step, Task, hasty_ms};
use crate::faults::Moment;
use crate::mutation::Mutation;
use crate::process::{Body, GuestEnd, Runner, Timer};
use crate::store::NOBODY;
use crate::time::{MILLISECOND, Nanoseconds};
use crate::violation::Violation;
use crate::world::{Death, World};

/// How long a guest may take to shut down when it is restarted.
const SHUTDOWN_MAX: Nanoseconds = 200 * MILLISECOND;

impl World {
    /// The host that the store names as the VM's.
    pub fn home_of_vm(&self) -> Option<usize> {
        self.hosts.iter().position(|host| host.name == self.claim().primary)
    }

    /// The host that answers for the VM, if it does.
    fn answering_home(&self) -> Option<usize> {
        let home = self.home_of_vm()?;
        (self.has_daemon(home) && self.reaches_store(home)).then_some(home)
    }

    pub fn want_ft(&mut self, enabled: bool, suspended: bool) {
        let claim = self.claim().clone();
        if self.records.vms[0].record.want_ft(enabled, suspended, &claim) {
            self.records.revision += 1;
        }
    }

    /// As `host::protection`: what is a state is wanted from now on, and the controller sees to it.
    pub fn user_drops(&mut self, reason: DropReason) {
        let Some(home) = self.answering_home() else { return };
        let is_wanted = self.records.vms[0].record.ft.is_wanted();
        match reason {
            DropReason::Restart if !is_wanted => self.want_ft(true, false),
            DropReason::Restart => {
                self.coverage.note(Occurrence::Restart);
                self.asks(home, OperationKind::RestartSecondary, None);
            }
            DropReason::Suspend => {
                self.coverage.note(Occurrence::Suspend);
                self.want_ft(true, true);
            }
            DropReason::Off | DropReason::TooSlow => {
                self.coverage.note(Occurrence::Off);
                self.want_ft(false, false);
            }
        }
    }

    /// Makes a host the only one that may run the VM.
    pub fn claim_alone(&mut self, host: usize, author: crate::process::ProcessId) -> Claim {
        let generation = self.claim().generation.next();
        let claim = Claim { generation, primary: self.hosts[host].name.clone(), secondary: None };
        self.store.claim_alone(claim.clone(), author);
        self.note_claim();
        claim
    }

    /// Somebody asks a host for something that happens once: it is written down.
    fn asks(&mut self, host: usize, kind: OperationKind, by: Option<HostName>) {
        if !self.has_daemon(host) || !self.reaches_store(host) {
            return;
        }
        self.tell(|world| format!("{} is asked for a {}", world.name(host), kind.label()));
        let generation = self.claim().generation;
        let id = self.records.vms[0].record.ask(kind, by, generation);
        self.records.revision += 1;
        self.asked = Some(Asked { id, of: (host, self.hosts[host].daemon.run), is_launched: false });
    }

    /// Somebody starts the VM on a host, by force or not.
    pub fn asks_to_start(&mut self, host: usize, is_forced: bool) {
        if consent::may_start(self.claim(), &self.host_name(host), self.here(host), is_forced).is_err() {
            return self.coverage.note(Occurrence::StartRefused);
        }
        let by = is_forced.then(|| self.host_name(host));
        self.asks(host, OperationKind::Start { from_stale_disks: is_forced, snapshot: None }, by);
    }

    /// Somebody presses the VM's power button, or pulls its plug.
    pub fn asks_to_stop(&mut self, force: bool, is_reboot: bool) {
        let Some(home) = self.answering_home().filter(|&home| self.runner(home).is_some()) else { return };
        let patience_ms = hasty_ms(SHUTDOWN_MAX);
        let (kind, occurrence) = match is_reboot {
            true => (OperationKind::Reboot { force, patience_ms }, Occurrence::RebootAsked),
            false => (OperationKind::Stop { force }, Occurrence::StopAsked),
        };
        self.coverage.note(occurrence);
        self.asks(home, kind, None);
    }

    /// Somebody asks for a planned takeover.
    pub fn asks_to_switch_over(&mut self) {
        let Some(home) = self.answering_home() else { return };
        if self.hosts[home].process.as_ref().is_some_and(|process| process.replica.is_protected()) {
            let from = self.host_name(home);
            self.asks(home, OperationKind::Switchover { from }, None);
        }
    }

    /// Somebody asks for the other FT mode.
    pub fn asks_to_change_mode(&mut self) {
        let kind = OperationKind::ChangeMode { mode: if self.wants_log { FtMode::Mirror } else { FtMode::Lockstep } };
        let is_free = self.records.vms[0].record.hinders(&kind).is_none();
        if let Some(home) = self.answering_home().filter(|_| is_free) {
            self.coverage.note(Occurrence::ModeAsked);
            self.asks(home, kind, None);
        }
    }

    /// As `host::protection`: the primary is told, if there is one, and then it is noted.
    fn changes_mode(&mut self, task: &Task, mode: FtMode) {
        let host = task.host;
        if self.is_paused(host) {
            return self.fails(task, "the replica does not answer");
        }
        self.records.vms[0].record.ft.mode = mode;
        self.wants_log = mode == FtMode::Lockstep;
        if self.runner(host).is_some() {
            self.coverage.note(Occurrence::ModeChanged);
            self.consider(host);
        }
        self.ends(task, &Outcome::Done);
    }

    /// As `host::power`: the host has power again, and its daemon asks for the VM's start.
    pub fn starts_with_machine(&mut self, task: &Task) {
        self.coverage.note(Occurrence::Autostart);
        self.asks(task.host, OperationKind::Start { from_stale_disks: false, snapshot: None }, None);
    }

    /// Somebody empties a host, or lets it take VMs again.
    pub fn set_maintenance(&mut self, host: usize, maintenance: Maintenance) {
        if self.records.hosts[host].maintenance != maintenance {
            self.tell(|world| format!("{}: maintenance {maintenance:?}", world.name(host)));
            self.records.hosts[host].maintenance = maintenance;
            self.records.revision += 1;
        }
    }

    /// As `host::migration`: the VM is to leave its home, unless something else was asked for.
    pub fn asks_to_leave(&mut self, task: &Task, to: &HostName) {
        self.coverage.note(Occurrence::EvacuationAsked);
        self.asks(task.host, OperationKind::Migrate { to: to.clone() }, None);
        self.ends(task, &Outcome::Done);
    }

    /// Somebody asks for a move to another host.
    pub fn asks_to_migrate(&mut self, to: usize) {
        let Some(home) = self.answering_home().filter(|&home| home != to && self.runner(home).is_some()) else {
            return;
        };
        let kind = OperationKind::Migrate { to: self.host_name(to) };
        if self.records.vms[0].record.hinders(&kind).is_none() {
            self.coverage.note(Occurrence::MigrationAsked);
            self.asks(home, kind, None);
        }
    }

    /// As `host::migration`: the VM is handed over to the host that it moves to, and to no other.
    fn hands_over_to(&mut self, task: &Task, to: &HostName) {
        let host = task.host;
        let is_protected = self.hosts[host].process.as_ref().is_some_and(|process| process.replica.is_protected());
        let secondary = self.session(host).map(|session| session.secondary);
        let secondary = secondary.map(|secondary| self.host_name(secondary));
        if !consent::may_hand_over(is_protected, secondary.as_deref(), to) {
            return self.fails(task, STORE_AWAY);
        }
        self.switch_over(host);
        if self.mutation == Some(Mutation::GiveUpBeforeHandOver) {
            self.deletes_disk(host);
        }
        self.ends(task, &Outcome::Done);
    }

    /// Copies of the VM's disks on other hosts are of no use any more.
    fn removes_copies(&mut self, task: &Task) {
        if self.scene(task.host).may_remove_copies() {
            self.coverage.note(Occurrence::CopiesRemoved);
            self.drop_secondaries(task, true);
        }
        self.ends(task, &Outcome::Done);
    }

    /// As `host::operations`: a step, unless something else was asked for since it was decided.
    pub fn takes_step(&mut self, task: Task, operation: u64, step: &OperationStep) {
        let host = task.host;
        let Some(pending) = self.records.vms[0].record.pending_as(operation).cloned() else {
            return self.ends(&task, &Outcome::NotWanted);
        };
        let is_protected = self.hosts[host].process.as_ref().is_some_and(|process| process.replica.is_protected());
        let may_go_over = self.scene(host).may_go_over(&pending, is_protected);
        match step {
            OperationStep::Start { from_stale_disks, .. } => self.begins_to_start(task, *from_stale_disks),
            OperationStep::RestartSecondary => self.begins_to_let_go(host, task, DropReason::Restart),
            OperationStep::ChangeMode { mode } => self.changes_mode(&task, *mode),
            OperationStep::RemoveCopies => self.removes_copies(&task),
            _ if self.runner(host).is_none() || self.is_paused(host) => {
                // A move is not given up for that.
                let goes_on = matches!(pending.kind, OperationKind::Migrate { .. });
                self.fails(&task, if goes_on { STORE_AWAY } else { "the replica does not answer" });
            }
            OperationStep::PressPowerButton | OperationStep::PullPlug => {
                if self.asked.is_some_and(|asked| asked.id == operation && asked.is_launched) {
                    self.broken(Violation::RebootedTwice(operation));
                }
                self.guest_ends(host, GuestEnd::PowerOff);
                self.ends(&task, &Outcome::Done);
            }
            OperationStep::SwitchOver => match &pending.kind {
                OperationKind::Migrate { to } => self.hands_over_to(&task, to),
                _ if !may_go_over => {
                    self.fails(&task, "the replicas have changed meanwhile");
                }
                _ => {
                    self.switch_over(host);
                    self.ends(&task, &Outcome::Done);
                }
            },
            OperationStep::KillPrimary if !may_go_over => {
                self.fails(&task, "the replicas have changed meanwhile");
            }
            OperationStep::KillPrimary => {
                self.end_process(host, Death::Crashed, true);
                self.ends(&task, &Outcome::Done);
            }
        }
    }

    /// What is written down when a step, or the operation, is over. Answers the outcome for the controller.
    pub fn notes_result(&mut self, host: usize, action: &Action, outcome: &Outcome) -> Outcome {
        let remembers = self.mutation == Some(Mutation::RememberReboot);
        let (operation, result) = match (action, outcome) {
            (Action::NoteResult { operation, result }, _) => {
                // As by a takeover.
                if *result == OperationResult::Done && self.runner(host).is_some() {
                    self.runs_for(*operation);
                }
                (*operation, Some(result.clone()))
            }
            (Action::Step { operation, is_last, .. }, Outcome::Done) => {
                (*operation, Some(OperationResult::Done).filter(|_| *is_last || remembers))
            }
            (Action::Step { operation, .. }, Outcome::Failed(why)) if why != STORE_AWAY => {
                self.coverage.note(Occurrence::OperationFailed);
                (*operation, Some(OperationResult::Failed { why: why.clone() }))
            }
            _ => return outcome.clone(),
        };
        let Some(result) = result else { return outcome.clone() };
        if !self.reaches_store(host) {
            return Outcome::Failed(STORE_AWAY.to_owned());
        }
        let run = (host, self.hosts[host].daemon.run);
        if self.asked.is_some_and(|asked| asked.id == operation && asked.of != run) {
            self.coverage.note(Occurrence::Inherited);
        }
        let record = &mut self.records.vms[0].record;
        let is_reboot = record.pending().is_some_and(|it| matches!(it.kind, OperationKind::Reboot { .. }));
        let is_migration = record.pending().is_some_and(|it| matches!(it.kind, OperationKind::Migrate { .. }));
        if is_migration {
            self.coverage.note(match result {
                OperationResult::Done => Occurrence::MigrationDone,
                OperationResult::Failed { .. } => Occurrence::MigrationFailed,
            });
        }
        if is_reboot && result == OperationResult::Done {
            self.coverage.note(Occurrence::RebootDone);
        }
        record.end(operation, result);
        self.records.revision += 1;
        if let Outcome::Failed(_) = outcome { Outcome::NotWanted } else { outcome.clone() }
    }

    /// As `host::power`, step by step: what is to be done is written down first.
    fn begins_to_start(&mut self, mut task: Task, is_forced: bool) {
        let (host, name) = (task.host, self.host_name(task.host));
        let was_home = name.is(&self.claim().primary);
        if consent::may_start(self.claim(), &name, self.here(host), is_forced).is_err() {
            self.coverage.note(Occurrence::StartRefused);
            return self.fails(&task, "it runs, or is at home elsewhere");
        }
        if !self.has_a_copy(host, is_forced) {
            return self.fails(&task, "its copy is incomplete");
        }
        self.retires(host);
        self.hosts[host].is_powered_off = false;
        let generation = self.claim().generation;
        let (begins_anew, is_early) =
            (self.mutation == Some(Mutation::RebootAgain), self.mutation == Some(Mutation::NoteStartEarly));
        let record = &mut self.records.vms[0].record;
        if let Some(operation) = record.pending().filter(|_| is_early).map(|operation| operation.id) {
            record.end(operation, OperationResult::Done);
        }
        if !begins_anew {
            record.begin_start(generation);
        }
        record.power_on();
        self.records.revision += 1;
        task.step = Step::Claim { generation, was_home };
        self.soon(task);
        self.moment(Moment::StartBegun);
    }

    fn has_a_copy(&mut self, host: usize, is_forced: bool) -> bool {
        let (noted, trusts) = (self.hosts[host].disks.noted, self.mutation == Some(Mutation::StartFromParts));
        let has_one = protocol::may_start(Some(noted), is_forced).is_ok() || trusts;
        if !has_one {
            self.coverage.note(Occurrence::StartRefusedIncomplete);
        }
        has_one
    }

    pub fn claims_for_start(&mut self, mut task: Task, generation: Generation, was_home: bool) {
        let host = task.host;
        if !self.reaches_store(host) {
            return self.fails(&task, STORE_AWAY);
        }
        if self.claim().generation != generation {
            return self.fails(&task, "it was started or taken over by another host meanwhile");
        }
        let claim = self.claim_alone(host, NOBODY);
        task.step = Step::Launch { claim, was_home };
        self.soon(task);
    }

    pub fn launches(&mut self, mut task: Task, claim: Claim, was_home: bool) {
        let host = task.host;
        if *self.claim() != claim {
            return self.fails(&task, "it was started by another host meanwhile");
        }
        if !self.has_a_copy(host, !was_home) {
            return self.fails(&task, "its copy is incomplete");
        }
        self.retires(host);
        self.hosts[host].disks.flush();
        let blocks = self.hosts[host].disks.blocks;
        if !self.history.could_be_a_disk(&blocks) {
            return self.broken(Violation::StartedFromParts(self.name(host)));
        }
        if was_home && !self.history.keeps_what_was_flushed(&blocks) {
            return self.broken(Violation::FlushLost(self.name(host)));
        }
        self.coverage.note(if was_home { Occurrence::Started } else { Occurrence::StartedByForce });
        self.tell(|world| format!("{}: the VM is started", world.name(host)));
        // The host before may have noted that it is off there, until the claim was this one's.
        if self.records.vms[0].record.power == Power::Off {
            self.records.vms[0].record.power = Power::On;
            self.records.revision += 1;
        }
        let id = self.next_process();
        self.store.author(claim.generation, id);
        if !was_home {
            // Whoever forces a start says that nobody else runs the VM: what a replica that does lets out is his fault.
            self.forced_since = Some(id);
        }
        if let Some(Action::Step { operation, .. }) = &task.action {
            self.runs_for(*operation);
        }
        let state = self.history.boots(blocks);
        let replica = Replica::primary(self.hosts[host].name.clone(), claim);
        self.start_process(host, replica, Body::Running(Box::new(Runner::new(state, Epoch::NONE))));
        self.start_timer(host, 0, Timer::Guest);
        self.moment(Moment::Launched);
        task.step = Step::Launched;
        self.soon(task);
    }

    /// The VM runs that was to be started for an operation.
    fn runs_for(&mut self, operation: u64) {
        if let Some(asked) = self.asked.as_mut().filter(|asked| asked.id == operation) {
            asked.is_launched = true;
        }
    }
}
