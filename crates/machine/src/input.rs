//! What reaches a guest from outside, as values.
//!
//! Everything that is not a function of the VM's state enters as an [`Input`], at an exact point. The soft engine notes
//! that point as an instruction count, so that a run can be repeated from its journal.

use std::collections::VecDeque;
use std::fmt;
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
}

/// An input and when it entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputEvent {
    /// Instructions retired since power-on, by all vCPUs.
    pub instructions: u64,
    /// What entered.
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

    /// Takes the bytes of the next event, if they are entropy.
    pub(crate) fn pop_entropy(&self) -> Option<Vec<u8>> {
        let event = self.lock().pop_front_if(|event| matches!(event.input, Input::Entropy(_)))?;
        if let Input::Entropy(bytes) = event.input { Some(bytes) } else { None }
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
