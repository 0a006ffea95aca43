//! The other VMs of the first host, which want to be protected as well. Of them there is only what the host's daemon sees.

use std::collections::BTreeMap;

use cluster::controller::{Action, Idle, Outcome, Planned, ReplicaReport, ReplicaState};
use protocol::Generation;
use spec::{HostName, VmName};

use crate::coverage::Occurrence;
use crate::daemon::{FIRST_COPIES_MAX, OtherVm};
use crate::time::MILLISECOND;
use crate::violation::Violation;
use crate::world::World;

impl World {
    /// What the daemon of the first host sees of them; whether that is news.
    pub fn sees_others(&mut self, host: usize) -> bool {
        if host != 0 {
            return false;
        }
        let mut is_news = false;
        for index in 0..self.others.len() {
            let is_lost = !self.is_calm && self.random.chance(2);
            let other = &mut self.others[index];
            let state = match &other.secondary {
                None => ReplicaState::Alone { loss: None },
                Some(to) if self.now < other.copied_at => ReplicaState::Syncing { to: to.clone() },
                Some(by) if !is_lost => ReplicaState::Protected { by: by.clone() },
                Some(_) => {
                    other.secondary = None;
                    ReplicaState::Alone { loss: None }
                }
            };
            let report = ReplicaReport { generation: Generation::new(1), state, processor: None };
            is_news |= self.hosts[host].daemon.sees(&self.others[index].name, Some(report));
        }
        is_news
    }

    /// The daemon carries out what the controller wants for one of them.
    pub fn other_acts(&mut self, host: usize, planned: &Planned) {
        let duration = self.random.between(10, 200) * MILLISECOND;
        if let Action::Protect { secondary } = &planned.action {
            self.begins_other_copy(host, &planned.vm, secondary.clone(), duration);
        }
        if let Action::Replace | Action::Unprotect = &planned.action
            && let Some(other) = self.others.iter_mut().find(|other| other.name == planned.vm)
        {
            other.secondary = None;
        }
        let now_ms = self.hosts[host].boot_clock.ms(self.now);
        let daemon = &mut self.hosts[host].daemon;
        daemon.is_settled = false;
        daemon.controller.note(&planned.vm, &planned.action, &Outcome::Done, now_ms);
    }

    fn begins_other_copy(&mut self, host: usize, vm: &VmName, to: HostName, duration: u64) {
        let is_copying = |other: &&OtherVm| other.secondary.is_some() && self.now < other.copied_at;
        if self.others.iter().filter(is_copying).count() >= FIRST_COPIES_MAX {
            self.broken(Violation::TooManyCopies(self.name(host)));
        }
        let copied_at = self.now + duration;
        if let Some(other) = self.others.iter_mut().find(|other| other.name == *vm) {
            (other.secondary, other.copied_at) = (Some(to), copied_at);
        }
    }

    /// Some of them may have to wait.
    pub fn others_wait(&mut self, idle: &BTreeMap<VmName, Idle>) {
        if idle.values().any(|idle| matches!(idle, Idle::Queued { .. })) {
            self.coverage.note(Occurrence::CopyQueued);
        }
    }
}
