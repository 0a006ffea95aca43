//! [`Executor`]: executes the log that a secondary receives.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use machine::input::{FailedContent, Input, InputEvent};
use machine::vm::{VmConfig, VmState};
use memory::GuestRam;
use network::InputPosition;
use protocol::{Epoch, UnreleasedOutput};

use super::execution::{Execution, ExecutorError, ExecutorProgress};
use super::log::{Entry, Segment};
use super::sink::NoConsole;
use crate::disk::{DeferredFlushes, DiskSet};
use crate::gate::{GatedFrame, bytes_of};

/// How far a segment may reach beyond what was executed, in instructions: tens of seconds of work, many times what a primary lets its
/// secondary lag behind. So a takeover that runs out the log comes to an end, whoever wrote it.
const LAG_INSTRUCTIONS_MAX: u64 = 1 << 32;
/// Most memory of segments that wait to be executed, in bytes; a primary waits for its secondary long before.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// What is left when the log received has been executed.
pub struct Executed {
    /// The state at the log's end.
    pub state: VmState,
    /// Output that the primary is not known to have released.
    pub(crate) unreleased: UnreleasedOutput<Vec<GatedFrame>>,
    /// The guest has powered off, or wants to be reset.
    pub has_ended: bool,
}

/// Executes segments in a thread of its own, in order.
pub struct Executor {
    shared: Arc<Shared>,
    progress: Arc<ExecutorProgress>,
    /// How far each card's frames have been taken, at the end of the log received.
    positions: Vec<InputPosition>,
    thread: Option<JoinHandle<Result<VmState, ExecutorError>>>,
    flushes: Option<DeferredFlushes>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    segments: VecDeque<Segment>,
    bytes: usize,
    /// Nothing more comes.
    is_complete: bool,
    /// What was not executed yet is of no use.
    is_aborted: bool,
    has_ended: bool,
    has_failed: bool,
    unreleased: UnreleasedOutput<Vec<GatedFrame>>,
}

impl Executor {
    /// Starts at `state`, with the memory as it was then. `positions` say how far each card's frames had been taken; `progress` is kept up to date.
    ///
    /// # Errors
    /// [`ExecutorError`] if a VM cannot be made of it.
    pub fn start(
        config: VmConfig,
        ram: &GuestRam,
        state: VmState,
        disks: &DiskSet,
        positions: Vec<InputPosition>,
        progress: Arc<ExecutorProgress>,
    ) -> Result<Self, ExecutorError> {
        let console = Box::new(NoConsole);
        let execution = Execution::new(config, ram, state, disks.backends(), console, progress.clone())?;
        let flushes = DeferredFlushes::start(disks).map_err(|error| ExecutorError::Disk(error.to_string()))?;
        let shared = Arc::<Shared>::default();
        let work = Work { execution, shared: shared.clone() };
        let thread = thread::Builder::new().name("lockstep".to_owned()).spawn(move || work.run())?;
        Ok(Self { shared, progress, positions, thread: Some(thread), flushes: Some(flushes) })
    }

    /// Adds the next segment.
    ///
    /// # Errors
    /// [`ExecutorError::TooFarAhead`].
    pub fn push(&mut self, segment: Segment) -> Result<(), ExecutorError> {
        for entry in &segment.entries {
            if let Entry::Input(InputEvent { input: Input::Frame { card, position, .. }, .. }) = entry
                && let Some(known) = self.positions.get_mut(*card)
            {
                *known = *position;
            }
        }
        if segment.reached.saturating_sub(self.progress.instructions()) > LAG_INSTRUCTIONS_MAX {
            return Err(ExecutorError::TooFarAhead);
        }
        let mut queue = self.shared.queue();
        queue.bytes = queue.bytes.saturating_add(memory_bytes(&segment));
        if queue.bytes > WAITING_BYTES_MAX {
            return Err(ExecutorError::TooFarAhead);
        }
        queue.segments.push_back(segment);
        drop(queue);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// The primary's output through `epoch` has left.
    pub fn released(&self, epoch: Epoch) {
        self.shared.queue().unreleased.released(epoch);
    }

    /// Epochs executed whose output is not known to have left.
    pub fn unreleased_epochs(&self) -> u64 {
        self.shared.queue().unreleased.epochs()
    }

    /// How far each card's frames have been taken, at the end of the log received.
    pub fn positions(&self) -> &[InputPosition] {
        &self.positions
    }

    /// Whether execution has ended with an error, which [`Executor::finish`] tells.
    pub fn has_failed(&self) -> bool {
        self.shared.queue().has_failed || self.flushes.as_ref().is_some_and(|flushes| flushes.error().is_some())
    }

    /// Executes what was received to its end, and returns when what the guest has flushed is on stable storage.
    ///
    /// # Errors
    /// [`ExecutorError`]: what is left must not go on.
    pub fn finish(mut self) -> Result<Executed, ExecutorError> {
        self.shared.queue().is_complete = true;
        self.shared.changed.notify_all();
        let state = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(state)) => state?,
            Some(Err(_)) | None => return Err(ExecutorError::Panicked),
        };
        if let Some(flushes) = self.flushes.take() {
            flushes.settle().map_err(|error| ExecutorError::Disk(error.to_string()))?;
        }
        let mut queue = self.shared.queue();
        Ok(Executed { state, unreleased: std::mem::take(&mut queue.unreleased), has_ended: queue.has_ended })
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.queue().is_aborted = true;
            self.shared.changed.notify_all();
            // What it would say is of no use any more.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next segment, or `None` if there will be none.
    fn next(&self) -> Option<Segment> {
        let mut queue = self.queue();
        loop {
            if queue.is_aborted || queue.has_ended {
                return None;
            }
            if let Some(segment) = queue.segments.pop_front() {
                queue.bytes = queue.bytes.saturating_sub(memory_bytes(&segment));
                return Some(segment);
            }
            if queue.is_complete {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The thread's part.
struct Work {
    execution: Execution,
    shared: Arc<Shared>,
}

impl Work {
    fn run(mut self) -> Result<VmState, ExecutorError> {
        let result = self.execute().and_then(|()| Ok(self.execution.save()?));
        self.shared.queue().has_failed = result.is_err();
        result
    }

    fn execute(&mut self) -> Result<(), ExecutorError> {
        while let Some(Segment { epoch, reached, entries, .. }) = self.shared.next() {
            self.execution.execute(entries, reached)?;
            let output = self.execution.take_output();
            let (frames, bytes) = (output.len(), bytes_of(&output));
            let mut queue = self.shared.queue();
            queue.has_ended = self.execution.has_ended();
            queue.unreleased.push(epoch, output, frames, bytes);
        }
        Ok(())
    }
}

/// Memory that a segment takes, in bytes.
fn memory_bytes(segment: &Segment) -> usize {
    let content = |entry: &Entry| match entry {
        Entry::Input(InputEvent { input: Input::Frame { frame, .. }, .. }) => frame.len(),
        Entry::Input(InputEvent { input: Input::Console(bytes) | Input::Entropy(bytes), .. }) => bytes.len(),
        Entry::Input(InputEvent { input: Input::DiskFailed { content: FailedContent::Bytes(bytes), .. }, .. }) => {
            bytes.len()
        }
        Entry::Input(_) | Entry::Digest { .. } => 0,
    };
    size_of::<Segment>() + segment.entries.iter().map(|entry| size_of::<Entry>() + content(entry)).sum::<usize>()
}
