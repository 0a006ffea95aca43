//! VMs that are restarted where their host is lost never run twice, are restarted, and are not stopped for nothing.

use sim::{RestartMutation, RestartSchedule, RestartViolation};

const SCHEDULES: u64 = 2_000;

#[test]
fn no_vm_runs_twice_and_each_is_restarted() {
    let (mut elsewhere, mut at_home, mut fenced) = (0, 0, 0);
    for seed in 0..SCHEDULES {
        let outcome = RestartSchedule { seed, mutation: None }.run();
        assert_eq!(outcome.violation, None, "schedule {seed}");
        elsewhere += outcome.elsewhere;
        at_home += outcome.at_home;
        fenced += outcome.fenced;
    }
    println!(
        "{SCHEDULES} schedules: {elsewhere} restarts on other hosts, {at_home} at home, {fenced} VMs ended in time"
    );
    assert!(elsewhere > SCHEDULES && at_home > SCHEDULES && fenced > SCHEDULES);
}

#[test]
fn every_mistake_with_restarts_is_found_for_what_it_is() {
    for mutation in RestartMutation::ALL {
        let found = (0..SCHEDULES).find_map(|seed| {
            let violation = RestartSchedule { seed, mutation: Some(mutation) }.run().violation?;
            Some((seed, violation))
        });
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
