//! [`Question`]: a compare-and-swap until it is answered.

use spec::ReplicaId;

use super::{Claim, Command, Event, Verdict};

/// A change of the claim that was asked for and is not decided. A replica asks one question at a time.
#[derive(Clone, Debug)]
pub(super) struct Question {
    claim: Claim,
    turn: Turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The store is to answer.
    Store,
    /// The store was not reached, and the timer runs.
    Timer,
}

/// What an event means to a question.
pub(super) enum Answer {
    /// Nothing.
    None,
    /// The claim is this replica's.
    Ours(Claim),
    /// The claim is somebody else's.
    Theirs,
    /// Nobody knows; the timer is to be started.
    Unknown,
    /// It is time to ask again, for the same or for something else.
    AskAgain,
}

impl Question {
    pub fn ask(claim: Claim) -> (Self, Command) {
        (Self { claim: claim.clone(), turn: Turn::Store }, Command::CompareAndSwap { claim })
    }

    pub fn is_store_unreachable(&self) -> bool {
        self.turn == Turn::Timer
    }

    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Takes note of an event; `id` is the replica that has asked.
    pub fn hear(&mut self, id: &ReplicaId, event: &Event) -> Answer {
        match (self.turn, event) {
            (Turn::Store, Event::Arbitrated(Verdict::Won)) => Answer::Ours(self.claim.clone()),
            // An earlier attempt of ours whose answer was lost: only the two replicas that the last generation names can have written
            // this one, each as primary.
            (Turn::Store, Event::Arbitrated(Verdict::Lost(current)))
                if current.generation == self.claim.generation && current.primary == *id =>
            {
                Answer::Ours(current.clone())
            }
            (Turn::Store, Event::Arbitrated(Verdict::Lost(_))) => Answer::Theirs,
            (Turn::Store, Event::StoreUnreachable) => {
                self.turn = Turn::Timer;
                Answer::Unknown
            }
            (Turn::Timer, Event::RetryDue) => Answer::AskAgain,
            _ => Answer::None,
        }
    }
}
