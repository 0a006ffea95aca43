//! [`Event`]: what a replica is told.

use spec::ReplicaId;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Claim, DiskAdvice, Epoch, Generation, Verdict};

/// What has happened. Events of a connection that was closed must not reach the replica any more: threads that still hold one of its
/// messages drop it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Primary: the first copy to `secondary` is over. The guest is paused, and the first checkpoint is about to be captured.
    SyncFinished {
        /// Who has the copy.
        secondary: ReplicaId,
    },
    /// Primary: the secondary holds all checkpoints through `epoch`, of which each was sent on this connection. The ack that says so was
    /// [fresh](super::Heartbeats); a stale one is no event.
    Acknowledged {
        /// The last of them.
        epoch: Epoch,
    },
    /// Primary: the secondary shall not be one any more, nor shall whom a first copy is being made to.
    DropSecondary {
        /// Why the secondary is dropped.
        reason: DropReason,
    },
    /// Primary: the guest is paused for a planned takeover, and what ends `last` is about to be captured or closed. It stays paused until
    /// [`super::Command::Resume`], or for good.
    SwitchOver {
        /// The last epoch before the secondary is asked to take over.
        last: Epoch,
    },
    /// Primary: what ends the last epoch could not be captured.
    SwitchOverFailed,
    /// Primary: its disks are broken ([`super::DiskWatch`]), and what the guest asked of them is not answered. Told at each look,
    /// and with `could_move` whenever the VM could go on at the secondary: there is nothing more to capture of the guest then.
    DisksBroken {
        /// The secondary is to be asked to take over.
        could_move: bool,
    },
    /// Primary: its disks are sound again.
    DisksSound,
    /// Secondary: a checkpoint is complete, checked, and in memory.
    CheckpointHeld {
        /// The epoch that it ends.
        epoch: Epoch,
    },
    /// Secondary: the primary says that the store names this replica as its secondary.
    Entitled {
        /// Since when.
        generation: Generation,
    },
    /// Secondary: the primary has paused for good and asks for a takeover.
    HandOver,
    /// Secondary: it could run the VM from what it holds, as [`super::Command::GetReady`] asked for.
    Ready,
    /// Secondary: it could not run the VM now, and may later, as when its network end is gone. The primary has been told, if it hears yet.
    NotReady,
    /// The other replica is gone, or may be.
    PeerLost {
        /// Why one thinks so.
        reason: LossReason,
    },
    /// The store's answer to [`super::Command::CompareAndSwap`].
    Arbitrated(Verdict),
    /// The store's answer to [`super::Command::ReadClaim`].
    ClaimRead(Claim),
    /// The store did not answer.
    StoreUnreachable,
    /// The timer of [`super::Command::StartRetryTimer`] has ended.
    RetryDue,
}

impl Event {
    /// What a primary is told of its disks.
    pub fn of_disks(advice: DiskAdvice) -> Option<Self> {
        match advice {
            DiskAdvice::GoOn => None,
            DiskAdvice::Recovered => Some(Self::DisksSound),
            DiskAdvice::Hold { .. } => Some(Self::DisksBroken { could_move: false }),
            DiskAdvice::GiveUp => Some(Self::DisksBroken { could_move: true }),
        }
    }
}

/// Why a replica gave up the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossReason {
    /// Its connection was closed.
    Closed,
    /// Nothing came for the suspicion time.
    Silent,
    /// What it sent is not what the protocol allows.
    Protocol,
    /// The secondary cannot go on: its disk is full, for example. The primary has been told; the secondary itself stops.
    Failed,
    /// In lockstep, the secondary has found that its state is not that of the primary. It has told the primary, and stops.
    Diverged,
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Closed => "the connection was closed",
            Self::Silent => "the other replica was silent",
            Self::Protocol => "the other replica broke the protocol",
            Self::Failed => "the secondary failed",
            Self::Diverged => "the secondary had diverged",
        })
    }
}

/// Why a primary gives up a secondary that it can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    /// Protection was turned off.
    Off,
    /// Protection was suspended.
    Suspend,
    /// A new secondary is wanted.
    Restart,
    /// It does not keep up.
    TooSlow,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "protection was turned off",
            Self::Suspend => "protection was suspended",
            Self::Restart => "a new secondary was asked for",
            Self::TooSlow => "the secondary was too slow",
        })
    }
}
