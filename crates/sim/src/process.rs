//! [`Process`]: a replica's process, which holds the protocol's state machine and what `replication::driver` keeps around it.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::{
    Ack, Callers, CopyNotes, DiskWatch, Epoch, Epochs, Event, Farewell, ForwardedFrames, Heartbeats, InputPosition,
    LogLag, MonotonicTime, Patience, Replica, SegmentUnderWay, Silence, UnreleasedOutput, Uplink,
};

use crate::copying::Copying;
use crate::ends::FrameId;
use crate::history::StateId;
use crate::network::{Arrival, ConnectionId, Message};
use crate::time::Nanoseconds;

/// Shorter than the product's, or no schedule would last so long.
pub(crate) const TOO_SLOW_AFTER: Duration = Duration::from_millis(300);

/// Likewise.
pub(crate) const UPLINK_PATIENCE: Duration = Duration::from_millis(60);

/// Likewise.
pub(crate) const DISK_PATIENCE: Duration = Duration::from_millis(60);

/// No two processes have the same, on whatever host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessId(pub u32);

/// What a process notices. Handled later while it is paused.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Arrived { connection: ConnectionId, arrival: Arrival },
    StoreAnswered(Box<Event>),
    Timer(Timer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The guest does something.
    Guest,
    /// A heartbeat is due, of either side.
    Heartbeat(ConnectionId),
    /// See whether the other side is silent.
    Silence(ConnectionId),
    /// The other side is silent, unless something lies there already.
    LastLook(ConnectionId),
    /// The other side has not answered a greeting.
    Connect(ConnectionId),
    /// See how the first copy goes on.
    Copy(ConnectionId),
    /// The last piece of a checkpoint can be sent, or what else is first of what waits to be sent.
    Sent(ConnectionId),
    /// A segment was executed.
    Executed(ConnectionId),
    /// An ack can be acted on, which was found to be fresh before.
    Checked { connection: ConnectionId, epoch: Epoch },
    /// The store is to be asked again.
    Retry,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub id: ProcessId,
    pub replica: Replica,
    pub body: Body,
    pub is_paused: bool,
    /// What came while it was paused.
    pub pile: Vec<Input>,
}

#[derive(Debug)]
pub(crate) enum Body {
    /// A secondary that waits for a primary, by whose keys alone it can be reached.
    Listening {
        expects: ProcessId,
        callers: Callers,
        /// Those with whom it has a connection.
        open: Vec<u64>,
    },
    Following(Box<Follower>),
    Running(Box<Runner>),
}

/// As `replication::driver`'s of this name.
#[derive(Debug)]
pub(crate) struct Follower {
    pub connection: ConnectionId,
    pub silence: Silence,
    /// What it says next.
    pub ack: Ack,
    /// What is noted of its copy of the disk.
    pub notes: CopyNotes,
    pub held: Option<Held>,
    /// Output that may not have left.
    pub unreleased: UnreleasedOutput<OutputRange>,
    /// What the primary has passed on.
    pub inbound: ForwardedFrames<FrameId>,
    /// The log, while it follows one.
    pub execution: Option<Execution>,
    /// It listens no more.
    pub parting: Option<Parting>,
    /// The protocol is to hear when the log received was executed.
    pub is_getting_ready: bool,
    /// It said that it was ready, and was not: [`crate::Mutation::ClaimUnready`].
    pub is_unready: bool,
    /// It said that it was ready, though its disks were broken: [`crate::Mutation::RunOnBrokenDisk`].
    pub has_broken_disks: bool,
    /// A fault has made it useless for good.
    pub has_failed: bool,
}

impl Follower {
    /// A heartbeat was heard just now.
    pub fn has_heard(&mut self, heartbeat: u64) {
        self.ack.hears(heartbeat, &self.silence);
    }
}

