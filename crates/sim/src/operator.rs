//! What the user and the operator ask of hosts: protection on and off, starts of the VM.

use cluster::controller::consent;
use cluster::records::Power;
use protocol::{Claim, DropReason, Epoch, Replica};

use crate::coverage::Occurrence;
use crate::daemon::{Step, Task};
use crate::mutation::Mutation;
use crate::process::{Body, Runner, Timer};
use crate::store::NOBODY;
use crate::violation::Violation;
use crate::world::World;

impl World {
    /// The host that answers for the VM, if it does.
    fn answering_home(&self) -> Option<usize> {
        let primary = &self.claim().primary;
        let home = self.hosts.iter().position(|host| host.name == *primary)?;
        (self.has_daemon(home) && self.reaches_store(home)).then_some(home)
    }

    fn errand(&self, host: usize, step: Step) -> Task {
        Task { host, run: self.hosts[host].daemon.run, action: None, step }
    }

    pub fn want_ft(&mut self, enabled: bool, suspended: bool) {
        let secondary = self.claim().secondary.clone();
        let secondary = self.records.hosts.iter().find(|host| secondary.as_ref().is_some_and(|it| host.name.is(it)));
        let syncing_to = secondary.filter(|_| suspended).map(|host| host.name.clone());
        let record = &mut self.records.vms[0].record;
        if (record.ft.enabled, record.ft.suspended) == (enabled, suspended) {
            return;
        }
        (record.ft.enabled, record.ft.suspended) = (enabled, suspended);
        record.syncing_to = syncing_to;
        self.records.revision += 1;
    }

    /// As `host::protection`: what is a state is wanted from now on, and the controller sees to it.
    pub fn user_drops(&mut self, reason: DropReason) {
        let Some(home) = self.answering_home() else { return };
        let is_wanted = self.records.vms[0].record.ft.is_wanted();
        match reason {
            DropReason::Restart if !is_wanted => self.want_ft(true, false),
            DropReason::Restart => {
                self.coverage.note(Occurrence::Restart);
                let task = self.errand(home, Step::Begin { replica: None });
                self.begins_to_let_go(home, task, reason);
            }
            DropReason::Suspend => {
                self.coverage.note(Occurrence::Suspend);
                self.want_ft(true, true);
            }
            DropReason::Off | DropReason::TooSlow => {
                self.coverage.note(Occurrence::Off);
                self.want_ft(false, false);
                if self.process_id(home).is_none() && self.claim().secondary.is_some() {
                    // It may be about to take over: the claim decides.
                    self.coverage.note(Occurrence::OffUndecided);
                    if self.mutation != Some(Mutation::DropUndecided) {
                        self.claim_alone(home, NOBODY);
                    }
                    let task = self.errand(home, Step::Begin { replica: None });
                    self.drop_secondaries(&task, true);
                }
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

    /// Somebody starts the VM on a host, by force or not.
    pub fn asks_to_start(&mut self, host: usize, is_forced: bool) {
        let task = self.errand(host, Step::Start { is_forced });
        self.soon(task);
    }

    /// As `host::power`.
    pub fn starts_vm(&mut self, host: usize, is_forced: bool) {
        if !self.reaches_store(host) {
            return;
        }
        let name = self.host_name(host);
        let is_home = name.is(&self.claim().primary);
        if consent::may_start(self.claim(), &name, self.here(host), is_forced).is_err() {
            return self.coverage.note(Occurrence::StartRefused);
        }
        let (noted, trusts) = (self.hosts[host].disks.noted, self.mutation == Some(Mutation::StartFromParts));
        if protocol::may_start(Some(noted), is_forced).is_err() && !trusts {
            return self.coverage.note(Occurrence::StartRefusedIncomplete);
        }
        self.retires(host);
        let record = &mut self.records.vms[0].record;
        (record.power, record.syncing_to) = (Power::On, None);
        self.hosts[host].disks.flush();
        let blocks = self.hosts[host].disks.blocks;
        if !self.history.could_be_a_disk(&blocks) {
            return self.broken(Violation::StartedFromParts(self.name(host)));
        }
        if is_home && !self.history.keeps_what_was_flushed(&blocks) {
            return self.broken(Violation::FlushLost(self.name(host)));
        }
        self.coverage.note(if is_home { Occurrence::Started } else { Occurrence::StartedByForce });
        self.tell(|world| format!("{}: the VM is started", world.name(host)));
        let id = self.next_process();
        let claim = self.claim_alone(host, id);
        if !is_home {
            // Whoever forces a start says that nobody else runs the VM: what a replica that does lets out is his fault.
            self.forced_since = Some(id);
        }
        let state = self.history.boots(blocks);
        let replica = Replica::primary(self.hosts[host].name.clone(), claim);
        self.start_process(host, replica, Body::Running(Box::new(Runner::new(state, Epoch::NONE))));
        self.start_timer(host, 0, Timer::Guest);
    }
}
