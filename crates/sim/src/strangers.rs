//! Those who connect to a secondary that waits for its primary, and what `replication::driver` does about them.

use protocol::{CALLERS_MAX, Generation, admits};

use crate::coverage::Occurrence;
use crate::mutation::Mutation;
use crate::network::{ConnectionId, Side};
use crate::process::{Body, ProcessId};
use crate::violation::Violation;
use crate::world::World;

/// Numbers of strangers begin here; those of a connection are smaller.
const STRANGERS: u64 = 1 << 32;
/// Most of those who come between a primary and what it says.
const IN_BETWEEN_MAX: u64 = 6;
/// Connections that a secondary must never have more of.
const OPEN_MAX: usize = 2 * CALLERS_MAX;

impl World {
    /// A secondary has just begun to listen: strangers connect and say nothing, and one says that it is the primary.
    pub fn strangers_call(&mut self, host: usize) {
        if self.is_calm || self.plan.strangers == 0 {
            return;
        }
        self.coverage.note(Occurrence::Strangers);
        (0..self.plan.strangers).for_each(|number| self.calls(host, STRANGERS + number));
        let claim = self.claim();
        let (primary, current) = (claim.primary.clone(), claim.generation);
        let other = self.hosts[self.random.below(self.hosts.len())].name.clone();
        let said = self.random.pick(&[current, current.before(), Generation::NONE]);
        let claimed = if self.random.chance(50) { primary.clone() } else { other.clone() };
        if (&other, &claimed, said) == (&primary, &primary, current) {
            return;
        }
        if self.mutation == Some(Mutation::AdmitAnyone) || admits(self.claim(), &other, &claimed, said).is_ok() {
            self.broken(Violation::FollowsStranger(self.name(host)));
        }
    }

    /// The primary connects; others may do so before it has said who it is.
    pub fn primary_calls(&mut self, secondary: ProcessId, connection: ConnectionId) {
        let Some(host) = self.home(secondary) else { return };
        self.calls(host, connection as u64);
        if !self.is_calm && self.plan.strangers > 0 {
            let count = self.random.between(0, IN_BETWEEN_MAX);
            (0..count).for_each(|number| self.calls(host, 2 * STRANGERS + number));
        }
    }

    fn calls(&mut self, host: usize, caller: u64) {
        let mutation = self.mutation;
        let Some(process) = &mut self.hosts[host].process else { return };
        let Body::Listening { callers, open, .. } = &mut process.body else { return };
        open.push(caller);
        let refused = match mutation {
            Some(Mutation::TurnNewcomersAway) if callers.waiting() >= CALLERS_MAX => Some(caller),
            Some(Mutation::GreetAll) => callers.comes(caller).filter(|_| false),
            _ => callers.comes(caller),
        };
        open.retain(|&one| Some(one) != refused);
        if open.len() > OPEN_MAX {
            self.broken(Violation::TooManyCallers(self.name(host)));
        }
        if let Some(refused) = refused.filter(|&refused| refused < STRANGERS) {
            self.broken(Violation::PrimaryKeptOut(self.name(host)));
            self.close(refused as ConnectionId, Side::Secondary);
        }
    }

    /// Somebody says that it is the primary; whether it is followed. It has to be the replica that has the keys, and the store's primary.
    pub fn greets(&mut self, host: usize, connection: ConnectionId, generation: Generation) -> bool {
        let peer = self.network.end(connection, Side::Primary).process;
        let name = self.hosts[self.homes[peer.0 as usize]].name.clone();
        let is_admitted = self.reaches_store(host) && admits(self.claim(), &name, &name, generation).is_ok();
        let admits_anyone = self.mutation == Some(Mutation::AdmitAnyone);
        let Some(process) = &mut self.hosts[host].process else { return false };
        let Body::Listening { expects, callers, .. } = &mut process.body else { return false };
        let follows = peer == *expects && is_admitted || admits_anyone;
        if !follows {
            callers.leaves(connection as u64);
        }
        if !follows || !callers.admit(connection as u64) {
            return false;
        }
        if self.store.current().author != peer {
            self.broken(Violation::FollowsStranger(self.name(host)));
        }
        true
    }
}
