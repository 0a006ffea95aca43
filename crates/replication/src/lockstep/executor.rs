//! [`Executor`]: executes the log that a secondary receives.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use machine::control::Control;
use machine::devices::virtio::net::NetConfig;
use machine::engine::soft::InputMode;
use machine::engine::{EngineError, EngineKind, RunEnd};
use machine::events::GuestEvent;
use machine::input::{FailedContent, Input, InputEvent, Journal};
use machine::platform::Parts;
use machine::vm::{Vm, VmConfig, VmError, VmState};
use memory::GuestRam;
use network::InputPosition;

use super::digest::StateDigest;
use super::log::{Entry, Segment};
use super::sink::{NoConsole, NoEntropy, OutputSink};
use crate::disk::{DeferredFlushes, DiskSet};
use crate::gate::UnreleasedOutput;

/// Most memory of segments that wait to be executed, in bytes; a primary waits for its secondary long before.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// Why execution cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The VM cannot be made, run or saved.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// There is no room for the end of a card.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The states of the two replicas differ.
    #[error("the state after {} instructions is not that of the primary", .0.state.instructions)]
    Diverged(Box<Divergence>),
    /// The guest stopped where the primary's went on.
    #[error("the guest stands still after {at} instructions, and the primary's went on to {reached}")]
    Stuck {
        /// Instructions retired.
        at: u64,
        /// Where the log ends.
        reached: u64,
    },
    /// A disk failed here where the primary's did not, or was not told what the primary's failure left.
    #[error("a disk failed where the primary's did not: {0}")]
    Disk(String),
    /// Too much waits.
    #[error("the primary is too far ahead")]
    TooFarAhead,
    /// The thread has panicked.
    #[error("the execution has failed")]
    Panicked,
}

/// Two states that should be the same.
#[derive(Debug)]
pub struct Divergence {
    /// What the secondary found here.
    pub state: StateDigest,
    /// What the primary said.
    pub expected: u128,
}

/// What is left when the log received has been executed.
pub struct Executed {
    /// The state at the log's end.
    pub state: VmState,
    /// Output that the primary is not known to have released.
    pub(crate) unreleased: UnreleasedOutput,
    /// The guest has powered off, or wants to be reset.
    pub has_ended: bool,
}

/// Executes segments in a thread of its own, in order.
pub struct Executor {
    shared: Arc<Shared>,
    control: Arc<Control>,
    /// How far each card's frames have been taken, at the end of the log received.
    positions: Vec<InputPosition>,
    thread: Option<JoinHandle<Result<VmState, ExecutorError>>>,
    flushes: Option<DeferredFlushes>,
}

/// How far execution is; zeros where there is none.
#[derive(Debug, Default)]
pub struct ExecutorProgress {
    instructions: AtomicU64,
    digests: AtomicU64,
}

impl ExecutorProgress {
    /// Instructions executed since power-on.
    pub fn instructions(&self) -> u64 {
        self.instructions.load(Ordering::Acquire)
    }

    /// Digests compared, and found to be the same.
    pub fn digests(&self) -> u64 {
        self.digests.load(Ordering::Acquire)
    }
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    progress: Arc<ExecutorProgress>,
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
    unreleased: UnreleasedOutput,
    released_through: u64,
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
        let sink = OutputSink::default();
        let cards = state.platform.cards.iter().zip(0..).map(|(card, number)| {
            let config = NetConfig { mac: card.device.mac, mtu: card.device.mtu };
            Ok((config, Box::new(sink.card(number)?) as _))
        });
        let parts = Parts {
            disks: disks.backends(),
            cards: cards.collect::<std::io::Result<_>>()?,
            console: Box::new(NoConsole),
            entropy: Box::new(NoEntropy),
        };
        // As on the primary, pages count as touched from here on.
        ram.harvest().acknowledge();
        let journal = Journal::default();
        let vm = Vm::restore(config, ram, state, parts, EngineKind::Soft, InputMode::Replay(journal.clone()))?;
        vm.platform().retry_transmits();
        let control = vm.control();
        progress.instructions.store(vm.instructions().unwrap_or_default(), Ordering::Release);
        progress.digests.store(0, Ordering::Release);
        let flushes = DeferredFlushes::start(disks).map_err(|error| ExecutorError::Disk(error.to_string()))?;
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), progress });
        let work = Work { vm, journal, sink, shared: shared.clone() };
        let thread = thread::Builder::new().name("lockstep".to_owned()).spawn(move || work.run())?;
        Ok(Self { shared, control, positions, thread: Some(thread), flushes: Some(flushes) })
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
    pub fn released(&self, epoch: u64) {
        let mut queue = self.shared.queue();
        queue.released_through = queue.released_through.max(epoch);
        queue.unreleased.released(epoch);
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
            self.control.pause();
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
    vm: Vm,
    journal: Journal,
    sink: OutputSink,
    shared: Arc<Shared>,
}

impl Work {
    fn run(mut self) -> Result<VmState, ExecutorError> {
        let result = self.execute().and_then(|()| Ok(self.vm.save()?));
        self.shared.queue().has_failed = result.is_err();
        result
    }

    fn execute(&mut self) -> Result<(), ExecutorError> {
        while let Some(segment) = self.shared.next() {
            let Segment { epoch, reached, entries, .. } = segment;
            for entry in entries {
                match entry {
                    Entry::Input(event) => self.journal.push(event),
                    Entry::Digest { instructions, digest } => {
                        self.run_to(instructions)?;
                        self.compare(digest)?;
                    }
                }
            }
            self.run_to(reached)?;
            let output = self.sink.take();
            let mut queue = self.shared.queue();
            if epoch > queue.released_through {
                queue.unreleased.push(epoch, output);
            }
        }
        Ok(())
    }

    fn run_to(&mut self, reached: u64) -> Result<(), ExecutorError> {
        while !self.shared.queue().has_ended {
            let end = self.vm.run(Some(reached)).map_err(|error| match error {
                VmError::Engine(EngineError::DiskDiverged(reason)) => ExecutorError::Disk(reason),
                error => error.into(),
            })?;
            let at = self.vm.instructions().unwrap_or_default();
            self.shared.progress.instructions.store(at, Ordering::Release);
            match end {
                RunEnd::LimitReached if at >= reached => return Ok(()),
                RunEnd::LimitReached => return Err(ExecutorError::Stuck { at, reached }),
                RunEnd::Paused if self.shared.queue().is_aborted => return Ok(()),
                RunEnd::Paused | RunEnd::Guest(GuestEvent::Panicked | GuestEvent::CrashLoaded) => {}
                RunEnd::Guest(GuestEvent::PowerOff | GuestEvent::Reset) | RunEnd::Shutdown { .. } => {
                    self.shared.queue().has_ended = true;
                }
            }
        }
        Ok(())
    }

    fn compare(&mut self, expected: u128) -> Result<(), ExecutorError> {
        let state = StateDigest::take(&mut self.vm)?;
        if state.digest != expected {
            return Err(ExecutorError::Diverged(Box::new(Divergence { state, expected })));
        }
        self.shared.progress.digests.fetch_add(1, Ordering::AcqRel);
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
