//! [`Requests`]: what is under way at the disks, and requests of a guest that are held since their disk has failed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use machine::bus::lock;
use protocol::{AfterFailure, DiskHealth, FailedRequests, RequestFailure};
use storage::disk::DiskError;

/// A disk that does not carry out what a guest asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFault {
    /// Which disk, from 0.
    pub disk: u32,
    /// What is wrong with the disk.
    pub problem: DiskProblem,
    /// For how long.
    pub lasting: Duration,
}

/// What is wrong with a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskProblem {
    /// A request fails, and is tried again and again: the disk is full, for example. The image's error names the file.
    Failing(String),
    /// A flush has failed, so that what was written before may be lost though later ones succeed.
    Lost(String),
    /// A request does not end.
    Hanging,
}

impl fmt::Display for DiskProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing(error) => write!(
                f,
                "{error}; the guest stands still until this succeeds, which is tried every second: make room on the datastore, or \
                 mend it"
            ),
            Self::Lost(error) => write!(
                f,
                "{error}; what the guest wrote last may be lost, so it does not go on from here: mend the datastore, then stop the \
                 VM with --force and start it again"
            ),
            Self::Hanging => f.write_str(
                "a request does not end; the guest stands still until it does: see whether the datastore can be reached",
            ),
        }
    }
}

/// Requests under way.
#[derive(Default)]
pub(super) struct Requests {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    policy: FailedRequests,
    next: u64,
    under_way: BTreeMap<u64, Request>,
    /// Disks that have failed to flush, and how: nothing is tried there any more.
    lost: BTreeMap<u32, String>,
}

struct Request {
    disk: u32,
    since: Instant,
    /// Why it is held, and since when.
    failure: Option<(DiskProblem, Instant)>,
}

/// A request under way, until this is dropped.
pub(super) struct UnderWay<'a> {
    requests: &'a Requests,
    number: u64,
}

impl Requests {
    /// From now on requests that fail are held.
    pub fn hold(&self) {
        let mut state = lock(&self.state);
        state.policy = FailedRequests::Held;
        state.lost.clear();
    }

    /// The guest is over: what is held fails, and so does what comes.
    pub fn abandon(&self) {
        let mut state = lock(&self.state);
        state.policy = state.policy.after_guest();
        self.changed.notify_all();
    }

    /// From now on requests that fail do just that.
    pub fn fail(&self) {
        lock(&self.state).policy = FailedRequests::Answered;
        self.changed.notify_all();
    }

    pub fn are_abandoned(&self) -> bool {
        lock(&self.state).policy == FailedRequests::Abandoned
    }

    pub fn health(&self) -> DiskHealth {
        let state = lock(&self.state);
        let waiting = state.under_way.values().filter(|request| request.failure.is_none());
        DiskHealth {
            has_failed: state.under_way.values().any(|request| request.failure.is_some()),
            waiting: waiting.map(|request| request.since.elapsed()).max().unwrap_or_default(),
        }
    }

    /// The disks that have a request which is held, or has been under way for `patience`.
    pub fn faults(&self, patience: Duration) -> Vec<DiskFault> {
        let mut faults = BTreeMap::new();
        for request in lock(&self.state).under_way.values() {
            let (problem, lasting) = match &request.failure {
                Some((problem, since)) => (problem.clone(), since.elapsed()),
                None if request.since.elapsed() >= patience => (DiskProblem::Hanging, request.since.elapsed()),
                None => continue,
            };
            // The oldest request tells most.
            faults.entry(request.disk).or_insert(DiskFault { disk: request.disk, problem, lasting });
        }
        faults.into_values().collect()
    }

    /// Notes that something is done to a disk.
    pub fn begin(&self, disk: u32) -> UnderWay<'_> {
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.under_way.insert(number, Request { disk, since: Instant::now(), failure: None });
        UnderWay { requests: self, number }
    }

    /// Does what a guest asks of a disk. If that fails, it is held and done again until it succeeds, or nobody waits for it any more: doing a
    /// request twice leaves what doing it once does.
    ///
    /// # Errors
    /// Those of `attempt`, where they are not held. What the disk refuses for what it is (as a write beyond its end) always fails.
    pub fn carry_out<R>(&self, disk: u32, mut attempt: impl FnMut() -> Result<R, DiskError>) -> Result<R, DiskError> {
        let request = self.begin(disk);
        request.wait_if_lost(disk);
        loop {
            match attempt() {
                Err(error) if request.is_tried_again(disk, &error) => {}
                done => return done,
            }
        }
    }
}

