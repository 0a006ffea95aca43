//! The thread that keeps a secondary's disks up to date.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use machine::bus::lock;

use super::{CopyMark, CopyState, DiskOp, DiskSet, DiskSyncError, DiskWrite};

/// Applies committed changes to the disks of a secondary, in order, in a thread of its own.
///
/// A disk is flushed where the guest asked for it, before anything is written that the guest wrote afterwards, to whatever disk. So a power failure
/// leaves here what it could have left on the primary's disks some time before.
///
/// After the first error (such as a full file system, or a panic of the thread) nothing more is applied, and nobody is left waiting; the
/// secondary must be given up then. Dropping an applier drops what is queued.
pub struct DiskApplier {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    disks: DiskSet,
    queue_bytes_max: u64,
    state: Mutex<State>,
    /// The state has changed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Of what is queued or being applied.
    bytes: u64,
    /// The thread is applying something.
    is_busy: bool,
    /// Batches applied.
    applied: u64,
    error: Option<Arc<DiskSyncError>>,
    is_stopping: bool,
}

/// What the thread does.
enum Job {
    /// Applies these.
    Writes(Vec<DiskWrite>),
    /// Notes what the copy is, once all before is on stable storage.
    Mark(CopyMark, CopyState),
}

impl DiskApplier {
    /// Starts the thread. At most `queue_bytes_max` bytes wait to be applied, or a single batch of whatever size.
    ///
    /// # Errors
    /// [`DiskSyncError::Thread`].
    pub fn start(disks: DiskSet, queue_bytes_max: u64) -> Result<Self, DiskSyncError> {
        let shared = Arc::new(Shared { disks, queue_bytes_max, state: Mutex::default(), changed: Condvar::default() });
        Self::spawn(shared, Shared::run)
    }

    fn spawn(shared: Arc<Shared>, work: impl FnOnce(&Shared) + Send + 'static) -> Result<Self, DiskSyncError> {
        let own = shared.clone();
        let thread = thread::Builder::new().name("disk-applier".to_owned()).spawn(move || {
            let _report = PanicReport(&own);
            work(&own);
        });
        Ok(Self { shared, thread: Some(thread.map_err(DiskSyncError::Thread)?) })
    }

    /// Hands over committed changes; a batch of none does not count as one. Blocks while too much waits. After an error they are
    /// dropped.
    pub fn push(&self, writes: Vec<DiskWrite>) {
        if writes.is_empty() {
            return;
        }
        let bytes = batch_bytes(&writes);
        let mut state = lock(&self.shared.state);
        while state.bytes > 0
            && state.bytes.saturating_add(bytes) > self.shared.queue_bytes_max
            && state.error.is_none()
        {
            state = self.shared.wait(state);
        }
        if state.error.is_none() {
            state.bytes = state.bytes.saturating_add(bytes);
            state.queue.push_back(Job::Writes(writes));
            self.shared.changed.notify_all();
        }
    }

    /// Notes what the copy is when everything that was handed over is on stable storage. After an error nothing is noted.
    pub fn mark(&self, mark: CopyMark, copy: CopyState) {
        let mut state = lock(&self.shared.state);
        if state.error.is_none() {
            state.queue.push_back(Job::Mark(mark, copy));
            self.shared.changed.notify_all();
        }
    }

    /// Waits until everything that was handed over is applied, and flushed where the guest asked for it.
    ///
    /// # Errors
    /// The first error that occurred: the disks are not up to date, and never will be.
    pub fn drain(&self) -> Result<(), Arc<DiskSyncError>> {
        let mut state = lock(&self.shared.state);
        while (state.is_busy || !state.queue.is_empty()) && state.error.is_none() {
            state = self.shared.wait(state);
        }
        state.error.clone().map_or(Ok(()), Err)
    }

    /// The first error that occurred.
    pub fn error(&self) -> Option<Arc<DiskSyncError>> {
        lock(&self.shared.state).error.clone()
    }

    /// How many of the batches handed over are applied.
    pub fn applied(&self) -> u64 {
        lock(&self.shared.state).applied
    }

    /// Memory that changes not yet applied take, in bytes.
    pub fn queued_bytes(&self) -> u64 {
        lock(&self.shared.state).bytes
    }
}

impl Drop for DiskApplier {
    fn drop(&mut self) {
        lock(&self.shared.state).is_stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that `error` does not.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut flushes = Flushes::default();
        while let Some(job) = self.next(&mut flushes) {
            let (result, bytes, batches) = match job {
                Job::Writes(writes) => {
                    let result = flushes.apply(&writes, |write| self.disks.apply_one(write));
                    (result, batch_bytes(&writes), 1)
                }
                Job::Mark(mark, copy) => (self.mark(&mark, copy), 0, 0),
            };
            let mut state = lock(&self.state);
            state.bytes = state.bytes.saturating_sub(bytes);
            match result {
                Ok(()) => state.applied += batches,
                Err(error) => Self::fail(&mut state, error),
            }
            self.changed.notify_all();
        }
    }

