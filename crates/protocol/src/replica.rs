//! [`Replica`]: one replica of a VM.

use spec::ReplicaId;

use super::primary::Primary;
use super::secondary::Secondary;
use super::{Claim, Command, Event, Generation, Protection, Reason, Role, Status, StopReason};

/// One replica of a VM, as far as the protocol goes. It is told what happened and says what to do; see the [module](super).
#[derive(Clone, Debug)]
pub struct Replica(State);

#[derive(Clone, Debug)]
pub(super) enum State {
    Primary(Primary),
    Secondary(Secondary),
    Stopped { role: Role, generation: Generation, reason: StopReason },
}

impl Replica {
    /// A primary whose output passes. `claim`, of which this process knows that it is the store's, names `id` as primary and nobody as
    /// secondary. If it does not, the replica is one that has stopped.
    pub fn primary(id: ReplicaId, claim: Claim) -> Self {
        if claim.primary != id || claim.secondary.is_some() {
            return Self(State::Stopped {
                role: Role::Primary,
                generation: claim.generation,
                reason: StopReason::NotNamed,
            });
        }
        Self(State::Primary(Primary::alone(id, claim, Reason::NoSecondaryYet)))
    }

    /// A secondary to which no primary has sent anything yet.
    pub fn secondary(id: ReplicaId) -> Self {
        Self(State::Secondary(Secondary::new(id)))
    }

    /// Takes note of an event. The commands are to be carried out in their order, before the next event.
    pub fn handle(&mut self, event: Event) -> Vec<Command> {
        let mut commands = Vec::new();
        let next = match &mut self.0 {
            State::Primary(primary) => primary.handle(&event, &mut commands),
            State::Secondary(secondary) => secondary.handle(&event, &mut commands),
            State::Stopped { .. } => None,
        };
        if let Some(next) = next {
            self.0 = next;
        }
        commands
    }

    /// Whether the VM survives the loss of a host, as [`Status::is_protected`] says it.
    pub fn is_protected(&self) -> bool {
        match &self.0 {
            State::Primary(primary) => primary.is_protected(),
            State::Secondary(secondary) => secondary.is_protected(),
            State::Stopped { .. } => false,
        }
    }

    /// Whether this primary's VM could go on at its secondary, which says whether it reaches all of its network ends: a VM does not move from one broken
    /// part to another.
    pub fn could_move(&self, secondary_reaches_network: bool) -> bool {
        matches!(&self.0, State::Primary(primary) if primary.is_protected()) && secondary_reaches_network
    }

    /// Whether this primary does not know whether it goes on: its output waits, and there is nobody any more to acknowledge it. If the other replica does,
    /// what its guest did here since the last epoch that was acknowledged has never happened.
    pub fn is_undecided(&self) -> bool {
        matches!(&self.0, State::Primary(primary) if primary.is_undecided())
    }

    /// The replica's role, generation and protection, with the reason.
    pub fn status(&self) -> Status {
        match &self.0 {
            State::Primary(primary) => primary.status(),
            State::Secondary(secondary) => secondary.status(),
            State::Stopped { role, generation, reason } => Status {
                role: *role,
                generation: *generation,
                secondary: None,
                protection: Protection::NotRunning,
                reason: Some(Reason::Stopped(*reason)),
            },
        }
    }
}
