//! Guests for tests.
#![allow(dead_code, reason = "each test uses its part")]

pub mod booted;
pub mod emulated;
pub mod guest;
pub mod images;
pub mod place;
pub mod replay;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use machine::control::Control;
use machine::engine::RunEnd;
use machine::vm::Vm;

/// How long anything may take before it counts as hung.
pub const HUNG: Duration = Duration::from_secs(300);

/// Says that a test, or a part of it, is not run here: past what captures the output of tests that pass. `make test` counts these lines.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", thread.name().unwrap_or("a test"));
}

/// Runs the VM until `condition` holds, and pauses it.
pub fn run_until(vm: &mut Vm, condition: impl Fn() -> bool + Sync) {
    run_while(vm, || {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < HUNG, "waited {HUNG:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

/// Runs the VM while `work` uses it, and pauses it.
pub fn run_while<T: Send>(vm: &mut Vm, work: impl FnOnce() -> T + Send) -> T {
    let control = vm.control();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let _pause = Pause::new(&control, &done);
            work()
        });
        let end = vm.run(None).unwrap();
        assert_eq!(end, RunEnd::Paused);
        assert!(done.load(Ordering::Acquire));
        worker.join().unwrap()
    })
}

/// Pauses a VM when it is dropped, so also if whoever uses the VM panics, having set a flag that says why.
pub struct Pause<'a> {
    control: &'a Control,
    done: &'a AtomicBool,
}

impl<'a> Pause<'a> {
    pub fn new(control: &'a Control, done: &'a AtomicBool) -> Self {
        Self { control, done }
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        self.control.pause();
    }
}
