//! [`NetworkEnd`]: what has frames for the guest, and takes those that it sends.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::{Generation, HandedOut, InputPosition, MonotonicTime, may_attach};

use crate::history::StateId;
use crate::process::ProcessId;
use crate::time::Nanoseconds;

/// Frames that an end keeps which nobody takes.
const WAITING_MAX: usize = 64;

/// A frame that a client has sent. No two are the same.
pub(crate) type FrameId = u32;

/// What is known of a frame outside of all hosts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame {
    /// It was sent to all stations of the network, so that each bridged end has one of its own.
    pub is_flooded: bool,
    /// The state of the guest that came about last by taking it, and those before.
    pub taken_in: Option<StateId>,
    pub taken_before: Vec<StateId>,
}

impl Frame {
    /// The states of the guest that came about by taking it, the last one first.
    pub fn takings(&self) -> impl Iterator<Item = StateId> {
        self.taken_in.into_iter().chain(self.taken_before.iter().rev().copied())
    }
}

/// A frame on its way to the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inbound {
    pub frame: FrameId,
    pub position: InputPosition,
    /// How long it had waited when whoever takes it connected.
    pub waited_before: Duration,
}

/// A network end: that of one host on a bridge, or the one that all hosts of a machine share.
#[derive(Debug)]
pub(crate) struct NetworkEnd {
    /// New at each start.
    pub identity: u64,
    pub is_dead: bool,
    /// It is started again, if it is dead.
    pub dead_until: Nanoseconds,
    /// It takes nothing from the guest.
    pub stalled_until: Nanoseconds,
    pub client: Option<ProcessId>,
    /// The highest in which somebody connected.
    generation: Generation,
    attached_at: MonotonicTime,
    waiting: VecDeque<(FrameId, MonotonicTime)>,
    handed_out: HandedOut,
    /// Handed out, all of them.
    kept: Vec<FrameId>,
}

impl NetworkEnd {
    pub fn new(identity: u64) -> Self {
        Self {
            identity,
            is_dead: false,
            dead_until: 0,
            stalled_until: 0,
            client: None,
            generation: Generation::NONE,
            attached_at: MonotonicTime::default(),
            waiting: VecDeque::new(),
            handed_out: HandedOut::default(),
            kept: Vec::new(),
        }
    }

    /// A frame for the guest comes.
    pub fn comes(&mut self, frame: FrameId, now: MonotonicTime) {
        if self.is_dead {
            return;
        }
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back((frame, now));
    }

    /// A replica connects; whether it may. `age_max`: what has waited for longer is not for the guest.
    pub fn attach(
        &mut self,
        client: ProcessId,
        generation: Generation,
        resume: Option<InputPosition>,
        age_max: Option<Duration>,
        now: MonotonicTime,
    ) -> bool {
        if self.is_dead || !may_attach(self.generation, generation) {
            return false;
        }
        (self.client, self.generation, self.attached_at) = (Some(client), generation, now);
        if let Some(age_max) = age_max {
            self.waiting.retain(|&(_, since)| now.since(since) <= age_max);
        }
        self.handed_out.attach(self.identity, resume);
        true
    }

    /// Hands out the next frame, an old one or a new one.
    pub fn hand_out(&mut self) -> Option<Inbound> {
        if self.is_dead {
            return None;
        }
        let position = InputPosition { end: self.identity, frames: self.handed_out.next_number() };
        if let Some(index) = self.handed_out.next_again() {
            self.handed_out.pass_again();
            // What was handed out before has not waited for somebody to connect.
            let frame = *self.kept.get(index)?;
            return Some(Inbound { frame, position, waited_before: Duration::ZERO });
        }
        let (frame, since) = self.waiting.pop_front()?;
        self.handed_out.keep();
        self.kept.push(frame);
        Some(Inbound { frame, position, waited_before: self.attached_at.since(since) })
    }
}
