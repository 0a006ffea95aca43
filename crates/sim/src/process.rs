//! [`Process`]: a replica's process, which holds the protocol's state machine and what `replication::mirror` keeps around it.

use std::collections::VecDeque;

use protocol::{Epoch, Event, Replica};

use crate::history::StateId;
use crate::network::{Arrival, ConnectionId, Message};
use crate::time::Nanoseconds;

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
    /// The other side has not answered a greeting.
    Connect(ConnectionId),
    /// The first copy is over.
    Copied(ConnectionId),
    /// The last piece of a checkpoint can be sent, or what else is first of what waits to be sent.
    Sent(ConnectionId),
    /// A segment was executed.
    Executed(ConnectionId),
    /// An ack can be acted on; whether it was fresh has been found out before.
    Checked { connection: ConnectionId, epoch: Epoch, fresh: bool },
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
    /// A secondary that waits for a primary.
    Listening,
    Following(Box<Follower>),
    Running(Box<Runner>),
}

/// As `replication::mirror`'s of this name.
#[derive(Debug)]
pub(crate) struct Follower {
    pub connection: ConnectionId,
    pub heard: u64,
    pub last_heard: Nanoseconds,
    pub acknowledged: Option<Epoch>,
    pub held: Option<Held>,
    /// Checkpoints whose output may not have left.
    pub unreleased: VecDeque<Held>,
    /// The log, while it follows one.
    pub execution: Option<Execution>,
    /// It listens no more.
    pub parting: Option<Parting>,
    /// What the protocol is to hear once the log received was executed.
    pub after_run_out: Option<Event>,
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
    Otherwise,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub epoch: Epoch,
    pub base: StateId,
    pub state: StateId,
}

/// A primary, as `replication::mirror`'s of this name.
#[derive(Debug)]
pub(crate) struct Runner {
    pub state: StateId,
    pub epoch: Epoch,
    /// Output waits.
    pub is_held: bool,
    pub waiting: VecDeque<Waiting>,
    pub session: Option<Session>,
    pub connecting: Option<ConnectionId>,
    pub hand_over: Option<Epoch>,
    /// Since when the guest waits for its secondary.
    pub waits_since: Option<Nanoseconds>,
    pub was_protected: bool,
}

impl Runner {
    pub fn new(state: StateId, epoch: Epoch) -> Self {
        Self {
            state,
            epoch,
            is_held: false,
            waiting: VecDeque::new(),
            session: None,
            connecting: None,
            hand_over: None,
            waits_since: None,
            was_protected: false,
        }
    }
}

/// A frame in the gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub state: StateId,
    /// None: of the epoch under way.
    pub epoch: Option<Epoch>,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub connection: ConnectionId,
    pub secondary: usize,
    pub peer: ProcessId,
    /// When heartbeats were sent; the first has number 1.
    pub heartbeats: Vec<Nanoseconds>,
    pub last_heard: Nanoseconds,
    pub is_mirroring: bool,
    pub in_flight: VecDeque<Epoch>,
    pub output_waits: bool,
    pub epoch_since: Nanoseconds,
    /// What waits to be sent, in order, and when the last of it will have been. The heartbeats of checkpoints are numbered then.
    pub outgoing: VecDeque<Message>,
    pub sent_at: Nanoseconds,
    /// The state at the last capture, or at the end of the last segment.
    pub base: StateId,
    /// The secondary follows the log.
    pub has_log: bool,
    /// Segments that the secondary has not said to have executed, and when they were closed.
    pub unexecuted: VecDeque<(Epoch, Nanoseconds)>,
}
