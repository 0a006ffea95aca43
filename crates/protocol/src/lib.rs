//! Every decision of replication, as pure state machines: events and the time go in, commands come out. There is no I/O here, no clock and
//! no thread; `replication` carries the commands out, and `sim` runs the very same machines under faults.
//!
//! | type | decides |
//! | --- | --- |
//! | [`Replica`] | who may release output, and who takes over |
//! | [`Epochs`] | when an epoch ends, when the guest has to wait, what an ack commits, what a change of mode brings about |
//! | [`SegmentUnderWay`], [`LogLag`] | when a segment of the log ends, and how far the secondary is behind with executing it |
//! | [`ReadyStep`] | what a secondary does before it asks for its VM |
//! | [`Standstill`] | what comes first while the guest stands still |
//! | [`Ack`], [`Heartbeats`] | which acks count, and what they say |
//! | [`Silence`], [`Suspicion`] | when the other replica is lost for its silence, by what the link was like |
//! | [`Patience`] | when a secondary is too slow to be kept |
//! | [`FirstCopy`] | when rounds of copying go on, when the guest is slowed down for them, when they end or are given up |
//! | [`CopyTurns`], [`CopyWindow`] | what is sent next for a first copy, and how much of it is on its way |
//! | [`EarlyRounds`] | how much of a checkpoint is copied before its pause |
//! | [`Farewell`] | how a primary whose guest has ended parts from its secondary |
//! | [`LinkWatch`] | whether the link to a secondary is too slow for protection |
//! | [`Uplink`] | when a VM whose network is gone moves to its secondary |
//! | [`DiskWatch`] | when a disk is broken, and whether its VM moves to its secondary or stands still |
//! | [`FailedRequests`] | what a guest hears of requests to its disks that fail |
//! | [`CopyNotes`], [`may_start`] | what is noted of a copy of the disks, and whether a VM may start from it |
//! | [`admits`], [`Callers`] | which primary a secondary follows, and how many others it listens to meanwhile |
//! | [`InputPath`], [`ForwardedFrames`] | how a secondary comes to know of inbound frames, and which ones it feeds to its guest at takeover |
//! | [`HandedOut`], [`may_attach`], [`waiting_max`] | whom a network end serves, and with which frames |
//! | [`UnreleasedOutput`], [`left_through`] | what is sent again at takeover |
//! | [`GuestClock`], [`PeerClock`] | what the guest's clock shows after a takeover |

mod ack;
mod admission;
mod arbiter;
mod callers;
mod claim;
mod command;
mod disk_copy;
mod disk_failure;
mod disk_watch;
mod early_copy;
mod epochs;
mod event;
mod farewell;
mod first_copy;
mod guest_clock;
mod heartbeats;
mod input;
mod numbers;
mod output;
mod patience;
mod primary;
mod question;
mod readiness;
mod replica;
mod secondary;
mod segments;
mod silence;
mod slow_link;
mod standstill;
mod status;
mod suspicion;
#[cfg(test)]
mod tests;
mod time;
mod uplink;

pub use ack::{Ack, AckSays};
pub use admission::{NotAdmitted, admits};
pub use arbiter::{Arbiter, Unreachable, Verdict};
pub use callers::{CALLERS_MAX, Callers};
pub use claim::Claim;
pub use command::{Command, RETRY_INTERVAL, StopReason};
pub use disk_copy::{CopyNotes, DiskCopy, NotStartable, may_start};
pub use disk_failure::{AfterFailure, FailedRequests, REQUEST_RETRY_INTERVAL, RequestFailure};
pub use disk_watch::{DISK_PATIENCE, DiskAdvice, DiskHealth, DiskWatch};
pub use early_copy::{EARLY_PAGES_LEFT, EarlyRounds, are_copied_early};
pub use epochs::{Committed, Decision, EpochBounds, Epochs, Load, NotSent, Sending};
pub use event::{DropReason, Event, LossReason};
pub use farewell::{Farewell, FarewellStep};
pub use first_copy::{
    Amount, COPY_LOOK_INTERVAL, CopyTurn, CopyTurns, CopyWindow, FirstCopy, LAST_PAUSE_MAX, Left, Pace, RoundEnd,
    Slowed, Step, TakenIn, WRITES_KEPT_MAX, WRITES_WAITING_MAX,
};
pub use guest_clock::{GuestClock, PeerClock};
pub use heartbeats::{Heartbeats, heartbeat_interval};
pub use input::{FED_FRAMES_MAX, ForwardedFrames, HandedOut, InputPath, InputPosition, Kept, may_attach, waiting_max};
pub use numbers::{Epoch, Generation};
pub use output::{UNRELEASED_BYTES_MAX, UNRELEASED_FRAMES_MAX, UnreleasedOutput, left_through};
pub use patience::Patience;
pub use readiness::{Readiness, ReadyStep, StepEnd};
pub use replica::Replica;
pub use segments::{LogLag, SegmentLoad, SegmentUnderWay};
pub use silence::{Look, Silence, Watched};
pub use slow_link::{LINK_BITS_PER_S_MIN, LinkWatch, SlowLink};
pub use standstill::Standstill;
pub use status::{Protection, Reason, Role, Status};
pub use suspicion::Suspicion;
pub use time::MonotonicTime;
pub use uplink::{UPLINK_PATIENCE, Uplink};
