//! The search for a VM's secondary, as its state.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use machine::bus::lock;

use crate::replica::status::{Protection, ProtectionState, Reason, ReplicaStatus, unix_ms_now};

/// How long a replica that was told of its secondary may go on saying that it needs one.
const CONNECT_GRACE: Duration = Duration::from_secs(5);
/// Time from an attempt that failed to the next one. Which hosts are left alone for longer is the planner's decision.
const RETRY: Duration = Duration::from_millis(500);
/// Time from finding that no secondary is wanted to looking again. Whoever asks for one does not wait so long.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The search for the secondary of a primary that runs here.
#[derive(Default)]
pub struct Attempts(Mutex<State>);

#[derive(Default)]
struct State {
    phase: Phase,
    not_before: Option<Instant>,
    /// Why the last attempt failed, and since when attempts fail, in ms since 1970.
    obstacle: Option<(String, u64)>,
}

#[derive(Default)]
enum Phase {
    #[default]
    Alone,
    /// A host is being chosen, or prepares.
    UnderWay,
    /// The primary was told.
    Told {
        host: String,
        at: Instant,
    },
    Syncing {
        host: String,
    },
    Protected {
        host: String,
    },
}

/// What to do after a look at the primary.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Wait,
    /// Look for a secondary; it counts as under way now.
    Begin,
    /// It has become protected.
    Protected,
    /// The host that was to be its secondary, or was, is so no more.
    Lost {
        /// The host.
        host: String,
        /// What is held against the host; nothing if it is not to blame.
        message: Option<String>,
    },
}

/// How an attempt ended.
pub enum Ended {
    /// The primary was told that this host waits for it.
    Told(String),
    /// No secondary is wanted.
    NotWanted,
    /// It failed.
    Failed(String),
}

impl Attempts {
    /// Why no secondary was found, and since when, in ms since 1970.
    pub fn obstacle(&self) -> Option<(String, u64)> {
        lock(&self.0).obstacle.clone()
    }

    /// Takes note of what the primary says.
    pub fn observe(&self, status: &ReplicaStatus) -> Next {
        let mut state = lock(&self.0);
        let peer = || status.peer.clone().unwrap_or_default();
        match (status.protection.state, &state.phase) {
            (ProtectionState::Protected, Phase::Protected { .. }) => Next::Wait,
            (ProtectionState::Protected, _) => {
                *state = State { phase: Phase::Protected { host: peer() }, ..State::default() };
                Next::Protected
            }
            (ProtectionState::Starting, Phase::UnderWay) | (ProtectionState::NotRunning, _) => Next::Wait,
            // The VM itself is being started.
            (ProtectionState::Starting, _) if status.peer.is_none() => Next::Wait,
            (ProtectionState::Starting, _) => {
                state.phase = Phase::Syncing { host: peer() };
                Next::Wait
            }
            (_, Phase::UnderWay) => Next::Wait,
            (_, Phase::Told { at, .. }) if at.elapsed() < CONNECT_GRACE => Next::Wait,
            (_, Phase::Alone) => {
                if state.not_before.is_some_and(|time| Instant::now() < time) {
                    return Next::Wait;
                }
                state.phase = Phase::UnderWay;
                Next::Begin
            }
            (_, Phase::Told { host, .. } | Phase::Syncing { host }) => {
                let message = blame(&status.protection, true);
                let lost = Next::Lost { host: host.clone(), message };
                state.phase = Phase::Alone;
                lost
            }
            (_, Phase::Protected { host }) => {
                let message = blame(&status.protection, false);
                let lost = Next::Lost { host: host.clone(), message };
                state.phase = Phase::Alone;
                lost
            }
        }
    }

    /// The attempt that was begun has ended.
    pub fn end(&self, ended: Ended) {
        let mut state = lock(&self.0);
        match ended {
            Ended::Told(host) => {
                state.phase = Phase::Told { host, at: Instant::now() };
                state.obstacle = None;
            }
            Ended::NotWanted => {
                *state = State { not_before: Some(Instant::now() + LOOK_AGAIN), ..State::default() };
            }
            Ended::Failed(text) => {
                let since = state.obstacle.as_ref().map_or_else(unix_ms_now, |(_, since)| *since);
                let not_before = Some(Instant::now() + RETRY);
                *state = State { phase: Phase::Alone, not_before, obstacle: Some((text, since)) };
            }
        }
    }

    /// The next one may begin at once: somebody asks.
    pub fn hurry(&self) {
        lock(&self.0).not_before = None;
    }
}

