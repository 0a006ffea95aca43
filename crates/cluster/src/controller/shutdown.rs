//! What becomes of the replicas of a host that is stopped with its VMs.

use super::action::{Action, Outcome};
use super::report::ReplicaState;

/// How long guests may take to shut down when their host is stopped with its VMs, in ms. After that their plugs are pulled.
pub const SHUTDOWN_MS_MAX: u64 = 60_000;
/// Time from an attempt that failed to the next one, in ms.
const RETRY_MS: u64 = 500;

/// What is remembered of the end of a VM's replica. When it is forgotten, a guest is told once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shutdown {
    /// Since when the host is being stopped, in ms.
    since_ms: u64,
    /// An action is being carried out.
    is_busy: bool,
    /// The guest was told to shut down.
    is_told: bool,
    /// No attempt before this time.
    retry_ms: u64,
}

impl Shutdown {
    /// One that begins now.
    pub(super) fn since(now_ms: u64) -> Self {
        Self { since_ms: now_ms, is_busy: false, is_told: false, retry_ms: 0 }
    }

    /// What is done next; nothing while that has to be waited for.
    pub(super) fn next(&mut self, replica: &ReplicaState, now_ms: u64) -> Option<Action> {
        if self.is_busy || now_ms < self.retry_ms {
            return None;
        }
        let is_over = now_ms.saturating_sub(self.since_ms) >= SHUTDOWN_MS_MAX;
        let action = match replica {
            ReplicaState::Secondary { .. } => Action::EndSecondary,
            _ if is_over => Action::ShutDown { force: true },
            // One that says nothing has no power button.
            ReplicaState::Booting => return None,
            _ if self.is_told => return None,
            _ => Action::ShutDown { force: false },
        };
        self.is_busy = true;
        Some(action)
    }

    /// Takes note of how the action has ended.
    pub(super) fn note(&mut self, action: &Action, outcome: &Outcome, now_ms: u64) {
        self.is_busy = false;
        match outcome {
            Outcome::Done => self.is_told |= *action == Action::ShutDown { force: false },
            Outcome::NotWanted => {}
            Outcome::Failed(_) => self.retry_ms = now_ms.saturating_add(RETRY_MS),
        }
    }
}
