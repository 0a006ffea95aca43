//! [`History`]: what the guest did in each of its lives, and what of it the world has seen.

use crate::process::ProcessId;

/// A state of the guest, at the moment after something it did.
pub(crate) type StateId = u32;

/// The state that the VM starts from.
pub(crate) const FIRST_STATE: StateId = 0;

#[derive(Clone, Copy, Debug)]
struct State {
    /// What came before; smaller, so walks towards the past end.
    before: StateId,
    /// It came about by sending a frame.
    has_output: bool,
    /// That frame has left.
    has_left: bool,
    /// The world knows that this came about: it, or something that followed from it, was seen.
    is_seen: bool,
}

/// All states of the guest form a tree, since a replica that takes over goes on from an earlier one. The world must only see one line
/// of it, and never see it go back.
#[derive(Debug)]
pub(crate) struct History {
    states: Vec<State>,
    /// The last state of the line that the world sees.
    head: StateId,
    /// Who must not release anything any more.
    fenced: Vec<ProcessId>,
}

/// Something does not contain what the world has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fork;

impl History {
    pub fn new() -> Self {
        let first = State { before: FIRST_STATE, has_output: false, has_left: false, is_seen: true };
        Self { states: vec![first], head: FIRST_STATE, fenced: Vec::new() }
    }

    /// The guest does something.
    pub fn step(&mut self, before: StateId, has_output: bool) -> StateId {
        self.states.push(State { before, has_output, has_left: false, is_seen: false });
        (self.states.len() - 1) as StateId
    }

    /// The world sees the frame that led to `state`. Returns whether it had seen what followed from it already.
    pub fn release(&mut self, state: StateId) -> Result<bool, Fork> {
        let is_late = self.states[state as usize].is_seen;
        if !is_late {
            self.advance(state)?;
        }
        self.states[state as usize].has_left = true;
        Ok(is_late)
    }

    /// A replica goes on from `state`, and the world will see that.
    pub fn take_over(&mut self, state: StateId) -> Result<(), Fork> {
        if state == self.head { Ok(()) } else { self.advance(state) }
    }

    /// `process` must not release anything any more: somebody else has waited long enough to be sure that it would not.
    pub fn fence(&mut self, process: ProcessId) {
        self.fenced.push(process);
    }

    pub fn is_fenced(&self, process: ProcessId) -> bool {
        self.fenced.contains(&process)
    }

    /// The states after `base`, through `last`, whose output exists.
    pub fn output_between(&self, base: StateId, last: StateId) -> Vec<StateId> {
        let mut found = Vec::new();
        let mut state = last;
        while state > base {
            if self.states[state as usize].has_output {
                found.push(state);
            }
            state = self.states[state as usize].before;
        }
        found.reverse();
        found
    }

    /// Whether all output on the way to `state` has left.
    pub fn all_has_left(&self, state: StateId) -> bool {
        self.output_between(FIRST_STATE, state).iter().all(|&state| self.states[state as usize].has_left)
    }

    fn advance(&mut self, to: StateId) -> Result<(), Fork> {
        let mut state = to;
        while state > self.head {
            state = self.states[state as usize].before;
        }
        if state != self.head {
            return Err(Fork);
        }
        state = to;
        while state > self.head {
            self.states[state as usize].is_seen = true;
            state = self.states[state as usize].before;
        }
        self.head = to;
        Ok(())
    }
}
