//! [`Command`]: what a replica wants done.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Claim, Epoch, Generation};

/// How long [`Command::StartRetryTimer`] waits before the cluster store is asked again.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// What is to be done, in the order given, before the replica is told of the next event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Primary: output waits for its commit from now on; before the guest runs again.
    HoldOutput,
    /// Primary: output of epochs up to `through` may leave.
    Release {
        /// The last of them.
        through: Epoch,
    },
    /// Primary: everything that waits may leave, and nothing waits any more.
    OpenOutput,
    /// Secondary: tell the primary that everything through `epoch` is held.
    Acknowledge {
        /// The last checkpoint held.
        epoch: Epoch,
    },
    /// Primary: tell the secondary that the store names it.
    TellEntitled {
        /// Since when.
        generation: Generation,
    },
    /// Ask the store to replace the claim of the generation before by this one. It is answered by exactly one of
    /// [`super::Event::Arbitrated`] and [`super::Event::StoreUnreachable`], within a bounded time.
    CompareAndSwap {
        /// What the claim should be.
        claim: Claim,
    },
    /// Ask the store for the claim. It is answered by exactly one of [`super::Event::ClaimRead`] and
    /// [`super::Event::StoreUnreachable`], within a bounded time.
    ReadClaim,
    /// Close the connection to the other replica, if there is one, and let nothing of it reach this replica any more.
    CloseChannel,
    /// Tell the replica when it is time to ask the store again, by [`super::Event::RetryDue`], after
    /// [`RETRY_INTERVAL`].
    StartRetryTimer,
    /// Primary: ask the secondary to take over. The guest stands still until [`Self::Resume`], or for good.
    AskToTakeOver,
    /// Secondary: see to it that this replica could run the VM from what it holds: what was received of the log is executed to its end,
    /// the disks are written, the VM is made of what is held, and its network ends answer. All is done that could fail, as whoever has
    /// won must not fail any more. It hears nothing of its primary meanwhile. It is answered by exactly one of [`super::Event::Ready`],
    /// [`super::Event::NotReady`], and, for good, [`super::Event::PeerLost`] with a reason of the secondary's own. The connection is open
    /// yet in the beginning, to tell the primary of a failure.
    GetReady,
    /// Secondary: become primary with the last checkpoint held. Output passes: this replica is alone.
    TakeOver {
        /// The epoch which that checkpoint ends.
        from: Epoch,
    },
    /// Primary: let the guest run if it was paused for a hand-over: that does not come about.
    Resume,
    /// The guest never runs here again, and output that waits is dropped.
    Stop {
        /// Why the guest stops for good.
        reason: StopReason,
    },
}

/// Why a replica stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// Another replica may go on: it won the compare-and-swap.
    Superseded,
    /// The other replica took over, as asked.
    HandedOver,
    /// A secondary that the store does not name lost its primary.
    NotEntitled,
    /// A secondary without a checkpoint lost its primary.
    NothingHeld,
    /// The secondary itself failed.
    Failed,
    /// The claim that a primary was to start with is not its own alone.
    NotNamed,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Superseded => "another replica goes on",
            Self::HandedOver => "the other replica has taken over, as asked",
            Self::NotEntitled => {
                "the primary is lost, and the cluster store does not name this replica as its secondary"
            }
            Self::NothingHeld => "the primary is lost before its first checkpoint was complete",
            Self::Failed => "this secondary has failed",
            Self::NotNamed => "the cluster store does not name this replica as the only one",
        })
    }
}
