//! [`Network`]: connections between replicas. As with TCP, what arrives is a beginning of what was sent, in order; either end may never
//! learn that the other one is gone.

use std::collections::VecDeque;

use protocol::{Ack, Epoch, Generation, InputPosition};

use crate::ends::FrameId;
use crate::history::{Content, DiskOp, StateId};
use crate::process::ProcessId;
use crate::time::Nanoseconds;

pub(crate) type ConnectionId = usize;

/// What the replicas say to each other, as in `replication::driver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Hello {
        generation: Generation,
    },
    Welcome {
        /// What the secondary's disk holds.
        blocks: Content,
    },
    Heartbeat(u64),
    /// Part of the first copy, and the heartbeat that follows it.
    Part {
        part: Part,
        heartbeat: u64,
    },
    Checkpoint {
        epoch: Epoch,
        heartbeat: u64,
        /// The state at the capture before.
        base: StateId,
        state: StateId,
        /// It holds what the guest asked of its disk after this state.
        disk_base: StateId,
        /// It brings what the guest sent after this state.
        output_base: StateId,
        /// The log of what the guest does follows it, in place of more checkpoints.
        then_log: bool,
    },
    /// A segment of the log.
    Segment {
        epoch: Epoch,
        /// Where the segment before ended, or the checkpoint.
        base: StateId,
        state: StateId,
        closed_at: Nanoseconds,
    },
    /// Checkpoints follow again.
    EndOfLog,
    Ack {
        ack: Ack,
        /// The last epoch of the log that was executed.
        executed: Option<Epoch>,
        reaches_network: bool,
    },
    /// A frame that the primary has taken.
    Inbound {
        frame: FrameId,
        position: InputPosition,
    },
    Released(Epoch),
    Entitled(Generation),
    HandOver,
    /// The guest is off.
    Ended,
    Failed,
    Diverged,
}

/// Part of a first copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// So much of the memory.
    Pages { bytes: u64 },
    /// A block of the disk, as it is.
    Block { block: u8, state: StateId },
    /// What the guest asked of its disk.
    Write { state: StateId, op: DiskOp },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Message(Message),
    Closed,
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The primary, who has connected.
    Primary,
    Secondary,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Primary => Self::Secondary,
            Self::Secondary => Self::Primary,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct End {
    pub process: ProcessId,
    /// Its process has not closed it.
    pub is_open: bool,
    /// Nothing that is sent to it arrives any more.
    pub is_deaf: bool,
    pub incoming: VecDeque<Arrival>,
    pub last_arrival: Nanoseconds,
}

/// What a primary has sent over a connection, and taken from its network end meanwhile.
#[derive(Debug, Default)]
struct Stream {
    sent: u32,
    /// Of what was sent, the secondary has so much.
    arrived: u32,
    /// Frames that the guest took, and how much had been sent before.
    taken: Vec<(FrameId, u32)>,
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    connections: Vec<[End; 2]>,
    streams: Vec<Stream>,
}

impl Network {
    pub fn connect(&mut self, primary: ProcessId, secondary: ProcessId) -> ConnectionId {
        self.connections.push([primary, secondary].map(|process| End {
            process,
            is_open: true,
            is_deaf: false,
            incoming: VecDeque::new(),
            last_arrival: 0,
        }));
        self.streams.push(Stream::default());
        self.connections.len() - 1
    }

    /// The primary sends a message.
    pub fn note_sent(&mut self, connection: ConnectionId) {
        self.streams[connection].sent += 1;
    }

    /// The secondary has taken note of the next message.
    pub fn note_arrived(&mut self, connection: ConnectionId) {
        self.streams[connection].arrived += 1;
    }

    /// The primary takes a frame of which the secondary is to be told.
    pub fn note_taken(&mut self, connection: ConnectionId, frame: FrameId) {
        let stream = &mut self.streams[connection];
        stream.taken.push((frame, stream.sent));
    }

    /// The frames that the primary took before it sent something that has arrived.
    pub fn taken_before_what_arrived(&self, connection: ConnectionId) -> impl DoubleEndedIterator<Item = FrameId> {
        let Stream { arrived, taken, .. } = &self.streams[connection];
        let count = taken.partition_point(|&(_, sent)| sent < *arrived);
        taken[..count].iter().map(|&(frame, _)| frame)
    }

    pub fn end(&mut self, connection: ConnectionId, side: Side) -> &mut End {
        &mut self.connections[connection][side as usize]
    }

    /// All that `process` has open.
    pub fn open_ends(&self, process: ProcessId) -> Vec<(ConnectionId, Side)> {
        let mut found = Vec::new();
        for (connection, ends) in self.connections.iter().enumerate() {
            for side in [Side::Primary, Side::Secondary] {
                let end = &ends[side as usize];
                if end.process == process && end.is_open {
                    found.push((connection, side));
                }
            }
        }
        found
    }
}
