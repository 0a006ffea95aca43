//! The tests that run in the nested machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use storage::image::ImageSpec;
use tempfile::TempDir;

use crate::binaries::Binaries;
use crate::emulator::{Disks, Emulator};
use crate::job;
use crate::root::root;
use crate::support::emulated::Machine;
use crate::support::guest::{image, images_dir};
use crate::support::{images, place};

/// How long a test may take before it counts as hung: in a run of the quick tests, and of all, in which tests do more.
const LIMITS: [Duration; 2] = [Duration::from_secs(240), Duration::from_secs(1200)];
/// How often a test is done at the most if the emulator may be what it failed by, and otherwise.
const ATTEMPTS_MAX: [u32; 2] = [8, 2];
/// How many times slower than usual everything is in the machine, roughly.
const SLOWNESS: u32 = 5;

/// Primaries that are killed in a run of the quick tests, and of all.
const KILLS: [u32; 2] = [3, 12];

/// Tests in the machine.
struct Choice {
    emulator: Emulator,
    package: &'static str,
    target: &'static str,
    /// The test that is called so, or those in the module of this name that are not ignored; all such of the target without a name.
    test: Option<&'static str>,
    /// The images of its guests.
    images: Images,
    is_quick: bool,
}

type Images = &'static [fn() -> ImageSpec];

const NONE: Images = &[];
const REDIS: Images = &[images::redis];

/// A test in QEMU's machine that every run includes.
const fn quick(package: &'static str, target: &'static str, test: &'static str, images: Images) -> Choice {
    Choice { emulator: Emulator::Qemu, package, target, test: Some(test), images, is_quick: true }
}

/// A test of replicas, in QEMU's machine of two processors.
const fn replicas(test: &'static str, images: Images) -> Choice {
    Choice { emulator: Emulator::QemuOfTwo, ..thorough("twinvm", "mirror", test, images) }
}

/// A test in QEMU's machine.
const fn thorough(package: &'static str, target: &'static str, test: &'static str, images: Images) -> Choice {
    Choice { is_quick: false, ..quick(package, target, test, images) }
}

/// The engine's own tests: what of a vCPU's state comes back, and which pages count as written.
const KVM_ENGINE: &str = "engine::kvm::";

/// What runs. What is not quick runs when asked for.
const CHOICES: &[Choice] = &[
    quick("twinvm", "guests", "a_restored_vm_goes_on_where_it_was_and_its_disk_with_it", REDIS),
    replicas("faults::a_killed_primary_is_taken_over_again_and_again", REDIS),
    thorough("machine", "machine", KVM_ENGINE, NONE),
    Choice { test: None, ..thorough("machine", "engines", "", NONE) },
    thorough("machine", "engines", "vector_registers_of_an_x86_64_v3_go_with_a_vm", NONE),
    thorough("twinvm", "guests", "a_guest_that_resets_starts_again_and_one_that_panics_is_reported", &[images::tiny]),
    thorough("twinvm", "guests", "a_snapshot_continues_on_the_other_engine_and_back_with_its_clock_right", REDIS),
    thorough("twinvm", "guests", "debians_6_12_kernel_boots_on_four_vcpus", &[images::kernel_6_12]),
    thorough("twinvm", "guests", "nginx_serves_curl", &[images::nginx]),
    thorough("twinvm", "guests", "postgresql_serves_pgbench", &[images::postgresql]),
    thorough("twinvm", "guests", "redis_runs_under_systemd_on_two_vcpus", &[images::systemd]),
    replicas("disks::an_acknowledged_fsync_survives_the_loss_of_both_replicas", &[images::redis_append_only]),
    replicas("disks::postgresql_loses_no_commit_over_takeovers_and_a_restart_from_disk", &[images::postgresql]),
    replicas("faults::a_killed_secondary_is_replaced", REDIS),
    replicas("faults::a_primary_that_wakes_after_the_takeover_stops_and_sends_nothing", REDIS),
    replicas("faults::a_secondary_that_wakes_after_it_was_given_up_stops", REDIS),
    replicas("faults::a_switchover_costs_nothing_either", REDIS),
    replicas("faults::the_guest_clock_never_goes_back_and_catches_up", REDIS),
    replicas("races::a_protected_guest_that_resets_starts_again_and_can_be_protected_again", REDIS),
    // What differs between the makers; Bochs is too slow for more.
    Choice { emulator: Emulator::Bochs, ..thorough("machine", "machine", "engine::kvm::tests::", NONE) },
    Choice {
        emulator: Emulator::Bochs,
        ..thorough("machine", "machine", "engine::kvm::dirty::tests::a_full_ring_loses_nothing", NONE)
    },
    Choice {
        emulator: Emulator::Bochs,
        ..thorough("twinvm", "guests", "a_restored_vm_goes_on_where_it_was_and_its_disk_with_it", REDIS)
    },
];

/// A test in the machine.
pub struct Inner {
    emulator: Emulator,
    target: &'static str,
    test: String,
    images: Images,
    /// It is part of every run.
    pub is_quick: bool,
}

