//! [`Execution`]: a VM whose inputs come from the event log alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::block::BlockBackend;
use machine::devices::virtio::net::NetConfig;
use machine::digest::Digest;
use machine::engine::soft::InputMode;
use machine::engine::{EngineError, RunEnd};
use machine::events::GuestEvent;
use machine::input::Journal;
use machine::platform::Parts;
use machine::vm::{Vm, VmConfig, VmError, VmState};
use memory::GuestRam;
use spec::EngineKind;

use super::digest::StateDigest;
use super::log::Entry;
use super::sink::{NoEntropy, OutputSink};
use crate::gate::GatedFrame;

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
    /// What was found here.
    pub state: StateDigest,
    /// What the log says.
    pub expected: u128,
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

/// Executes a log: a VM with disks of its own, whose inputs come from there alone. What it sends is kept, the oldest forgotten first, until
/// somebody [takes](Execution::take_output) it.
pub struct Execution {
    vm: Vm,
    journal: Journal,
    sink: OutputSink,
    progress: Arc<ExecutorProgress>,
    has_ended: bool,
}

impl Execution {
    /// Stands at `state`, with the memory as it was then. `progress` is kept up to date.
    ///
    /// # Errors
    /// [`ExecutorError`] if a VM cannot be made of it.
    pub fn new(
        config: VmConfig,
        ram: &GuestRam,
        state: VmState,
        disks: Vec<Box<dyn BlockBackend>>,
        console: Box<dyn ConsoleSink>,
        progress: Arc<ExecutorProgress>,
    ) -> Result<Self, ExecutorError> {
        let sink = OutputSink::default();
        let cards = state.platform.cards.iter().zip(0..).map(|(card, number)| {
            let config = NetConfig { mac: card.device.mac, mtu: card.device.mtu };
            Ok((config, Box::new(sink.card(number)?) as _))
        });
        let cards = cards.collect::<std::io::Result<_>>()?;
        let parts = Parts { disks, cards, console, entropy: Box::new(NoEntropy) };
        // As where the log was written, pages count as touched from here on.
        ram.harvest().acknowledge();
        let journal = Journal::default();
        let vm = Vm::restore(config, ram, state, parts, EngineKind::Soft, InputMode::Replay(journal.clone()))?;
        vm.platform().retry_transmits();
        progress.instructions.store(vm.instructions().unwrap_or_default(), Ordering::Release);
        progress.digests.store(0, Ordering::Release);
        Ok(Self { vm, journal, sink, progress, has_ended: false })
    }

    /// Instructions executed since power-on.
    pub fn instructions(&self) -> u64 {
        self.vm.instructions().unwrap_or_default()
    }

    /// Nanoseconds of the guest's time since power-on.
    pub fn guest_ns(&self) -> u64 {
        self.vm.platform().clock().now_ns()
    }

    /// Whether the guest has powered off, or wants to be reset: nothing is executed any more.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// What the guest has sent since the last call.
    pub fn take_output(&self) -> Vec<GatedFrame> {
        self.sink.take()
    }

    /// The state where it stands, without memory.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn save(&mut self) -> Result<VmState, VmError> {
        self.vm.save()
    }

    /// A digest of everything: state and memory.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn digest(&mut self) -> Result<Digest, VmError> {
        self.vm.digest()
    }

    /// Executes up to `reached` instructions, with these entries of the log on the way; less if the guest ends before.
    ///
    /// # Errors
    /// [`ExecutorError`]: what is left must not go on.
    pub fn execute(&mut self, entries: impl IntoIterator<Item = Entry>, reached: u64) -> Result<(), ExecutorError> {
        for entry in entries {
            match entry {
                Entry::Input(event) => self.journal.push(event),
                Entry::Digest { instructions, digest } => {
                    self.run_to(instructions)?;
                    self.compare(digest)?;
                }
            }
        }
        self.run_to(reached)
    }

    fn run_to(&mut self, reached: u64) -> Result<(), ExecutorError> {
        while !self.has_ended {
            let end = self.vm.run(Some(reached)).map_err(|error| match error {
                VmError::Engine(EngineError::DiskDiverged(reason)) => ExecutorError::Disk(reason),
                error => error.into(),
            })?;
            let at = self.instructions();
            self.progress.instructions.store(at, Ordering::Release);
            match end {
                RunEnd::LimitReached if at >= reached => return Ok(()),
                RunEnd::LimitReached => return Err(ExecutorError::Stuck { at, reached }),
                RunEnd::Paused | RunEnd::Guest(GuestEvent::Panicked | GuestEvent::CrashLoaded) => {}
                RunEnd::Guest(GuestEvent::PowerOff | GuestEvent::Reset) => self.has_ended = true,
                RunEnd::Shutdown { vcpu } => {
                    // The guest is at its end for this execution, so there is one line for each.
                    tracing::warn!(fault = %self.vm.triple_fault(vcpu), "the executed guest is reset by a triple fault");
                    self.has_ended = true;
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
        self.progress.digests.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}
