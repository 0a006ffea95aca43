//! Guests for tests.
#![allow(dead_code, reason = "each test uses its part")]

pub mod guest;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use machine::engine::RunEnd;
use machine::vm::Vm;

/// How long anything may take before it counts as hung.
pub const HUNG: Duration = Duration::from_secs(300);

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
    /// Pauses the VM even if `work` panics.
    struct Pause<'a>(&'a machine::control::Control, &'a AtomicBool);
    impl Drop for Pause<'_> {
        fn drop(&mut self) {
            self.1.store(true, Ordering::Release);
            self.0.pause();
        }
    }
    let control = vm.control();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let _pause = Pause(&control, &done);
            work()
        });
        let end = vm.run(None).unwrap();
        assert_eq!(end, RunEnd::Paused);
        assert!(done.load(Ordering::Acquire));
        worker.join().unwrap()
    })
}