impl Inner {
    /// All of them.
    ///
    /// # Panics
    /// One that is chosen is not there.
    pub fn all(binaries: &Binaries) -> Vec<Self> {
        let mut all = Vec::new();
        for Choice { emulator, package, target, test, images, is_quick } in CHOICES {
            let mut tests = binaries.tests(package, target, None);
            if test.is_none_or(|test| test.ends_with("::")) {
                let ignored = binaries.tests(package, target, Some("--ignored"));
                tests.retain(|name| name.starts_with(test.unwrap_or_default()) && !ignored.contains(name));
            } else {
                tests.retain(|name| test.is_some_and(|test| name == test));
            }
            assert!(!tests.is_empty(), "{target} has no test {test:?}");
            let inner = |test| Self { emulator: *emulator, target, test, images, is_quick: *is_quick };
            all.extend(tests.into_iter().map(inner));
        }
        all
    }

    /// The processor's virtualization, target and test.
    pub fn name(&self) -> String {
        format!("{}::{}::{}", self.emulator.virtualization(), self.target, self.test)
    }
}

/// The machine, made when the first test needs it, and made again after one that has brought it down.
pub struct Bench {
    binaries: Binaries,
    is_thorough: bool,
    images: Vec<ImageSpec>,
    made: Option<(Disks, TempDir)>,
    machine: Option<(Emulator, Machine)>,
}

impl Bench {
    /// No machine yet. It will have the guests of these tests; in a run that `is_thorough`, some do more.
    pub fn new<'a>(binaries: Binaries, is_thorough: bool, tests: impl Iterator<Item = &'a Inner>) -> Self {
        let mut images: Vec<_> = tests.flat_map(|test| test.images).map(|spec| spec()).collect();
        images.sort_by(|a, b| a.name.cmp(&b.name));
        images.dedup_by(|a, b| a.name == b.name);
        Self { binaries, is_thorough, images, made: None, machine: None }
    }

    /// Runs a test in the machine. What has failed is told, and done again in a new machine: QEMU's emulation sometimes leaves the machine
    /// standing still, also while it boots and nothing of ours runs in it, or crashes a guest ([`may_be_the_emulators`]).
    ///
    /// # Errors
    /// The outputs of all attempts, or the machine's console.
    pub fn run(&mut self, inner: &Inner) -> Result<(), String> {
        let mut failures = String::new();
        for attempt in 1.. {
            let Err(failure) = self.run_once(inner) else { break };
            self.machine = None;
            failures.push_str(&format!("attempt {attempt}:\n{failure}\n\n"));
            if attempt >= ATTEMPTS_MAX[usize::from(!may_be_the_emulators(&failure))] {
                return Err(failures);
            }
            println!("\n{} is repeated in a new machine; it failed so:\n{failure}", inner.name());
        }
        Ok(())
    }

    fn run_once(&mut self, inner: &Inner) -> Result<(), String> {
        let machine = self.machine.take().filter(|(emulator, _)| *emulator == inner.emulator);
        let mut machine = match machine {
            Some((_, machine)) => machine,
            None => inner.emulator.boot(&self.made.get_or_insert_with(|| make(&self.binaries, &self.images)).0)?,
        };
        let environment = format!(
            "{}=kvm {}={SLOWNESS} TWINVM_KILLS={} RUST_BACKTRACE=1",
            place::ENGINE,
            place::SLOWNESS,
            KILLS[usize::from(self.is_thorough)]
        );
        let command =
            format!("{environment} {} --exact {} --include-ignored --test-threads 1", inner.target, inner.test);
        let outcome = machine.run(&command, LIMITS[usize::from(self.is_thorough)])?;
        self.machine = Some((inner.emulator, machine));
        if outcome.status == 0 && outcome.output.contains("test result: ok. 1 passed;") {
            return Ok(());
        }
        Err(format!("status {} in the nested machine:\n{}", outcome.status, outcome.output))
    }
}

/// Whether a test failed as the machine stood still, or as a guest crashed in it, which QEMU brings about with other hypervisors, too.
fn may_be_the_emulators(failure: &str) -> bool {
    ["the nested machine: ", "triple fault", "Kernel panic"].iter().any(|sign| failure.contains(sign))
}

/// The names of all targets that are run, but for libraries, which have their package's name.
pub fn targets() -> BTreeSet<&'static str> {
    CHOICES.iter().filter(|choice| choice.target != choice.package).map(|choice| choice.target).collect()
}

/// Builds the machine's disks, with the guests' images.
fn make(binaries: &Binaries, images: &[ImageSpec]) -> (Disks, TempDir) {
    let programs: BTreeMap<_, _> =
        CHOICES.iter().map(|choice| (choice.target, binaries.path(choice.package, choice.target))).collect();
    let guests: Vec<_> = images.iter().map(image).collect();
    let root = root();
    // Beside the images, where there is room for a copy of them.
    let folder = TempDir::new_in(images_dir().parent().unwrap()).unwrap();
    let job = job::disk(&programs, &guests, folder.path());
    (Disks { root, job }, folder)
}
