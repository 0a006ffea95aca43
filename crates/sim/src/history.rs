//! [`History`]: what the guest did in each of its lives, and what of it the world has seen.

use protocol::InputPosition;

use crate::process::ProcessId;

/// A state of the guest, at the moment after something it did.
pub(crate) type StateId = u32;

/// The state that the VM starts from.
pub(crate) const FIRST_STATE: StateId = 0;

/// Blocks of the VM's disk.
pub(crate) const BLOCKS: usize = 4;

/// What the blocks of a disk hold: for each the state in which the guest wrote it last.
pub(crate) type Content = [StateId; BLOCKS];

/// What a guest asks of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskOp {
    Write(u8),
    Flush,
}

/// What a guest does in a step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deed {
    pub has_output: bool,
    pub disk: Option<DiskOp>,
    /// It takes the frame here.
    pub input: Option<InputPosition>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// What came before; smaller, so walks towards the past end.
    before: StateId,
    /// How it came about.
    deed: Deed,
    /// What the disk holds, and what it held at the last flush.
    content: Content,
    flushed: Content,
    /// How far it has taken frames.
    position: InputPosition,
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
    /// The state that the VM was last started in.
    booted: StateId,
    /// Who must not release anything any more.
    fenced: Vec<ProcessId>,
}

/// Something does not contain what the world has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fork;

impl History {
    pub fn new() -> Self {
        let content = [FIRST_STATE; BLOCKS];
        let deed = Deed::default();
        let first = State {
            before: FIRST_STATE,
            deed,
            content,
            flushed: content,
            position: InputPosition::default(),
            has_left: false,
            is_seen: true,
        };
        Self { states: vec![first], head: FIRST_STATE, booted: FIRST_STATE, fenced: Vec::new() }
    }

    /// The guest does something.
    pub fn step(&mut self, before: StateId, deed: Deed) -> StateId {
        let id = self.states.len() as StateId;
        let State { mut content, mut flushed, mut position, .. } = self.states[before as usize];
        position = deed.input.unwrap_or(position);
        match deed.disk {
            Some(DiskOp::Write(block)) => content[usize::from(block)] = id,
            Some(DiskOp::Flush) => flushed = content,
            None => {}
        }
        self.states.push(State { before, deed, content, flushed, position, has_left: false, is_seen: false });
        id
    }

    /// The VM is started from a disk that holds `content`, all of it on stable storage. The world begins anew.
    pub fn boots(&mut self, content: Content) -> StateId {
        let id = self.states.len() as StateId;
        // What the disk holds is in its past.
        let before = content.iter().copied().max().unwrap_or(FIRST_STATE);
        let deed = Deed::default();
        let position = InputPosition::default();
        self.states.push(State { before, deed, content, flushed: content, position, has_left: false, is_seen: true });
        (self.head, self.booted) = (id, id);
        id
    }

    /// Whether the VM was started anew since.
    pub fn is_of_earlier_life(&self, state: StateId) -> bool {
        state < self.booted
    }

    /// Whether a disk holds all that the guest had flushed before what the world has seen last.
    pub fn keeps_what_was_flushed(&self, blocks: &Content) -> bool {
        let flushed = self.states[self.head as usize].flushed;
        blocks.iter().zip(flushed).all(|(&block, flushed)| block >= flushed)
    }

    /// What the disk holds in a state.
    pub fn content(&self, state: StateId) -> Content {
        self.states[state as usize].content
    }

    /// How far the guest has taken frames in a state.
    pub fn position(&self, state: StateId) -> InputPosition {
        self.states[state as usize].position
    }

    /// The state before.
    pub fn before(&self, state: StateId) -> StateId {
        self.states[state as usize].before
    }

    /// Whether `state` came about from `earlier`, or is that.
    pub fn leads_to(&self, earlier: StateId, mut state: StateId) -> bool {
        while state > earlier {
            state = self.states[state as usize].before;
        }
        state == earlier
    }

    /// What the guest asked of its disk after `base`, through `last`, in order.
    pub fn disk_ops_between(&self, base: StateId, last: StateId) -> Vec<(StateId, DiskOp)> {
        let mut found = Vec::new();
        let mut state = last;
        while state > base {
            found.extend(self.states[state as usize].deed.disk.map(|op| (state, op)));
            state = self.states[state as usize].before;
        }
        found.reverse();
        found
    }

    /// Whether a disk that holds `blocks` is one that the VM could have after a power failure: nothing on it is newer than something that the
    /// guest flushed before and that is not there.
    pub fn could_be_a_disk(&self, blocks: &Content) -> bool {
        let newest = blocks.iter().copied().max().unwrap_or(FIRST_STATE);
        let Some(State { flushed, .. }) = self.states.get(newest as usize) else { return false };
        blocks.iter().zip(flushed).all(|(&block, &flushed)| block >= flushed && self.leads_to(block, newest))
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
            if self.states[state as usize].deed.has_output {
                found.push(state);
            }
            state = self.states[state as usize].before;
        }
        found.reverse();
        found
    }

    /// Whether all output on the way to `state` has left, or waits to.
    pub fn all_has_left(&self, state: StateId, waits: impl Fn(StateId) -> bool) -> bool {
        let has_left = |state: &StateId| self.states[*state as usize].has_left || waits(*state);
        self.output_between(self.booted, state).iter().all(has_left)
    }

    fn advance(&mut self, to: StateId) -> Result<(), Fork> {
        if !self.leads_to(self.head, to) {
            return Err(Fork);
        }
        let mut state = to;
        while state > self.head {
            self.states[state as usize].is_seen = true;
            state = self.states[state as usize].before;
        }
        self.head = to;
        Ok(())
    }
}
