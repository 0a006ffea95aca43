//! What reaches a guest from outside, as values.
//!
//! Everything that is not a function of the VM's state enters as an [`Input`], at an exact point. The soft engine notes
//! that point as an instruction count, so that a run can be repeated from its journal.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use network::{FrameOffload, InputPosition};

/// Something from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A frame for a network card.
    Frame {
        /// The card, from 0.
        card: usize,
        /// The Ethernet frame.
        frame: Vec<u8>,
        /// What its sender left open.
        offload: FrameOffload,
        /// Where the stream of frames from the card's network end stands once this one is taken.
        position: InputPosition,
    },
    /// A network card's carrier comes or goes.
    Link {
        /// The card, from 0.
        card: usize,
        /// Whether frames can pass.
        up: bool,
    },
    /// Bytes typed on the console, no more than the serial port has room for.
    Console(Vec<u8>),
    /// The power button was pressed.
    PowerButton,
    /// The clock steps forward by this many TSC ticks, beyond what the instructions count for.
    ClockStep(u64),
    /// Bytes that the entropy device took from its source since the input before. A replay supplies them ahead of the
    /// instruction that asks for them.
    Entropy(Vec<u8>),
    /// The host failed to do something that a disk asked of its image, since the input before. A replay is told ahead, and fails the
    /// same request without doing it.
    DiskFailed {
        /// The disk, from 0.
        disk: u32,
        /// Which of the operations on this disk's image (reads, writes, flushes, discards, zeroings), from 0 since recording began.
        request: u64,
        /// What the operation left in the range that it was to change.
        content: FailedContent,
    },
}

impl Input {
    /// Whether it is taken by the guest at some instruction before the count that it is noted at, so that a replay must have it earlier.
    pub fn is_ahead(&self) -> bool {
        matches!(self, Self::Entropy(_) | Self::DiskFailed { .. })
    }
}

/// Most bytes that [`FailedContent::Bytes`] holds.
pub const FAILED_CONTENT_BYTES_MAX: usize = 512 << 10;

/// What a failed operation on a disk left in its range: undefined until somebody looks, but then the same for all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailedContent {
    /// What was there before: it was not to change anything.
    Unchanged,
    /// These bytes, exactly the length of the range and at most [`FAILED_CONTENT_BYTES_MAX`].
    Bytes(Vec<u8>),
    /// It could not be read back, or there is too much of it. No replay can follow.
    Unknown,
}

/// An input and when it entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputEvent {
    /// Instructions retired since power-on, by all vCPUs.
    pub instructions: u64,
    /// What entered the VM.
    pub input: Input,
}

/// Is told what enters a running guest and how far the guest is, in the thread that runs it: it must be quick.
pub trait Recorder: Send + Sync + fmt::Debug {
    /// `input` enters when `instructions` have retired.
    fn entered(&self, instructions: u64, input: &Input);

    /// The guest is at `instructions`, and whatever enters from now on enters no earlier. Called between two slices.
    fn reached(&self, instructions: u64);

    /// Whether it waits to be told how far the guest is: then a slice ends at the next access to a device.
    fn is_waiting(&self) -> bool;
}

/// Raised by a device when it has kept something that the guest took, for a recorder. The guest then stops after the access that took
/// it: so that this is noted at a count that depends on nothing else, and that little is kept. Clones are the same signal.
#[derive(Clone, Debug, Default)]
pub(crate) struct TakenSignal(Arc<AtomicBool>);

impl TakenSignal {
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub fn withdraw(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The inputs of a run in order, recorded or to be replayed.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    events: Arc<Mutex<VecDeque<InputEvent>>>,
}

impl Journal {
    /// A journal of these events.
    pub fn new(events: impl IntoIterator<Item = InputEvent>) -> Self {
        Self { events: Arc::new(Mutex::new(events.into_iter().collect())) }
    }

    /// All events that have not been replayed.
    pub fn events(&self) -> Vec<InputEvent> {
        self.lock().iter().cloned().collect()
    }

    /// Adds an event, which must not enter before those that are in the journal.
    pub fn push(&self, event: InputEvent) {
        self.lock().push_back(event);
    }

    /// When the next event enters.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.lock().front().map(|event| event.instructions)
    }

    pub(crate) fn pop(&self) -> Option<InputEvent> {
        self.lock().pop_front()
    }

    /// Takes the next event, if it is one that the guest must have ahead.
    pub(crate) fn pop_ahead(&self) -> Option<InputEvent> {
        let mut events = self.lock();
        if events.front().is_some_and(|event| event.input.is_ahead()) { events.pop_front() } else { None }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<InputEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder for Journal {
    fn entered(&self, instructions: u64, input: &Input) {
        self.push(InputEvent { instructions, input: input.clone() });
    }

    fn reached(&self, _instructions: u64) {}

    fn is_waiting(&self) -> bool {
        false
    }
}
