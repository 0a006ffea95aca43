//! [`Store`]: the claim of the VM, its past, and requests under way.

use protocol::{Claim, Event, Generation, Verdict};

use crate::process::ProcessId;

/// One claim that was the VM's.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub claim: Claim,
    pub author: ProcessId,
    /// The process that the author meant when it named a secondary.
    pub secondary: Option<ProcessId>,
}

#[derive(Clone, Debug)]
pub(crate) enum Request {
    Read,
    CompareAndSwap { claim: Claim, secondary: Option<ProcessId> },
}

/// A request that was sent, and whether whoever asked will hear of what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub from: ProcessId,
    pub request: Request,
    pub is_answered: bool,
}

/// Nobody: a claim that no replica has written.
pub(crate) const NOBODY: ProcessId = ProcessId(u32::MAX);

#[derive(Debug)]
pub(crate) struct Store {
    /// The first has generation 1.
    entries: Vec<Entry>,
}

impl Store {
    pub fn new(claim: Claim, author: ProcessId) -> Self {
        Self { entries: vec![Entry { claim, author, secondary: None }] }
    }

    pub fn current(&self) -> &Entry {
        &self.entries[self.entries.len() - 1]
    }

    pub fn entry(&self, generation: Generation) -> Option<&Entry> {
        self.entries.get(usize::try_from(generation.number().checked_sub(1)?).ok()?)
    }

    /// A daemon makes its host the only one that may run the VM.
    pub fn claim_alone(&mut self, claim: Claim, author: ProcessId) {
        self.entries.push(Entry { claim, author, secondary: None });
    }

    /// The replica for which a daemon has claimed the VM runs now.
    pub fn author(&mut self, generation: Generation, author: ProcessId) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.claim.generation == generation) {
            entry.author = author;
        }
    }

    pub fn carry_out(&mut self, pending: &Pending) -> Event {
        let current = &self.current().claim;
        match &pending.request {
            Request::Read => Event::ClaimRead(current.clone()),
            Request::CompareAndSwap { claim, secondary } if claim.generation == current.generation.next() => {
                self.entries.push(Entry { claim: claim.clone(), author: pending.from, secondary: *secondary });
                Event::Arbitrated(Verdict::Won)
            }
            Request::CompareAndSwap { .. } => Event::Arbitrated(Verdict::Lost(current.clone())),
        }
    }
}
