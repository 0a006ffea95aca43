//! Flushes of a secondary whose guest writes its disks itself.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use machine::bus::lock;

use super::{DiskSet, DiskSyncError};

/// Flushes begin no sooner than this after those before: what the guest asks for in between is done at once.
const INTERVAL: Duration = Duration::from_millis(100);

/// As long as this exists, a guest's flushes return at once, and a thread carries them out.
///
/// A guest that is executed behind another one need not wait for its disk to flush, as long as it writes nothing more: only that has to come after
/// what it wrote before the flush. Before it takes over, [`DeferredFlushes::settle`] makes up for what was put off.
///
/// After the first error nothing more is flushed, and the secondary must be given up. Dropping this forgets what was put off; the guest's
/// later flushes are carried out as usual.
pub struct DeferredFlushes {
    disks: DiskSet,
    asked: Arc<AskedFlushes>,
    thread: Option<JoinHandle<()>>,
}

/// Flushes that were put off.
#[derive(Default)]
pub(super) struct AskedFlushes {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Disks that a guest wants to have flushed.
    disks: BTreeSet<u32>,
    /// The thread is flushing others.
    is_flushing: bool,
    /// Guests that wait for it.
    waiting: usize,
    ending: Option<Ending>,
    error: Option<Arc<DiskSyncError>>,
}

/// How the thread is to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// When everything is flushed.
    Settle,
    Abandon,
}

impl DeferredFlushes {
    /// Puts off the flushes of these disks from now on.
    ///
    /// # Errors
    /// [`DiskSyncError::Thread`].
    pub fn start(disks: &DiskSet) -> Result<Self, DiskSyncError> {
        Self::spawn(disks, DiskSet::flush_aside)
    }

    fn spawn(
        disks: &DiskSet,
        flush: impl Fn(&DiskSet, u32) -> Result<(), DiskSyncError> + Send + 'static,
    ) -> Result<Self, DiskSyncError> {
        let asked = Arc::new(AskedFlushes::default());
        let (own_disks, own_asked) = (disks.clone(), asked.clone());
        let thread = thread::Builder::new().name("disk-flush".to_owned()).spawn(move || {
            own_asked.carry_out(|disk| flush(&own_disks, disk));
        });
        let thread = Some(thread.map_err(DiskSyncError::Thread)?);
        disks.shared().defer_flushes(&asked);
        Ok(Self { disks: disks.clone(), asked, thread })
    }

    /// Ends the putting off, and returns when everything that a guest has flushed is on stable storage.
    ///
    /// # Errors
    /// The first error that occurred, whenever that was: the disks may have lost what the guest takes for safe.
    pub fn settle(mut self) -> Result<(), Arc<DiskSyncError>> {
        self.end(Ending::Settle);
        self.error().map_or(Ok(()), Err)
    }

    /// The first error that occurred.
    pub fn error(&self) -> Option<Arc<DiskSyncError>> {
        lock(&self.asked.state).error.clone()
    }

    fn end(&mut self, ending: Ending) {
        self.disks.shared().stop_deferring_flushes(&self.asked);
        lock(&self.asked.state).ending = Some(ending);
        self.asked.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // Should it have panicked, the state says so.
            let _ = thread.join();
        }
    }
}

impl Drop for DeferredFlushes {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end(Ending::Abandon);
        }
    }
}

impl AskedFlushes {
    /// A guest wants a disk to be flushed.
    pub fn ask(&self, disk: u32) {
        let mut state = lock(&self.state);
        if state.error.is_none() && state.disks.insert(disk) {
            self.changed.notify_all();
        }
    }

    /// Returns when everything that was asked for is flushed, or nothing will be any more.
    pub fn wait_until_done(&self) {
        let mut state = lock(&self.state);
        state.waiting += 1;
        self.changed.notify_all();
        while (state.is_flushing || !state.disks.is_empty())
            && state.error.is_none()
            && state.ending != Some(Ending::Abandon)
        {
            state = self.wait(state, Duration::MAX);
        }
        state.waiting -= 1;
    }

    /// The thread's work.
    fn carry_out(&self, flush: impl Fn(u32) -> Result<(), DiskSyncError>) {
        let _report = PanicReport(self);
        let mut due = Instant::now();
        while let Some(disks) = self.next(due) {
            due = Instant::now() + INTERVAL;
            if let Err(error) = disks.into_iter().try_for_each(&flush) {
                lock(&self.state).fail(error);
            }
            lock(&self.state).is_flushing = false;
            self.changed.notify_all();
        }
    }

    /// The disks to be flushed next, at `due` at the earliest unless somebody waits. `None`: no more.
    fn next(&self, due: Instant) -> Option<BTreeSet<u32>> {
        let mut state = lock(&self.state);
        loop {
            let wait = match state.ending {
                Some(Ending::Abandon) => return None,
                Some(Ending::Settle) if state.disks.is_empty() => return None,
                Some(Ending::Settle) => Duration::ZERO,
                None if state.disks.is_empty() => Duration::MAX,
                None if state.waiting > 0 => Duration::ZERO,
                None => due.saturating_duration_since(Instant::now()),
            };
            if wait.is_zero() {
                state.is_flushing = true;
                return Some(mem::take(&mut state.disks));
            }
            state = self.wait(state, wait);
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, timeout: Duration) -> MutexGuard<'a, State> {
        if timeout == Duration::MAX {
            return self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    fn fail(&mut self, error: DiskSyncError) {
        self.error.get_or_insert_with(|| Arc::new(error));
        self.disks.clear();
    }
}

/// Turns a panic of the thread into an error.
struct PanicReport<'a>(&'a AskedFlushes);

impl Drop for PanicReport<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            lock(&self.0.state).fail(DiskSyncError::ThreadFailed);
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use machine::devices::virtio::block::BlockBackend;
    use storage::disk::{DiskImage, DiskOptions, create_raw};