impl UnderWay<'_> {
    /// A disk that has lost what was written to it does nothing any more as long as its guest is there.
    fn wait_if_lost(&self, disk: u32) {
        let mut state = lock(&self.requests.state);
        while let (FailedRequests::Held, Some(error)) = (state.policy, state.lost.get(&disk)) {
            let problem = DiskProblem::Lost(error.clone());
            state.hold(self.number, problem);
            state = self.requests.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes how an attempt has failed, and waits until it is time for the next one. False: there is to be none.
    fn is_tried_again(&self, disk: u32, error: &DiskError) -> bool {
        let mut state = lock(&self.requests.state);
        match state.policy.after(failure(error)) {
            AfterFailure::Answer => false,
            AfterFailure::HoldForGood => {
                state.lost.entry(disk).or_insert_with(|| error.to_string());
                drop(state);
                self.wait_if_lost(disk);
                false
            }
            AfterFailure::TryAgain(wait) => {
                if state.hold(self.number, DiskProblem::Failing(error.to_string())) {
                    tracing::error!(disk, %error, "the disk has failed: the guest's request is held");
                }
                let (state, _) = self
                    .requests
                    .changed
                    .wait_timeout_while(state, wait, |state| state.policy == FailedRequests::Held)
                    .unwrap_or_else(PoisonError::into_inner);
                state.policy == FailedRequests::Held
            }
        }
    }
}

fn failure(error: &DiskError) -> RequestFailure {
    match error {
        DiskError::ReadOnly { .. } | DiskError::OutOfRange { .. } => RequestFailure::Refused,
        DiskError::Flush { .. } => RequestFailure::Flush,
        _ => RequestFailure::Other,
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.requests.state).under_way.remove(&self.number);
    }
}

impl State {
    /// Notes why a request is held; whether that is new.
    fn hold(&mut self, number: u64, problem: DiskProblem) -> bool {
        let Some(request) = self.under_way.get_mut(&number) else { return false };
        let since = request.failure.as_ref().map(|(_, since)| *since);
        request.failure = Some((problem, since.unwrap_or_else(Instant::now)));
        since.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    fn full() -> DiskError {
        DiskError::Io { path: PathBuf::from("d"), action: "write", source: io::ErrorKind::StorageFull.into() }
    }

    fn wait_for_fault(requests: &Requests) -> DiskFault {
        loop {
            match requests.faults(Duration::MAX).pop() {
                Some(fault) => return fault,
                None => thread::yield_now(),
            }
        }
    }

    #[test]
    fn a_request_that_fails_is_held_until_it_succeeds() {
        let requests = Requests::default();
        requests.hold();
        let attempts = AtomicU32::new(0);
        thread::scope(|scope| {
            let held = scope.spawn(|| {
                requests.carry_out(1, || match attempts.fetch_add(1, Ordering::Relaxed) {
                    0 => Err(full()),
                    _ => Ok(7),
                })
            });
            let fault = wait_for_fault(&requests);
            assert!(matches!(&fault, DiskFault { disk: 1, problem: DiskProblem::Failing(_), .. }), "{fault:?}");
            assert!(requests.health().has_failed);
            assert_eq!(held.join().unwrap().unwrap(), 7);
        });
        assert_eq!(requests.health(), DiskHealth { has_failed: false, waiting: Duration::ZERO });
    }

    #[test]
    fn a_flush_that_fails_is_not_tried_again_nor_is_anything_after_it() {
        let requests = Requests::default();
        requests.hold();
        let attempts = AtomicU32::new(0);
        thread::scope(|scope| {
            let flush = scope.spawn(|| {
                requests.carry_out(0, || {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    Err::<(), _>(DiskError::Flush { path: PathBuf::from("d"), source: io::Error::other("broken") })
                })
            });
            let fault = wait_for_fault(&requests);
            assert!(matches!(fault.problem, DiskProblem::Lost(_)), "{fault:?}");
            let later = scope.spawn(|| requests.carry_out(0, || Ok(attempts.fetch_add(1, Ordering::Relaxed))));
            while lock(&requests.state).under_way.values().filter(|request| request.failure.is_some()).count() < 2 {
                thread::yield_now();
            }
            assert_eq!(attempts.load(Ordering::Relaxed), 1);
            requests.abandon();
            assert!(flush.join().unwrap().is_err());
            assert!(later.join().unwrap().is_ok());
        });
    }

    #[test]
    fn what_nobody_waits_for_any_more_fails() {
        let requests = Requests::default();
        requests.hold();
        thread::scope(|scope| {
            let held = scope.spawn(|| requests.carry_out(0, || Err::<(), _>(full())));
            wait_for_fault(&requests);
            requests.abandon();
            assert!(held.join().unwrap().is_err());
        });
        assert!(requests.carry_out(0, || Err::<(), _>(full())).is_err());
        requests.fail();
        assert!(requests.carry_out(0, || Err::<(), _>(full())).is_err());
    }

    #[test]
    fn what_a_disk_refuses_is_not_its_failure() {
        let requests = Requests::default();
        requests.hold();
        let refused = || Err::<(), _>(DiskError::ReadOnly { path: PathBuf::from("d") });
        assert!(requests.carry_out(0, refused).is_err());
    }

    #[test]
    fn a_request_that_does_not_end_is_seen() {
        let requests = Requests::default();
        let under_way = requests.begin(3);
        thread::sleep(Duration::from_millis(2));
        assert!(requests.health().waiting >= Duration::from_millis(2));
        let faults = requests.faults(Duration::from_millis(1));
        assert!(matches!(faults[..], [DiskFault { disk: 3, problem: DiskProblem::Hanging, .. }]), "{faults:?}");
        assert_eq!(requests.faults(Duration::from_secs(3600)), []);
        drop(under_way);
        assert_eq!(requests.faults(Duration::ZERO), []);
    }
}