/// A log that is being executed, in order.
#[derive(Debug)]
pub(crate) struct Execution {
    /// How far it is.
    pub state: StateId,
    pub executed: Option<Epoch>,
    /// Received and not executed; since when it has been closed.
    pub waiting: VecDeque<(Held, Nanoseconds)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parting {
    Silent,
    HandOver,
    /// The guest was off: [`crate::Mutation::TakeOverEnded`].
    Ended,
    Otherwise,
}

/// The output of an epoch: what the guest sent after `base`, through `state`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputRange {
    pub base: StateId,
    pub state: StateId,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub epoch: Epoch,
    pub base: StateId,
    pub state: StateId,
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestEnd {
    PowerOff,
    Reset,
}

/// The guest has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    pub end: GuestEnd,
    pub farewell: Farewell,
}

/// A primary, as `replication::driver`'s of this name.
#[derive(Debug)]
pub(crate) struct Runner {
    pub state: StateId,
    pub epoch: Epoch,
    /// Output waits.
    pub is_held: bool,
    pub waiting: VecDeque<Waiting>,
    /// It is connected to a network end, or was.
    pub has_end: bool,
    pub session: Option<Session>,
    /// The guest is held for the first copy.
    pub held_until: Nanoseconds,
    pub connecting: Option<ConnectionId>,
    pub leaving: Option<Leaving>,
    /// The guest stands still for a hand-over.
    pub is_handing_over: bool,
    /// The epoch after which it is to be asked to take over, and that it has been.
    pub hands_over_after: Option<Epoch>,
    pub has_asked: bool,
    /// When the guest was last found to wait for its secondary, if it has done nothing since.
    pub waited_at: Option<MonotonicTime>,
    pub patience: Patience,
    pub was_protected: bool,
    pub uplink: Uplink,
    /// Since when it has not reached its network, though its secondary does, and has not been asked to hand over.
    pub cut_off_since: Option<Nanoseconds>,
    /// It has been asked to hand over since its network went.
    pub has_moved: bool,
    pub disk_watch: DiskWatch,
    /// It knows that its disks are broken.
    pub has_broken_disks: bool,
    /// Since when its disks have been broken, though its VM could move.
    pub halted_since: Option<Nanoseconds>,
}

impl Runner {
    pub fn new(state: StateId, epoch: Epoch) -> Self {
        Self {
            state,
            epoch,
            is_held: false,
            waiting: VecDeque::new(),
            has_end: false,
            session: None,
            held_until: 0,
            connecting: None,
            leaving: None,
            is_handing_over: false,
            hands_over_after: None,
            has_asked: false,
            waited_at: None,
            patience: Patience::new(TOO_SLOW_AFTER),
            was_protected: false,
            uplink: Uplink::new(UPLINK_PATIENCE),
            cut_off_since: None,
            has_moved: false,
            disk_watch: DiskWatch::new(DISK_PATIENCE),
            has_broken_disks: false,
            halted_since: None,
        }
    }
}

/// A frame in the gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub state: StateId,
    /// None: of the epoch under way, or of none.
    pub epoch: Option<Epoch>,
    /// It waits for room in the network end only.
    pub is_released: bool,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub connection: ConnectionId,
    pub secondary: usize,
    pub peer: ProcessId,
    pub heartbeats: Heartbeats,
    pub silence: Silence,
    pub epochs: Epochs,
    /// The first copy, until it is over.
    pub copying: Option<Box<Copying>>,
    /// The guest has sent something since a segment of the log was closed.
    pub output_waits: bool,
    /// The segment of the log under way, since the last one was closed or the last checkpoint captured.
    pub segment: SegmentUnderWay,
    /// The checkpoint that the log under way follows, if one is.
    pub log_base: Epoch,
    /// What waits to be sent, in order, and when the last of it will have been. The heartbeats of checkpoints are numbered then.
    pub outgoing: VecDeque<Message>,
    pub sent_at: Nanoseconds,
    /// The state at the last capture, or at the end of the last segment.
    pub base: StateId,
    /// How far the secondary is behind with executing segments, by what it has said.
    pub log_lag: LogLag,
    /// All through this epoch is known to be held.
    pub acknowledged: Epoch,
    /// The secondary says that it reaches its network.
    pub reaches_network: bool,
    /// Frames that are passed on late: [`crate::Mutation::ForwardWithCheckpoint`].
    pub unforwarded: Vec<(FrameId, InputPosition)>,
}
