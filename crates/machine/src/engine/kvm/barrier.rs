//! [`Barrier`]: where vCPU threads wait between two runs, and where the VM's thread waits for them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::bus::lock;
use crate::engine::{EngineError, RunEnd};

/// The meeting point of the VM's thread, which opens and ends runs, and the threads of its vCPUs, which take part in them.
///
/// A thread that waits here sleeps; whoever lets it go on changes what it waits for under the lock, so that it cannot miss it.
#[derive(Default)]
pub(super) struct Barrier {
    /// Number of the run under way or, between two, of the last one.
    run: AtomicU64,
    /// Threads that have not come back from it.
    inside: AtomicUsize,
    /// The run is to end.
    stopping: AtomicBool,
    /// There will be no further run.
    closed: AtomicBool,
    /// Why the run ended, where that was neither a pause nor something that a device knows.
    end: Mutex<Option<Result<RunEnd, EngineError>>>,
    sleepers: Mutex<()>,
    /// For vCPU threads: a run was opened, or the barrier closed.
    opened: Condvar,
    /// For the VM's thread: the last vCPU thread is out of the run.
    all_out: Condvar,
}

impl Barrier {
    /// Lets `threads` threads, all of which are out, into a new run.
    pub fn open(&self, threads: usize) {
        *lock(&self.end) = None;
        self.stopping.store(false, Ordering::Release);
        self.inside.store(threads, Ordering::Release);
        let sleepers = lock(&self.sleepers);
        self.run.fetch_add(1, Ordering::AcqRel);
        drop(sleepers);
        self.opened.notify_all();
    }

    /// Tells all threads that no run follows.
    pub fn close(&self) {
        let sleepers = lock(&self.sleepers);
        self.closed.store(true, Ordering::Release);
        drop(sleepers);
        self.opened.notify_all();
    }

    /// Waits, as a vCPU thread, for a run other than `last`; its number, or `None` once the barrier is closed.
    pub fn wait_for_run(&self, last: u64) -> Option<u64> {
        let is_over = || self.run.load(Ordering::Acquire) != last || self.closed.load(Ordering::Acquire);
        self.sleep_until(&self.opened, is_over);
        if self.closed.load(Ordering::Acquire) { None } else { Some(self.run.load(Ordering::Acquire)) }
    }

    /// Says, as a vCPU thread, that it is out of the run.
    pub fn arrive(&self) {
        let sleepers = lock(&self.sleepers);
        let is_last = self.inside.fetch_sub(1, Ordering::AcqRel) == 1;
        drop(sleepers);
        if is_last {
            self.all_out.notify_one();
        }
    }

    /// Waits, as the VM's thread, until all vCPU threads are out of the run.
    pub fn wait_for_all(&self) {
        self.sleep_until(&self.all_out, || self.inside.load(Ordering::Acquire) == 0);
    }

    fn sleep_until(&self, condition: &Condvar, is_over: impl Fn() -> bool) {
        let mut sleepers: MutexGuard<'_, ()> = lock(&self.sleepers);
        while !is_over() {
            sleepers = condition.wait(sleepers).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Asks for the end of the run.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether the end of the run was asked for.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Asks for the end of the run and says why. The first reason counts, but an error more than anything else.
    pub fn end(&self, end: Result<RunEnd, EngineError>) {
        let mut first = lock(&self.end);
        if end.is_err() && !matches!(*first, Some(Err(_))) || first.is_none() {
            *first = Some(end);
        }
        drop(first);
        self.stop();
    }

    /// Takes the reason that [`Barrier::end`] was given.
    pub fn take_end(&self) -> Option<Result<RunEnd, EngineError>> {
        lock(&self.end).take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn threads_take_part_in_each_run_once_and_leave_when_it_closes() {
        const THREADS: usize = 3;
        const RUNS: usize = 200;
        let barrier = Arc::new(Barrier::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (barrier, runs) = (barrier.clone(), runs.clone());
                thread::spawn(move || {
                    let mut last = 0;
                    while let Some(run) = barrier.wait_for_run(last) {
                        assert_eq!(run, last + 1, "a run was missed");
                        last = run;
                        runs.fetch_add(1, Ordering::AcqRel);
                        barrier.arrive();
                    }
                })
            })
            .collect();
        for run in 1..=RUNS {
            barrier.open(THREADS);
            barrier.wait_for_all();
            assert_eq!(runs.load(Ordering::Acquire), run * THREADS);
        }
        barrier.close();
        for thread in threads {
            thread.join().expect("no assertion failed");
        }
    }

    #[test]
    fn an_error_counts_more_than_a_shutdown_and_the_first_error_most() {
        let barrier = Barrier::default();
        barrier.end(Ok(RunEnd::Shutdown { vcpu: 0 }));
        barrier.end(Err(EngineError::KvmExit("first".into())));
        barrier.end(Err(EngineError::KvmExit("second".into())));
        barrier.end(Ok(RunEnd::Shutdown { vcpu: 1 }));
        assert!(barrier.is_stopping());
        assert!(matches!(barrier.take_end(), Some(Err(EngineError::KvmExit(why))) if why == "first"));
        barrier.open(0);
        assert!(!barrier.is_stopping() && barrier.take_end().is_none());
    }
}
