//! What reaches a guest from outside, as values.
//!
//! Everything that is not a function of the VM's state enters as an [`Input`], at an exact point. The soft engine notes
//! that point as an instruction count, so that a run can be repeated from its journal.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use network::FrameOffload;

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
}

/// An input and when it entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputEvent {
    /// Instructions retired since power-on, by all vCPUs.
    pub instructions: u64,
    /// What entered.
    pub input: Input,
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

    pub(crate) fn push(&self, instructions: u64, input: Input) {
        self.lock().push_back(InputEvent { instructions, input });
    }

    /// When the next event enters.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.lock().front().map(|event| event.instructions)
    }

    pub(crate) fn pop(&self) -> Option<InputEvent> {
        self.lock().pop_front()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<InputEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
