//! What the replicas of a mirrored VM say to each other: the kinds of the channel's frames, and their payloads.
//!
//! | kind | from | payload |
//! | --- | --- | --- |
//! | hello | primary | [`Hello`]: what the VM is |
//! | welcome | secondary | [`Welcome`]: whether the secondary can hold it |
//! | summary | secondary | a piece of the summary of its disks; empty: the end |
//! | disk writes | primary | a piece of the log of writes: applied at once during the first copy, else part of the checkpoint |
//! | pages | primary | page records (`memory::encoding`); likewise |
//! | begin | primary | what follows belongs to a checkpoint; the epoch it ends, u64 |
//! | state | primary | a piece of the serialized [`machine::vm::VmState`] |
//! | output | primary | a piece of the serialized frames that wait for this checkpoint |
//! | checkpoint | primary | [`CheckpointEnd`]: all of the checkpoint was sent |
//! | inbound | primary | [`Inbound`]: a frame that the primary has just received |
//! | heartbeat | primary | [`Heartbeat`] |
//! | ack | secondary | [`Ack`] |
//! | released | primary | epoch through which output has left, u64 |
//! | entitled | primary | generation at which the store names the secondary, u64 |
//! | hand over | primary | it has paused for good, the secondary should take over; [`ConsoleInput`](super::ConsoleInput): what was typed on the console, or nothing |
//! | ended | primary | nothing: the guest has powered off |
//! | failed | secondary | reason, UTF-8: it cannot go on |
//! | log | primary | a segment of the event log (`lockstep::log`), which ends an epoch |
//! | mirror | primary | nothing: after the last segment, checkpoints follow again |
//! | diverged | secondary | instruction count, u64: its state there is not that of the primary |
//! | console | primary | [`ConsolePiece`](super::ConsolePiece): what the guest has written to its console |
//!
//! Structures are serialized with postcard; bare integers are little-endian.

use std::time::Duration;

use machine::vm::VmConfig;
use network::InputPosition;
use serde::{Deserialize, Serialize};
use spec::{CpuProfile, EngineKind, FtMode, ReplicaId};

use crate::channel::Frame;
use crate::disk::DiskDescription;
use crate::gate::InboundFrame;
use protocol::{Epoch, Generation, GuestClock, MonotonicTime};

/// What a message is, by its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// What the VM is; from the primary.
    Hello = 1,
    /// Whether the secondary can hold it.
    Welcome = 2,
    /// A piece of the summary of the secondary's disks.
    Summary = 3,
    /// A piece of the log of disk writes.
    DiskWrites = 4,
    /// Page records.
    Pages = 5,
    /// A piece of the VM's serialized state.
    State = 6,
    /// A piece of the serialized output that waits.
    Output = 7,
    /// The end of a checkpoint.
    Checkpoint = 8,
    /// A frame that the primary has just received.
    Inbound = 9,
    /// The primary's sign of life.
    Heartbeat = 10,
    /// What the secondary has.
    Ack = 11,
    /// The epoch through which output has left.
    Released = 12,
    /// The generation at which the store names the secondary.
    Entitled = 13,
    /// The primary has paused for good.
    HandOver = 14,
    /// The guest has powered off.
    Ended = 15,
    /// The secondary cannot go on.
    Failed = 16,
    /// The begin of a checkpoint.
    Begin = 17,
    /// A segment of the event log.
    Log = 18,
    /// The end of the event log.
    Mirror = 19,
    /// The secondary's state is not the primary's.
    Diverged = 20,
    /// What the guest has written to its console.
    Console = 21,
}

impl Kind {
    const ALL: [Self; 21] = [
        Self::Hello,
        Self::Welcome,
        Self::Summary,
        Self::DiskWrites,
        Self::Pages,
        Self::State,
        Self::Output,
        Self::Checkpoint,
        Self::Inbound,
        Self::Heartbeat,
        Self::Ack,
        Self::Released,
        Self::Entitled,
        Self::HandOver,
        Self::Ended,
        Self::Failed,
        Self::Begin,
        Self::Log,
        Self::Mirror,
        Self::Diverged,
        Self::Console,
    ];

    /// The kind of a frame that was received, if a replica knows it.
    pub fn of(frame: &Frame<'_>) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|&kind| u8::from(kind) == frame.kind).ok_or(UnknownKind(frame.kind))
    }
}

impl From<Kind> for u8 {
    fn from(kind: Kind) -> Self {
        kind as Self
    }
}

