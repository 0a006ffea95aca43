//! What leaves a primary.

use protocol::Epoch;

use crate::coverage::Occurrence;
use crate::history::{Fork, StateId};
use crate::violation::Violation;
use crate::world::World;

impl World {
    pub fn open_output(&mut self, host: usize) {
        let Some(runner) = self.runner(host) else { return };
        runner.is_held = false;
        for waiting in std::mem::take(&mut runner.waiting) {
            self.release(host, waiting.state);
        }
    }

    pub fn release_through(&mut self, host: usize, through: Epoch) {
        loop {
            let Some(runner) = self.runner(host) else { return };
            if runner.waiting.front().and_then(|waiting| waiting.epoch).is_none_or(|epoch| epoch > through) {
                return;
            }
            if let Some(waiting) = runner.waiting.pop_front() {
                self.release(host, waiting.state);
            }
        }
    }

    /// Whether the VM was started elsewhere by force since the replica here was.
    pub fn is_displaced(&self, host: usize) -> bool {
        let by = self.process_id(host);
        by.zip(self.forced_since).is_some_and(|(by, since)| by.0 < since.0)
    }

    pub fn release(&mut self, host: usize, state: StateId) {
        let Some(by) = self.process_id(host) else { return };
        if self.is_displaced(host) {
            return self.coverage.note(Occurrence::ReleasedDisplaced);
        }
        self.last_release = Some((by, self.now));
        if self.history.is_fenced(by) && !self.is_behind {
            return self.broken(Violation::TwoRelease(self.name(host)));
        }
        match self.history.release(state) {
            Ok(false) => {}
            // Whoever has taken over sends again what may not have left.
            Ok(true) if self.store.current().author == by => {}
            Ok(true) => self.coverage.note(Occurrence::LateRelease),
            Err(Fork) => self.broken(Violation::Fork(self.name(host))),
        }
    }
}