    use super::*;

    /// A disk, as the guest has it, in a folder that is to be kept.
    fn disks() -> (tempfile::TempDir, DiskSet, Box<dyn BlockBackend>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        create_raw(&path, 1 << 20).unwrap();
        let disks = DiskSet::new(vec![DiskImage::open(&path, DiskOptions::default()).unwrap()]);
        let guest = disks.backends().remove(0);
        (folder, disks, guest)
    }

    /// Puts flushes off. Each says which disk it is of when it begins, and waits until it is allowed.
    fn deferred(disks: &DiskSet) -> (DeferredFlushes, mpsc::Receiver<u32>, mpsc::Sender<()>) {
        let (begun, begins) = mpsc::channel();
        let (allow, allowed) = mpsc::channel();
        let deferred = DeferredFlushes::spawn(disks, move |disks, disk| {
            begun.send(disk).unwrap();
            allowed.recv().unwrap();
            disks.flush_aside(disk)
        });
        (deferred.unwrap(), begins, allow)
    }

    #[test]
    fn a_guest_does_not_wait_and_settling_does() {
        let (_folder, disks, guest) = disks();
        let (deferred, begins, allow) = deferred(&disks);
        guest.write_at(0, &[1; 512]).unwrap();
        guest.flush().unwrap();
        assert_eq!(begins.recv(), Ok(0));
        // One is under way: these are done in one by the next.
        for _ in 0..10 {
            guest.flush().unwrap();
        }
        assert!(begins.try_recv().is_err());
        let settling = thread::spawn(move || deferred.settle());
        allow.send(()).unwrap();
        assert_eq!(begins.recv(), Ok(0));
        assert!(!settling.is_finished());
        allow.send(()).unwrap();
        settling.join().unwrap().unwrap();
        // Not put off any more: nobody is there to do it.
        guest.flush().unwrap();
        assert_eq!(begins.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }

    /// A power failure must not leave what the guest wrote after a flush without what it wrote before.
    #[test]
    fn a_write_waits_for_the_flushes_before_it() {
        let (_folder, disks, guest) = disks();
        let (deferred, begins, allow) = deferred(&disks);
        guest.write_at(0, &[1; 512]).unwrap();
        for round in 0..2 {
            guest.flush().unwrap();
            let mut found = [0; 512];
            thread::scope(|scope| {
                let writing = scope.spawn(|| guest.write_at(512, &[round + 1; 512]));
                // Also where it would have been put off for longer: somebody waits.
                assert_eq!(begins.recv(), Ok(0));
                thread::sleep(Duration::from_millis(20));
                guest.read_at(512, &mut found).unwrap();
                assert_eq!(found[0], round);
                allow.send(()).unwrap();
                writing.join().unwrap().unwrap();
            });
        }
        drop(allow);
        deferred.settle().unwrap();
    }

    #[test]
    fn what_nobody_waits_for_is_flushed_all_the_same() {
        let (_folder, disks, guest) = disks();
        let (done, dones) = mpsc::channel();
        let deferred = DeferredFlushes::spawn(&disks, move |disks, disk| {
            done.send(disk).unwrap();
            disks.flush_aside(disk)
        });
        for _ in 0..2 {
            guest.flush().unwrap();
            assert_eq!(dones.recv(), Ok(0));
        }
        assert!(deferred.unwrap().error().is_none());
    }

    #[test]
    fn the_first_error_is_kept_and_nobody_is_left_waiting() {
        let (_folder, disks, guest) = disks();
        let lost = |_: &DiskSet, disk| Err(DiskSyncError::Lost { disk });
        let deferred = DeferredFlushes::spawn(&disks, lost).unwrap();
        guest.flush().unwrap();
        while deferred.error().is_none() {
            thread::yield_now();
        }
        guest.flush().unwrap();
        assert!(matches!(*deferred.settle().unwrap_err(), DiskSyncError::Lost { disk: 0 }));

        let deferred = DeferredFlushes::spawn(&disks, |_, _| panic!("as meant")).unwrap();
        guest.flush().unwrap();
        assert!(matches!(*deferred.settle().unwrap_err(), DiskSyncError::ThreadFailed));
    }

    #[test]
    fn abandoned_flushes_are_forgotten() {
        let (_folder, disks, guest) = disks();
        let (begun, begins) = mpsc::channel();
        let deferred = DeferredFlushes::spawn(&disks, move |_, disk| {
            begun.send(disk).unwrap();
            Ok(())
        });
        let deferred = deferred.unwrap();
        guest.flush().unwrap();
        assert_eq!(begins.recv(), Ok(0));
        guest.flush().unwrap();
        drop(deferred);
        guest.flush().unwrap();
        // The second one was begun if this thread was slow; the third has nobody to begin it.
        assert!(begins.iter().count() <= 1);
    }
}
