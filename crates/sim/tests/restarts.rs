//! VMs that are restarted where their host is lost never run twice, are restarted, and are not stopped for nothing.
//!
//! `TWINVM_SIM_RESTARTS` is how many schedules are run, `TWINVM_SIM_FIRST_SEED` where they begin.

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use sim::{RestartMutation, RestartOutcome, RestartSchedule, RestartViolation};

const SCHEDULES: u64 = 5_000;

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Runs schedules on all processors, each up to the first in which a promise is broken, with its seed.
fn run(seeds: std::ops::Range<u64>, mutation: Option<RestartMutation>) -> Vec<(u64, RestartOutcome)> {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return outcomes;
            }
            let outcome = RestartSchedule { seed, mutation }.run();
            let is_broken = outcome.violation.is_some();
            outcomes.push((seed, outcome));
            if is_broken {
                next.store(seeds.end, Ordering::Relaxed);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut outcomes: Vec<_> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        outcomes.sort_by_key(|(seed, _)| *seed);
        outcomes
    })
}

#[test]
fn no_vm_runs_twice_and_each_is_restarted() {
    let schedules = number("TWINVM_SIM_RESTARTS").unwrap_or(SCHEDULES);
    let first = number("TWINVM_SIM_FIRST_SEED").unwrap_or(0);
    let (mut elsewhere, mut at_home, mut fenced, mut failed) = (0, 0, 0, 0);
    for (seed, outcome) in run(first..first + schedules, None) {
        assert_eq!(outcome.violation, None, "schedule {seed}");
        elsewhere += outcome.elsewhere;
        at_home += outcome.at_home;
        fenced += outcome.fenced;
        failed += outcome.failed;
    }
    println!(
        "{schedules} schedules: {elsewhere} restarts on other hosts, {at_home} at home, {failed} that failed, {fenced} VMs ended in time"
    );
    assert!([elsewhere, at_home, fenced, failed].iter().all(|count| *count > schedules));
}

#[test]
fn every_mistake_with_restarts_is_found_for_what_it_is() {
    for mutation in RestartMutation::ALL {
        let found = run(0..SCHEDULES, Some(mutation));
        let found = found.into_iter().find_map(|(seed, outcome)| Some((seed, outcome.violation?)));
        let (seed, violation) = found.unwrap_or_else(|| panic!("{mutation:?} was not found"));
        println!("{mutation:?}: schedule {seed}: {violation:?}");
        let is_expected = match mutation {
            // Whatever is stopped too often is left off.
            RestartMutation::LeaveItToTheDaemon => {
                matches!(violation, RestartViolation::StoppedForNothing(_) | RestartViolation::NotRestarted(_))
            }
            _ => matches!(violation, RestartViolation::RunsTwice(_)),
        };
        assert!(is_expected, "{mutation:?} was found as {violation:?}, in schedule {seed}");
    }
}