/// A peer sent a message of a kind that no replica of this version sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of kind {0}, which is unknown")]
pub(super) struct UnknownKind(u8);

/// Longest piece of a payload that is sent in pieces, in bytes. Small enough that a heartbeat or an inbound frame does
/// not wait long behind one.
pub(super) const PIECE_BYTES_MAX: usize = 128 << 10;

/// The primary's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The hardware.
    pub config: VmConfig,
    /// Who is primary.
    pub primary: ReplicaId,
    /// At which generation.
    pub generation: Generation,
    /// Which engine runs it there; the secondary has to offer the same.
    pub engine: EngineKind,
    /// The processor that its guest was told of; the secondary's host has to be able to be it.
    pub profile: CpuProfile,
    /// Its disks.
    pub disks: Vec<DiskDescription>,
    /// Silence after which either side suspects the other at the latest, in milliseconds.
    pub suspicion_ms: u32,
    /// The least such silence, in milliseconds.
    pub suspicion_ms_min: u32,
    /// What its log could be executed by.
    pub execution: ExecutionFormat,
}

/// What both replicas have to agree in for one to execute the other's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExecutionFormat {
    /// Version of the log's format.
    log: u16,
    /// What the host adds to how instructions are executed.
    host: u64,
}

impl ExecutionFormat {
    /// Finds out that of this host in the background: on an emulated host it takes seconds, for which no peer should have to wait.
    pub fn find_out() {
        let work = || _ = Self::here();
        if let Err(error) = std::thread::Builder::new().name("signature".to_owned()).spawn(work) {
            tracing::debug!(%error, "the host's signature is computed when it is needed");
        }
    }

    /// That of this host.
    pub fn here() -> Self {
        Self { log: crate::lockstep::log::FORMAT_VERSION, host: machine::engine::soft::host_signature() }
    }
}

/// The secondary's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Welcome {
    /// It is ready.
    Accepted {
        /// It could execute the primary's log.
        executes: bool,
    },
    /// It cannot hold this VM.
    Refused(String),
}

/// The end of a checkpoint: after this message the secondary has all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CheckpointEnd {
    /// The epoch that it ends.
    pub epoch: Epoch,
    /// Number of this message among the heartbeats.
    pub heartbeat: u64,
    /// Page records that belong to it.
    pub pages: u64,
    /// Bytes of serialized state.
    pub state_bytes: u64,
    /// Bytes of serialized output.
    pub output_bytes: u64,
    /// Disk writes.
    pub writes: u64,
    /// What the guest's clock shows, by the secondary's monotonic clock.
    pub guest_clock: Option<GuestClock>,
    /// How far the machine had taken inbound frames, per card.
    pub inputs: Vec<InputPosition>,
    /// What follows: more checkpoints, or the log of what the guest does from this one on.
    pub then: FtMode,
}

/// The primary's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Heartbeat {
    /// The heartbeat's number: its echo carries the same.
    pub number: u64,
    /// What the guest's clock shows, by the secondary's monotonic clock, once the guest was captured and the secondary heard.
    pub guest_clock: Option<GuestClock>,
}

/// An inbound frame that is passed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inbound {
    /// The card, from 0.
    pub card: u32,
    /// The frame and its place in the stream.
    pub frame: InboundFrame,
}

/// What the secondary has; sent after each checkpoint, after each segment for which output waits, soon after each heartbeat of a first copy, and
/// regularly as its own heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ack {
    /// Last epoch whose checkpoint it holds.
    pub epoch: Option<Epoch>,
    /// Highest number of a heartbeat that it has received.
    pub heard: u64,
    /// For how long after that it does not take the primary for lost for its silence, whatever else it hears, in microseconds.
    pub patience_us: u32,
    /// Lockstep: instructions executed since power-on.
    pub executed: u64,
    /// Lockstep: digests compared and found to be the same.
    pub digests: u64,
    /// All of the VM's network ends can be reached where it is.
    pub reaches_network: bool,
    /// What its monotonic clock says.
    pub sent_at: MonotonicTime,
}

impl Ack {
    /// What the protocol makes of it.
    pub fn protocol(&self) -> protocol::Ack {
        let Self { epoch, heard, patience_us, executed: _, digests: _, reaches_network: _, sent_at: _ } = *self;
        protocol::Ack { epoch, heard, patience: Duration::from_micros(patience_us.into()) }
    }
}
