//! Runs a family's cases on both sides and reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use iced_x86::Code;

use crate::builder::Builder;
use crate::compare::{self, Comparison};
use crate::families::Generator;
use crate::guest::Guest;
use crate::host::Host;
use crate::layout::{Place, SCRATCH_LEN};
use crate::native::Native;
use crate::registers::{Outcome, Registers};
use crate::undefined::{self, Undefined};

/// Cases of each family when the environment does not say: a few seconds on two processors.
const CASES_DEFAULT: u64 = 50_000;
/// How often the native side is run before a difference counts as one, and not as the work of an interrupt.
const ATTEMPTS: usize = 4;
/// Different instructions that may fail before a run stops.
const FAILURES_MAX: usize = 400;

/// One failing instruction form.
struct Failure {
    count: u64,
    seed: u64,
    report: String,
}

/// Runs one family: `TWINVM_DIFFERENTIAL_CASES` cases, or the one of `TWINVM_DIFFERENTIAL_SEED`.
pub fn run(family: &str, generate: Generator) {
    static PLACES: AtomicU64 = AtomicU64::new(0);
    let place = Place::new(PLACES.fetch_add(1, Ordering::Relaxed));
    let mut sides = Sides::new(family, place, generate);
    if let Some(seed) = environment("TWINVM_DIFFERENTIAL_SEED") {
        let report = sides.replay(seed);
        println!(
            "{family} on {}: seed {seed}\n{}",
            sides.comparison.host,
            report.as_deref().unwrap_or("  no difference")
        );
        assert!(report.is_none(), "{family}: seed {seed} differs");
        return;
    }
    let cases = environment("TWINVM_DIFFERENTIAL_CASES").unwrap_or(CASES_DEFAULT);
    let first = environment("TWINVM_DIFFERENTIAL_FIRST_SEED").unwrap_or(0);
    let started = Instant::now();
    let mut failures: BTreeMap<Code, Failure> = BTreeMap::new();
    let mut covered = vec![false; Code::values().len()];
    let (mut instructions, mut faults) = (0, 0);
    for seed in first..first + cases {
        let differences = sides.run(seed);
        for instruction in &sides.builder.case.instructions {
            covered[instruction.code() as usize] = true;
        }
        instructions += sides.builder.case.instructions.len();
        faults += u64::from(sides.native_outcome.fault.is_some());
        if let Some(differences) = differences
            && let Some((code, report)) = sides.judge(seed, differences)
        {
            let failure = failures.entry(code).or_insert(Failure { count: 0, seed, report });
            failure.count += 1;
            if failures.len() >= FAILURES_MAX {
                break;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{family} on {}: {cases} cases, {instructions} instructions of {} forms, {faults} faults, {} ended where something \
         undefined differs, {:.0} cases/s",
        sides.comparison.host,
        covered.iter().filter(|code| **code).count(),
        sides.ended,
        cases as f64 / seconds
    );
    for (code, failure) in &failures {
        println!(
            "{family}: {code:?} differs in {} cases, first seed {}\n{}",
            failure.count, failure.seed, failure.report
        );
    }
    assert!(
        failures.is_empty(),
        "{family}: {} instruction forms differ: {:?}",
        failures.len(),
        failures.iter().map(|(code, failure)| (code, failure.count, failure.seed)).collect::<Vec<_>>()
    );
}

fn environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// Both processors, and the case that they run.
struct Sides {
    generate: Generator,
    builder: Builder,
    native: Native,
    guest: Guest,
    translated: Guest,
    native_outcome: Outcome,
    guest_outcome: Outcome,
    translated_outcome: Outcome,
    comparison: Comparison,
    /// Cases that ended early.
    ended: u64,
}

impl Sides {
    fn new(family: &str, place: Place, generate: Generator) -> Self {
        let blank = || Outcome { registers: Registers::zeroed(), scratch: [0; SCRATCH_LEN], fault: None };
        Self {
            generate,
            builder: Builder::new(place),
            native: Native::new(place),
            guest: Guest::new(),
            translated: Guest::translated(),
            native_outcome: blank(),
            guest_outcome: blank(),
            translated_outcome: blank(),
            comparison: Comparison::new(Host::this(), family),
            ended: 0,
        }
    }

    /// Draws and runs a case: the differences, `None` when both sides agree.
    fn run(&mut self, seed: u64) -> Option<String> {
        (self.generate)(&mut self.builder, seed);
        self.compare()
    }

    fn compare(&mut self) -> Option<String> {
        self.guest.run(&self.builder.case, &mut self.guest_outcome);
        if let Some(differences) = self.compare_tiers() {
            return Some(differences);
        }
        // An interrupt may change which state the host's processor takes for unused, and so what XSAVE writes, and AMD's processors
        // lose x87's pointers in it: only what happens every time counts.
        (1..ATTEMPTS).try_for_each(|_| self.compare_native(&Undefined::default()).map(drop))?;
        self.compare_native(&Undefined::default())
    }

    /// Runs the case translated and compares with what the interpreter did: nothing may differ, what is undefined neither.
    fn compare_tiers(&mut self) -> Option<String> {
        let case = &self.builder.case;
        self.translated.run(case, &mut self.translated_outcome);
        if self.translated_outcome == self.guest_outcome {
            return None;
        }
        let all = Undefined::default();
        let differences = self.comparison.differences(case, &self.guest_outcome, &self.translated_outcome, &all);
        Some(format!("  interpreted (left) and translated (right) differ\n{}", differences.unwrap_or_default()))
    }

    /// Runs the case natively and compares with what the guest did.
    fn compare_native(&mut self, undefined: &Undefined) -> Option<String> {
        let case = &self.builder.case;
        self.native.run(&case.code, &case.registers, &case.scratch, &mut self.native_outcome);
        self.comparison.differences(case, &self.native_outcome, &self.guest_outcome, undefined)
    }

    /// The report on one seed, `None` if both sides agree.
    fn replay(&mut self, seed: u64) -> Option<String> {
        let differences = self.run(seed)?;
        Some(self.judge(seed, differences)?.1)
    }

    /// Finds the first instruction of a differing case after which the sides differ, and reports; `None` if what differs then is what
    /// this instruction leaves undefined. `differences` are those of the whole case.
    fn judge(&mut self, seed: u64, differences: String) -> Option<(Code, String)> {
        let count = self.builder.case.instructions.len();
        let mut before = None;
        for kept in 1..=count {
            (self.generate)(&mut self.builder, seed);
            if self.builder.case.straight {
                self.builder.case.truncate(kept);
            } else if kept < count {
                continue;
            }
            if let Some(differences) = self.compare() {
                let case = &self.builder.case;
                if case.straight && self.translated_outcome == self.guest_outcome {
                    let before = before.unwrap_or_else(|| case.start());
                    let undefined =
                        undefined::left_by(self.comparison.host, case, kept - 1, &before, &self.guest_outcome);
                    if (0..ATTEMPTS).any(|_| self.compare_native(&undefined).is_none()) {
                        self.ended += 1;
                        return None;
                    }
                }
                return Some(self.report(&differences));
            }
            before = Some(self.guest_outcome.clone());
        }
        let case = &self.builder.case;
        let start = compare::describe_start(case);
        Some((Code::INVALID, format!("  not when repeated\n{start}{}{differences}", case.disassembly())))
    }

    fn report(&self, differences: &str) -> (Code, String) {
        let case = &self.builder.case;
        let faulting = [&self.guest_outcome, &self.native_outcome].into_iter().find(|side| side.fault.is_some());
        let at = faulting.and_then(|side| case.index_of(side.registers.rip));
        let culprit = at.filter(|index| *index < case.offsets.len() - 1).unwrap_or(case.instructions.len() - 1);
        let report = format!("{}{}{differences}", compare::describe_start(case), case.disassembly());
        (case.instructions[culprit].code(), report)
    }
}
