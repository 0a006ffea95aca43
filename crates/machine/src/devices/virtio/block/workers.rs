//! Threads that do what a disk's requests ask for, several at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::{io, mem};

use vmm_sys_util::eventfd::EventFd;

use super::backend::BlockBackend;
use super::operation::Operation;
use crate::bus::lock;

/// Threads of a disk: so many of its operations can wait for the host at the same time.
const THREADS_MAX: usize = 4;

/// An operation, and the name under which its end is told.
struct Job {
    tag: u64,
    operation: Operation,
}

/// The end of an operation.
pub(super) struct Done {
    pub tag: u64,
    pub result: io::Result<()>,
    /// [`Operation::data`].
    pub data: Vec<u8>,
}

/// The threads of one disk, started when they are needed. Dropping this waits for the operations that have begun, and forgets the others.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    backend: Arc<dyn BlockBackend>,
    jobs: Mutex<Jobs>,
    /// There is something to do, or the threads are to end.
    work: Condvar,
    /// Nothing is left to do.
    idle: Condvar,
    /// Readable when something was done.
    ended: EventFd,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Threads that wait for something to do.
    idle_threads: usize,
    /// Operations that have begun and not ended.
    running: usize,
    done: Vec<Done>,
    is_closing: bool,
}

impl Workers {
    /// Threads that work on `backend` and write to `ended` when they have ended an operation.
    pub fn new(backend: Arc<dyn BlockBackend>, ended: EventFd) -> Self {
        let shared = Shared { backend, jobs: Mutex::default(), work: Condvar::new(), idle: Condvar::new(), ended };
        Self { shared: Arc::new(shared), threads: Vec::new() }
    }

    pub fn backend(&self) -> &Arc<dyn BlockBackend> {
        &self.shared.backend
    }

    /// Fills `buffer` from `offset` on if that takes no wait.
    pub fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.shared.backend.read_cached(offset, buffer)
    }

    /// Lets an operation begin as soon as a thread is free. Returns at once.
    pub fn submit(&mut self, tag: u64, operation: Operation) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.waiting.push_back(Job { tag, operation });
        let needs_thread = jobs.waiting.len() > jobs.idle_threads && self.threads.len() < THREADS_MAX;
        let has_idle = jobs.idle_threads > 0;
        drop(jobs);
        // A thread that is not idle looks for more by itself; to wake nobody is a system call all the same.
        if has_idle {
            self.shared.work.notify_one();
        }
        if needs_thread {
            self.add_thread();
        }
    }

    fn add_thread(&mut self) {
        let shared = self.shared.clone();
        match thread::Builder::new().name("disk".to_owned()).spawn(move || shared.work()) {
            Ok(thread) => self.threads.push(thread),
            // The others do it. Where there are none, nobody does.
            Err(error) if self.threads.is_empty() => {
                let waiting = mem::take(&mut lock(&self.shared.jobs).waiting);
                for job in waiting {
                    let result = Err(io::Error::new(error.kind(), "no thread for the disk"));
                    self.shared.end(Done { tag: job.tag, result, data: job.operation.data });
                }
            }
            Err(error) => tracing::warn!(%error, "a disk gets fewer threads than it could use"),
        }
    }

    /// What has ended since the last call.
    pub fn take_done(&self) -> Vec<Done> {
        mem::take(&mut lock(&self.shared.jobs).done)
    }

    /// Forgets operations that have not begun; returns how many.
    pub fn forget_waiting(&self) -> usize {
        let forgotten = mem::take(&mut lock(&self.shared.jobs).waiting);
        forgotten.len()
    }

    /// Returns when all operations have ended. Their ends are still to be taken.
    pub fn wait_until_idle(&self) {
        let mut jobs = lock(&self.shared.jobs);
        while jobs.running > 0 || !jobs.waiting.is_empty() {
            jobs = wait(&self.shared.idle, jobs);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.is_closing = true;
        jobs.waiting.clear();
        drop(jobs);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing under way.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(Job { tag, mut operation }) = self.next() {
            let result = operation.perform(&*self.backend);
            self.end(Done { tag, result, data: operation.data });
            let mut jobs = lock(&self.jobs);
            jobs.running -= 1;
            if jobs.running == 0 && jobs.waiting.is_empty() {
                self.idle.notify_all();
            }
        }
    }

    /// Waits for the next job; `None` when there will be none.
    fn next(&self) -> Option<Job> {
        let mut jobs = lock(&self.jobs);
        loop {
            if jobs.is_closing {
                return None;
            }
            if let Some(job) = jobs.waiting.pop_front() {
                jobs.running += 1;
                return Some(job);
            }
            jobs.idle_threads += 1;
            jobs = wait(&self.work, jobs);
            jobs.idle_threads -= 1;
        }
    }

    fn end(&self, done: Done) {
        let mut jobs = lock(&self.jobs);
        let is_first = jobs.done.is_empty();
        jobs.done.push(done);
        drop(jobs);
        // Whoever takes the first one takes the others as well.
        if is_first {
            // A full counter is readable as well.
            let _ = self.ended.write(1);
        }
    }
}

fn wait<'a>(condition: &Condvar, jobs: MutexGuard<'a, Jobs>) -> MutexGuard<'a, Jobs> {
    condition.wait(jobs).unwrap_or_else(std::sync::PoisonError::into_inner)
}
