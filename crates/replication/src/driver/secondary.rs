//! [`Secondary`]: the replica that can take over at any moment.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use machine::input::Input;
use machine::vm::{VmConfig, VmState};
use memory::{GuestRam, MemoryError};
use network::InputPosition;
use protocol::{Arbiter, Epoch, LossReason, Replica, Status, StopReason};
use spec::EngineKind;

use super::MirrorOptions;
use super::follower::Follower;
use super::message::{ExecutionFormat, HELLO, Hello, WELCOME, Welcome};
use crate::channel::{ChannelError, Connection, Listener, Receiver, Sender};
use crate::disk::{DiskApplier, DiskSet, DiskSyncError};
use crate::gate::GatedFrame;

/// How long a primary that has connected may take to say what the VM is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Suspicion times that make sense, in milliseconds.
const SUSPICION_MS: RangeInclusive<u32> = 20..=60_000;
/// Disk writes that wait to be applied, in bytes; beyond that the primary is slowed down.
const APPLIER_BYTES_MAX: u64 = 64 << 20;

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
    /// The VM's memory.
    pub ram: GuestRam,
    /// vCPUs and devices; the clock has caught up with real time.
    pub state: VmState,
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
    /// How long arbitration took, once the disks were up to date.
    pub arbitration: Duration,
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

/// Why a connection is not that of the primary.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("it does not begin as a primary does")]
    NotAPrimary,
    #[error("{peer} says that it is {claimed}")]
    Name { peer: String, claimed: String },
    #[error("the secondary cannot hold the VM: {0}")]
    Unfit(String),
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
pub struct SecondaryHandle(Arc<Mutex<SecondaryStatus>>);

impl SecondaryHandle {
    /// How it is.
    pub fn status(&self) -> SecondaryStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut SecondaryStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Secondary {
    /// A secondary without a primary.
    ///
    /// # Errors
    /// [`SecondaryError`].
    pub fn new(parts: SecondaryParts) -> Result<Self, SecondaryError> {
        let ram = GuestRam::with_backing(parts.config.memory_bytes, &parts.config.backing)?;
        let applier = DiskApplier::start(parts.disks.clone(), APPLIER_BYTES_MAX)?;
        let status =
            SecondaryStatus { protocol: parts.replica.status(), primary: None, epoch: None, unreleased_epochs: 0 };
        Ok(Self { parts, ram, applier, status: SecondaryHandle(Arc::new(Mutex::new(status))) })
    }

    /// To look at it while it runs.
    pub fn handle(&self) -> SecondaryHandle {
        self.status.clone()
    }

    /// Waits for a primary, follows it, and takes over when it is lost.
    pub fn run(self) -> SecondaryEnd {
        loop {
            let greeted =
                self.parts.listener.accept().map_err(Refusal::from).and_then(|connection| self.greet(connection));
            match greeted {
                Ok((hello, sender, receiver, closer)) => {
                    self.status.update(|status| status.primary = Some(hello.primary.to_string()));
                    return Follower::new(self, &hello, sender, closer).follow(receiver);
                }
                // Whoever cannot prove to be the primary is turned away; the real one can still come.
                Err(error) => {
                    tracing::warn!(%error, "a connection was refused");
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    fn greet(&self, connection: Connection) -> Result<(Hello, Sender, Receiver, crate::channel::Closer), Refusal> {
        let peer = connection.peer().to_owned();
        let (mut sender, mut receiver, closer) = connection.split();
        let hello = match receiver.recv(Some(HELLO_TIMEOUT))? {
            Some(frame) if frame.kind == HELLO => {
                postcard::from_bytes::<Hello>(frame.payload).map_err(|_| Refusal::NotAPrimary)?
            }
            _ => return Err(Refusal::NotAPrimary),
        };
        if hello.primary.as_str() != peer {
            return Err(Refusal::Name { peer, claimed: hello.primary.to_string() });
        }
        let unfit = self.unfit(&hello);
        let executes = hello.execution == ExecutionFormat::here();
        let answer = unfit.clone().map_or(Welcome::Accepted { executes }, Welcome::Refused);
        let answer = postcard::to_stdvec(&answer).map_err(|_| Refusal::NotAPrimary)?;
        sender.send(WELCOME, &[&answer])?;
        sender.flush()?;
        match unfit {
            None => Ok((hello, sender, receiver, closer)),
            Some(reason) => Err(Refusal::Unfit(reason)),
        }
    }

    fn unfit(&self, hello: &Hello) -> Option<String> {
        let parts = &self.parts;
        if !SUSPICION_MS.contains(&hello.suspicion_ms) {
            return Some(format!("a suspicion time of {} ms makes no sense", hello.suspicion_ms));
        }
        if !hello.config.is_same_hardware(&parts.config) {
            return Some(format!("it was set up for {:?}, not for {:?}", parts.config, hello.config));
        }
        if hello.engine != parts.engine {
            return Some(format!("the engine is {} here and {} there", parts.engine, hello.engine));
        }
        match machine::engine::cpu_offer(parts.engine) {
            Ok(offer) => offer.refusal(&hello.profile),
            Err(error) => Some(error.to_string()),
        }
    }
}
