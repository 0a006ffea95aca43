//! What leaves a primary.

use protocol::{Epoch, left_through};

use crate::coverage::Occurrence;
use crate::history::{Fork, StateId};
use crate::process::Waiting;
use crate::violation::Violation;
use crate::world::World;

impl World {
    pub fn open_output(&mut self, host: usize) {
        let Some(runner) = self.runner(host) else { return };
        runner.is_held = false;
        for waiting in &mut runner.waiting {
            (waiting.is_released, waiting.epoch) = (true, None);
        }
        self.lets_out(host);
    }

    /// Lets output leave; through which epoch all of it has.
    pub fn release_through(&mut self, host: usize, through: Epoch) -> Epoch {
        let Some(runner) = self.runner(host) else { return through };
        let may_leave =
            |waiting: &&mut Waiting| waiting.is_released || waiting.epoch.is_some_and(|epoch| epoch <= through);
        runner.waiting.iter_mut().take_while(may_leave).for_each(|waiting| waiting.is_released = true);
        self.lets_out(host);
        let Some(runner) = self.runner(host) else { return through };
        let oldest = runner.waiting.iter().take_while(|waiting| waiting.is_released).find_map(|waiting| waiting.epoch);
        left_through(through, oldest)
    }

    /// Hands to the network end what may leave, as far as that takes it.
    pub fn lets_out(&mut self, host: usize) {
        if self.runner(host).is_none_or(|runner| runner.waiting.is_empty()) || self.is_stalled(host) {
            return;
        }
        while let Some(runner) = self.runner(host)
            && runner.waiting.front().is_some_and(|waiting| waiting.is_released)
            && let Some(waiting) = runner.waiting.pop_front()
        {
            self.release(host, waiting.state);
        }
    }

    /// Whether the VM was started elsewhere by force since the replica here was.
    pub fn is_displaced(&self, host: usize) -> bool {
        let by = self.process_id(host);
        by.zip(self.forced_since).is_some_and(|(by, since)| by.0 < since.0)
    }

    /// There may be room again for what was let out before: what was committed may leave late, as nothing is undone by that.
    pub fn lets_out_late(&mut self, host: usize) {
        self.is_behind = true;
        self.lets_out(host);
        self.is_behind = false;
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
            // Both replicas lost what is in memory, and the VM was started from a disk since: a committed frame that leaves now is one that was long on
            // its way.
            Err(Fork) if self.is_behind && self.history.is_of_earlier_life(state) => {
                self.coverage.note(Occurrence::LateRelease);
            }
            Err(Fork) => self.broken(Violation::Fork(self.name(host))),
        }
    }
}