    fn mark(&self, mark: &CopyMark, copy: CopyState) -> Result<(), DiskSyncError> {
        self.disks.flush()?;
        mark.write(copy).map_err(DiskSyncError::Mark)
    }

    /// The next job; flushes what is to be flushed before it waits for one. `None`: stop.
    fn next(&self, flushes: &mut Flushes) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if state.is_stopping {
                return None;
            }
            if let Some(job) = state.queue.pop_front() {
                state.is_busy = true;
                return Some(job);
            }
            if state.error.is_none() && flushes.is_due() {
                drop(state);
                let result = flushes.carry_out(|write| self.disks.apply_one(write));
                state = lock(&self.state);
                if let Err(error) = result {
                    Self::fail(&mut state, error);
                }
                continue;
            }
            state.is_busy = false;
            self.changed.notify_all();
            state = self.wait(state);
        }
    }

    fn fail(state: &mut State, error: DiskSyncError) {
        state.error.get_or_insert_with(|| Arc::new(error));
        state.queue.clear();
        state.bytes = 0;
    }
}

/// Turns a panic of the thread into an error, for those who wait for it.
struct PanicReport<'a>(&'a Shared);

impl Drop for PanicReport<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            Shared::fail(&mut lock(&self.0.state), DiskSyncError::ThreadFailed);
            self.0.changed.notify_all();
        }
    }
}

/// Flushes that the guest asked for and that were not yet carried out.
#[derive(Default)]
struct Flushes {
    /// The disks.
    asked: BTreeSet<u32>,
}

impl Flushes {
    fn is_due(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Applies changes by `apply`, each after the flushes that the guest asked for before it. Several flushes in a row are one.
    fn apply(
        &mut self,
        writes: &[DiskWrite],
        mut apply: impl FnMut(&DiskWrite) -> Result<(), DiskSyncError>,
    ) -> Result<(), DiskSyncError> {
        for write in writes {
            if write.op == DiskOp::Flush {
                self.asked.insert(write.disk);
            } else {
                self.carry_out(&mut apply)?;
                apply(write)?;
            }
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        mut apply: impl FnMut(&DiskWrite) -> Result<(), DiskSyncError>,
    ) -> Result<(), DiskSyncError> {
        mem::take(&mut self.asked).into_iter().try_for_each(|disk| apply(&DiskWrite { disk, op: DiskOp::Flush }))
    }
}

/// Memory that a batch takes, in bytes.
fn batch_bytes(writes: &Vec<DiskWrite>) -> u64 {
    let unused = (writes.capacity() - writes.len()) * size_of::<DiskWrite>();
    writes.iter().map(DiskWrite::memory_bytes).sum::<u64>() + unused as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A power failure must not leave what the guest wrote after a flush without what it wrote before.
    #[test]
    fn nothing_is_written_before_the_flushes_that_the_guest_waited_for() {
        let write = |disk, byte| DiskWrite { disk, op: DiskOp::Write { offset: 0, data: vec![byte] } };
        let flush = |disk| DiskWrite { disk, op: DiskOp::Flush };
        let batches = [
            vec![write(0, 1), flush(0), write(0, 2)],
            vec![write(1, 3), flush(1), flush(0), flush(1)],
            // The guest waited for both disks before it wrote to one of them.
            vec![write(1, 4), write(0, 5)],
            vec![flush(0)],
        ];
        let (mut flushes, mut done) = (Flushes::default(), Vec::new());
        for batch in &batches {
            let apply = |write: &DiskWrite| {
                done.push(write.clone());
                Ok(())
            };
            flushes.apply(batch, apply).unwrap();
        }
        let expected = [write(0, 1), flush(0), write(0, 2), write(1, 3), flush(0), flush(1), write(1, 4), write(0, 5)];
        assert_eq!(done, expected);
        assert!(flushes.is_due(), "the last one is not forgotten");
    }

    #[test]
    fn a_panic_of_the_thread_is_an_error_and_leaves_nobody_waiting() {
        let disks = DiskSet::new(Vec::new());
        let shared =
            Arc::new(Shared { disks, queue_bytes_max: 1, state: Mutex::default(), changed: Condvar::default() });
        let applier = DiskApplier::spawn(shared, |shared| {
            shared.next(&mut Flushes::default()).unwrap();
            panic!("as meant");
        });
        let applier = applier.unwrap();
        let batch = || vec![DiskWrite { disk: 0, op: DiskOp::Flush }];
        // The second does not fit beside the first.
        applier.push(batch());
        applier.push(batch());
        assert!(matches!(*applier.drain().unwrap_err(), DiskSyncError::ThreadFailed));
        applier.push(batch());
        assert_eq!((applier.queued_bytes(), applier.applied()), (0, 0));
    }
}