/// What is held against the host of a secondary that is lost. One that was killed or cut off after a good while is as good as
/// any when it answers again; one that never became a secondary, or could not keep up, may be so again.
fn blame(protection: &Protection, during_sync: bool) -> Option<String> {
    let reason = protection.reason.unwrap_or(Reason::LostConnection);
    let is_to_blame = match reason {
        Reason::UserAction | Reason::NoHost => false,
        Reason::LostConnection | Reason::Initializing => during_sync,
        Reason::Divergence | Reason::HardwareFailure | Reason::CheckpointError | Reason::SecondaryTooSlow => true,
    };
    is_to_blame.then(|| match &protection.detail {
        Some(detail) => format!("{reason}: {detail}"),
        None => reason.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use spec::EngineKind;

    use super::*;
    use crate::replica::status::{Figures, Role};

    fn status(state: ProtectionState, reason: Option<Reason>) -> ReplicaStatus {
        ReplicaStatus {
            vm: "v".to_owned(),
            host: "a".to_owned(),
            pid: 1,
            role: Role::Primary,
            engine: EngineKind::Soft,
            mode: None,
            generation: 1,
            running_s: 0,
            protection: Protection::now(state, reason),
            peer: Some("b".to_owned()),
            sync: None,
            listen: None,
            figures: Figures::default(),
        }
    }

    fn alone() -> ReplicaStatus {
        status(ProtectionState::Disabled, None)
    }

    #[test]
    fn one_attempt_at_a_time_and_a_pause_after_a_failure() {
        let attempts = Attempts::default();
        assert_eq!(attempts.observe(&alone()), Next::Begin);
        assert_eq!(attempts.observe(&alone()), Next::Wait, "two attempts at once");
        attempts.end(Ended::Failed("no host".to_owned()));
        assert_eq!(attempts.observe(&alone()), Next::Wait, "no pause after a failure");
        let since = attempts.obstacle().unwrap().1;
        attempts.hurry();
        assert_eq!(attempts.observe(&alone()), Next::Begin);
        attempts.end(Ended::Failed("full".to_owned()));
        assert_eq!(attempts.obstacle(), Some(("full".to_owned(), since)));
    }

    #[test]
    fn a_secondary_that_is_lost_is_sought_again_and_blamed_only_for_what_it_did() {
        for (way, reason, blamed) in [
            (vec![ProtectionState::Starting, ProtectionState::Protected], Reason::LostConnection, false),
            (vec![ProtectionState::Starting, ProtectionState::Protected], Reason::SecondaryTooSlow, true),
            (vec![ProtectionState::Starting, ProtectionState::Protected], Reason::UserAction, false),
            (vec![ProtectionState::Starting], Reason::LostConnection, true),
        ] {
            let attempts = Attempts::default();
            assert_eq!(attempts.observe(&alone()), Next::Begin);
            attempts.end(Ended::Told("b".to_owned()));
            assert_eq!(attempts.observe(&alone()), Next::Wait, "the primary was told just now");
            for state in way {
                let expected = if state == ProtectionState::Protected { Next::Protected } else { Next::Wait };
                assert_eq!(attempts.observe(&status(state, None)), expected);
            }
            let lost = attempts.observe(&status(ProtectionState::NeedSecondary, Some(reason)));
            let Next::Lost { host, message } = lost else { panic!("{lost:?}") };
            assert_eq!((host.as_str(), message.is_some()), ("b", blamed), "{reason}");
            assert_eq!(attempts.observe(&alone()), Next::Begin);
        }
    }

    #[test]
    fn a_vm_that_is_being_started_has_no_secondary_to_lose() {
        let attempts = Attempts::default();
        let starting = ReplicaStatus { peer: None, ..status(ProtectionState::Starting, Some(Reason::Initializing)) };
        assert_eq!(attempts.observe(&starting), Next::Wait);
        assert_eq!(attempts.observe(&alone()), Next::Begin);
    }

    #[test]
    fn a_vm_that_wants_no_secondary_is_looked_at_now_and_then() {
        let attempts = Attempts::default();
        assert_eq!(attempts.observe(&alone()), Next::Begin);
        attempts.end(Ended::NotWanted);
        assert_eq!((attempts.observe(&alone()), attempts.obstacle()), (Next::Wait, None));
        attempts.hurry();
        assert_eq!(attempts.observe(&alone()), Next::Begin);
    }
}
