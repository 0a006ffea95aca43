//! [`Soak`]: many schedules, on all processors.

use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::coverage::Coverage;
use crate::mutation::Mutation;
use crate::schedule::Schedule;
use crate::violation::Violation;

/// Schedules that a thread takes at once.
const BATCH: u64 = 64;

/// Schedules with successive seeds.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    /// The first.
    pub first_seed: u64,
    /// How many schedules are run.
    pub schedules: u64,
    /// A mistake that is made on purpose in all of them.
    pub mutation: Option<Mutation>,
}

/// A schedule in which a promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of the schedule.
    pub seed: u64,
    /// The promise.
    pub violation: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, violation } = self;
        writeln!(f, "schedule {seed}: {violation}")?;
        write!(f, "replay it with: TWINVM_SIM_SEED={seed} cargo test --profile checked -p sim replay -- --nocapture")
    }
}

/// What came of many schedules.
#[derive(Clone, Debug, Default)]
pub struct SoakReport {
    /// How many were run.
    pub schedules: u64,
    /// What came up in them.
    pub coverage: Coverage,
    /// The failure with the least seed among those found before all threads stopped.
    pub failure: Option<Failure>,
}

impl Soak {
    /// Runs the schedules until one fails.
    pub fn run(self) -> SoakReport {
        let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
        let report = Mutex::new(SoakReport::default());
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let first = next.fetch_add(BATCH, Ordering::Relaxed);
                if first >= self.schedules {
                    return;
                }
                let batch = self.batch(first, BATCH.min(self.schedules - first));
                if batch.failure.is_some() {
                    failed.store(true, Ordering::Relaxed);
                }
                report.lock().unwrap_or_else(PoisonError::into_inner).add(batch);
            }
        };
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(work);
            }
        });
        report.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn batch(self, first: u64, count: u64) -> SoakReport {
        let mut report = SoakReport::default();
        for index in first..first + count {
            let seed = self.first_seed.wrapping_add(index);
            let outcome = Schedule { seed, mutation: self.mutation }.run();
            report.schedules += 1;
            report.coverage.add(&outcome.coverage);
            if let Some(violation) = outcome.violation {
                report.failure = Some(Failure { seed, violation });
                break;
            }
        }
        report
    }
}

impl SoakReport {
    fn add(&mut self, other: Self) {
        self.schedules += other.schedules;
        self.coverage.add(&other.coverage);
        if let Some(failure) = other.failure
            && self.failure.as_ref().is_none_or(|known| failure.seed < known.seed)
        {
            self.failure = Some(failure);
        }
    }
}
