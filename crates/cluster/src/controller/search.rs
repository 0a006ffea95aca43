//! What the controller remembers about one VM.

use spec::HostName;

use super::operation::Progress;
use super::report::{Loss, ReplicaState};
use super::shutdown::Shutdown;

/// How long a primary that was told of its secondary may go on saying that it has none, in ms.
const CONNECT_GRACE_MS: u64 = 5_000;
/// Time from an attempt that failed to the next one, in ms. Which hosts are left alone for longer is the planner's decision.
const RETRY_MS: u64 = 500;

/// Time from one attempt to move a VM away from a host in maintenance to the next one, in ms.
const MOVE_AGAIN_MS: u64 = 10_000;

/// What is remembered about a VM with a replica on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Search {
    pub(super) phase: Phase,
    /// An action is being carried out for its protection.
    pub(super) is_busy: bool,
    /// What is remembered of the operation that somebody asked for.
    pub(super) progress: Progress,
    /// No attempt before this time, and why the last one failed.
    retry: Option<(u64, String)>,
    /// Since when it has no secondary, in ms.
    alone_since_ms: Option<u64>,
    /// Since when it is at home here and nothing of it runs here, in ms.
    absent_since_ms: Option<u64>,
    /// What is remembered of the end of its replica with its host.
    pub(super) shutdown: Option<Shutdown>,
    /// When its migration was asked for, as its host is in maintenance, in ms.
    moved_ms: Option<u64>,
}

/// Where the search for the secondary is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is none.
    #[default]
    Alone,
    /// A host prepares one.
    Preparing(HostName),
    /// The primary was told.
    Told {
        host: HostName,
        at_ms: u64,
    },
    Syncing(HostName),
    Protected(HostName),
}

/// A host that was to be the secondary's, or was, and is so no more.
pub(super) struct Lost {
    pub(super) host: HostName,
    /// What is held against it, if anything is.
    pub(super) blame: Option<String>,
}

impl Search {
    /// Takes note of what the primary says. Answers whether a secondary is lost by that.
    pub(super) fn observe(&mut self, seen: &ReplicaState, now_ms: u64) -> Option<Lost> {
        match seen {
            ReplicaState::Protected { by } => {
                self.phase = Phase::Protected(by.clone());
                self.alone_since_ms = None;
                None
            }
            ReplicaState::Syncing { to } => {
                if !matches!(self.phase, Phase::Preparing(_)) {
                    self.phase = Phase::Syncing(to.clone());
                }
                None
            }
            ReplicaState::Alone { loss } => {
                self.alone_since_ms.get_or_insert(now_ms);
                self.lost(loss.as_ref(), now_ms)
            }
            ReplicaState::Booting | ReplicaState::Secondary { .. } => None,
        }
    }

    fn lost(&mut self, loss: Option<&Loss>, now_ms: u64) -> Option<Lost> {
        let (host, during_sync) = match &self.phase {
            Phase::Alone | Phase::Preparing(_) => return None,
            Phase::Told { at_ms, .. } if now_ms.saturating_sub(*at_ms) < CONNECT_GRACE_MS => return None,
            Phase::Told { host, .. } | Phase::Syncing(host) => (host.clone(), true),
            Phase::Protected(host) => (host.clone(), false),
        };
        self.phase = Phase::Alone;
        let blame = match loss {
            Some(loss) => loss.cause.is_blamed(during_sync).then(|| loss.text.clone()),
            None => during_sync.then(|| "the primary did not connect to it".to_owned()),
        };
        Some(Lost { host, blame })
    }

    /// Whether there is a secondary to be let go: the primary has one, or was told of one.
    pub(super) fn has_secondary(&self, seen: &ReplicaState) -> bool {
        matches!(seen, ReplicaState::Syncing { .. } | ReplicaState::Protected { .. })
            || matches!(self.phase, Phase::Told { .. })
    }

    /// The primary was told to let its secondary go.
    pub(super) fn let_go(&mut self) {
        self.phase = Phase::Alone;
    }

    /// Whether a first copy of this VM takes one of the places for them.
    pub(super) fn is_copying(&self) -> bool {
        matches!(self.phase, Phase::Preparing(_) | Phase::Told { .. } | Phase::Syncing(_))
    }

    /// Why there was no attempt that succeeded, while it is too early for the next one.
    pub(super) fn too_early(&self, now_ms: u64) -> Option<String> {
        self.retry.as_ref().filter(|(at_ms, _)| now_ms < *at_ms).map(|(_, message)| message.clone())
    }

    /// Since when there is no secondary, in ms.
    pub(super) fn alone_since_ms(&self) -> u64 {
        self.alone_since_ms.unwrap_or(u64::MAX)
    }

    /// Takes note of whether it is at home here and nothing of it runs here. Answers for how long that has been so, in ms.
    pub(super) fn absent_for_ms(&mut self, is_absent: bool, now_ms: u64) -> u64 {
        self.absent_since_ms = is_absent.then(|| self.absent_since_ms.unwrap_or(now_ms));
        self.absent_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms))
    }

    pub(super) fn told(&mut self, now_ms: u64) {
        if let Phase::Preparing(host) = &self.phase {
            self.phase = Phase::Told { host: host.clone(), at_ms: now_ms };
            self.retry = None;
        }
    }

    /// The attempt has ended without a secondary; `message` if it failed.
    pub(super) fn given_up(&mut self, message: Option<String>, now_ms: u64) {
        if matches!(self.phase, Phase::Preparing(_)) {
            self.phase = Phase::Alone;
        }
        self.retry = message.map(|message| (now_ms.saturating_add(RETRY_MS), message));
    }

    /// Its migration was asked for.
    pub(super) fn moves(&mut self, now_ms: u64) {
        self.moved_ms = Some(now_ms);
    }

    /// Whether its migration was asked for so short a time ago that it is too early for the next one.
    pub(super) fn moved_lately(&self, now_ms: u64) -> bool {
        self.moved_ms.is_some_and(|moved_ms| now_ms.saturating_sub(moved_ms) < MOVE_AGAIN_MS)
    }

    /// The next attempt may begin at once.
    pub(super) fn hurry(&mut self) {
        self.retry = None;
        self.progress.hurry();
    }
}
