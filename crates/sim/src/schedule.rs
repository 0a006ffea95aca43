//! [`Schedule`]: one life of a VM.

use crate::coverage::Coverage;
use crate::mutation::Mutation;
use crate::violation::Violation;
use crate::world::World;

/// One life of a VM, all of which follows from its seed.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// All chance comes from it.
    pub seed: u64,
    /// A mistake that is made on purpose.
    pub mutation: Option<Mutation>,
}

/// What came of a schedule.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first promise that was broken.
    pub violation: Option<Violation>,
    /// What came up.
    pub coverage: Coverage,
    /// What happened, a line each; empty if it was not asked for.
    pub trace: Vec<String>,
}

impl Schedule {
    /// Runs it.
    pub fn run(self) -> Outcome {
        self.run_with(false)
    }

    /// Runs it and writes down what happens.
    pub fn run_traced(self) -> Outcome {
        self.run_with(true)
    }

    fn run_with(self, is_traced: bool) -> Outcome {
        let mut world = World::new(self.seed, self.mutation, is_traced);
        world.run();
        let (violation, coverage, trace) = world.into_parts();
        Outcome { violation, coverage, trace }
    }
}
