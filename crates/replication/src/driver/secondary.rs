//! [`Secondary`]: the replica that can take over at any moment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machine::input::Input;
use machine::vm::{Vm, VmConfig, VmState};
use memory::{GuestRam, MemoryError};
use network::InputPosition;
use protocol::{Arbiter, Epoch, LossReason, Replica, Status, StopReason, Watched};
use spec::EngineKind;

use super::MirrorOptions;
use super::follower::Follower;
use super::message::ExecutionFormat;
use super::reception::{Greeted, Reception};
use crate::channel::Listener;
use crate::disk::{DiskApplier, DiskSet, DiskSyncError};
use crate::gate::GatedFrame;

/// Disk writes that wait to be applied, in bytes; beyond that the primary is slowed down.
const APPLIER_BYTES_MAX: u64 = 64 << 20;

/// Makes the VM of what a secondary holds, as far as that goes before this replica may have the network to itself: what could fail has been
/// done then. Called before the store is asked, and again if the VM could not be made at first; answers why it could not be run here now.
pub type MakeVm = Box<dyn FnMut(&GuestRam, VmState) -> Result<Vm, String> + Send>;

/// What a secondary is made of.
pub struct SecondaryParts {
    /// The protocol's state, in the role of a secondary.
    pub replica: Replica,
    /// Where the primary will connect.
    pub listener: Listener,
    /// The hardware of the VM it is for.
    pub config: VmConfig,
    /// What would execute the vCPUs here.
    pub engine: EngineKind,
    /// Its copies of the disks.
    pub disks: DiskSet,
    /// Makes the VM.
    pub make_vm: MakeVm,
    /// Who decides which replica goes on alone.
    pub arbiter: Arc<dyn Arbiter>,
    /// Times and bounds.
    pub options: MirrorOptions,
}

/// What became of a secondary.
pub enum SecondaryEnd {
    /// It is the primary now, and has to run the VM.
    TakenOver(Box<TakenOver>),
    /// The guest has powered off; there is nothing to take over.
    Ended,
    /// It is of no use any more.
    Stopped {
        /// In the protocol's words.
        reason: StopReason,
        /// What happened, in a sentence.
        why: String,
    },
}

/// Everything that a new primary starts from.
pub struct TakenOver {
    /// The protocol's state, in the role of the primary now.
    pub replica: Replica,
    /// The epoch that the state ends.
    pub epoch: Epoch,
    /// The VM, made of the state that was held; its clock has caught up with real time.
    pub vm: Vm,
    /// Committed output that may not have left.
    pub output: Vec<GatedFrame>,
    /// What came in after the checkpoint.
    pub inputs: Vec<Input>,
    /// How far the guest is fed, per card, inputs included.
    pub positions: Vec<InputPosition>,
    /// Why the primary was given up.
    pub loss: LossReason,
    /// From its last sign of life to its being given up.
    pub detection: Duration,
    /// How long arbitration took, once the VM was made.
    pub arbitration: Duration,
    /// How long it took to make the VM.
    pub restore: Duration,
}

/// What a secondary says of itself.
#[derive(Clone, Debug)]
pub struct SecondaryStatus {
    /// Role, generation and state.
    pub protocol: Status,
    /// Who is primary, once one has connected.
    pub primary: Option<String>,
    /// Last epoch whose checkpoint it holds.
    pub epoch: Option<Epoch>,
    /// Committed checkpoints whose output the primary may not have released.
    pub unreleased_epochs: u64,
    /// What the way to the primary is like, once one has connected.
    pub watched: Option<Watched>,
    /// Why it could not run the VM when it was to take over.
    pub obstacle: Option<String>,
}

/// Why a secondary cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SecondaryError {
    /// No room for the VM's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The disks cannot be written by a thread of their own.
    #[error(transparent)]
    Disk(#[from] DiskSyncError),
}

/// A replica that holds a VM it does not run.
pub struct Secondary {
    pub(super) parts: SecondaryParts,
    pub(super) ram: GuestRam,
    pub(super) applier: DiskApplier,
    pub(super) status: SecondaryHandle,
}

/// To look at a secondary from other threads.
#[derive(Clone)]
pub struct SecondaryHandle {
    status: Arc<Mutex<SecondaryStatus>>,
    reaches_network: Arc<AtomicBool>,
}

impl SecondaryHandle {
    /// What the protocol says of the replica, and how far it has come.
    pub fn status(&self) -> SecondaryStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says whether all network ends can be reached here, which the primary is told.
    pub fn set_reaches_network(&self, reaches: bool) {
        self.reaches_network.store(reaches, Ordering::Release);
    }

    pub(super) fn reaches_network(&self) -> bool {
        self.reaches_network.load(Ordering::Acquire)
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut SecondaryStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Secondary {
    /// A secondary without a primary.
    ///
    /// # Errors
    /// [`SecondaryError`].
    pub fn new(parts: SecondaryParts) -> Result<Self, SecondaryError> {
        ExecutionFormat::find_out();
        let ram = GuestRam::with_backing(parts.config.memory_bytes, &parts.config.backing)?;
        let applier = DiskApplier::start(parts.disks.clone(), APPLIER_BYTES_MAX)?;
        let status = SecondaryStatus {
            protocol: parts.replica.status(),
            primary: None,
            epoch: None,
            unreleased_epochs: 0,
            watched: None,
            obstacle: None,
        };
        let status = SecondaryHandle { status: Arc::new(Mutex::new(status)), reaches_network: Arc::new(true.into()) };
        Ok(Self { parts, ram, applier, status })
    }

    /// To look at it while it runs.
    pub fn handle(&self) -> SecondaryHandle {
        self.status.clone()
    }

    /// Waits for a primary, follows it, and takes over when it is lost.
    pub fn run(self) -> SecondaryEnd {
        let SecondaryParts { listener, config, engine, arbiter, .. } = &self.parts;
        let reception = Reception { listener, config, engine: *engine, arbiter: &**arbiter };
        let Greeted { hello, sender, receiver, closer } = reception.wait_for_primary();
        self.status.update(|status| status.primary = Some(hello.primary.to_string()));
        Follower::new(self, &hello, sender, closer).follow(receiver)
    }
}
