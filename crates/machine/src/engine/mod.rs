//! What executes vCPUs: one trait, two engines.
//!
//! An [`Engine`] owns the vCPUs and the interrupt controllers of one VM. It runs them against the
//! [`Platform`](crate::platform::Platform) that it was made for, which holds memory and devices, until somebody asks for a pause through
//! [`Control`] or the guest ends the run by itself. Paused, it gives its state in the neutral form that every engine
//! starts from.

pub mod kvm;
pub mod soft;

use std::sync::Arc;
use std::time::Duration;

use cpu::ProcessorsState;
use memory::Harvest;
use serde::{Deserialize, Serialize};
use spec::{CpuLevel, CpuOffer, CpuProfile, EngineKind};

use self::soft::InputMode;
use crate::clock::ClockReading;
use crate::control::Control;
use crate::devices::ioapic::IoApicState;
use crate::events::GuestEvent;

/// Which processors an engine can be on this host.
///
/// # Errors
/// [`EngineError::Kvm`] if there is no KVM to ask.
pub fn cpu_offer(engine: EngineKind) -> Result<CpuOffer, EngineError> {
    match engine {
        EngineKind::Kvm => kvm::cpu_offer(),
        EngineKind::Soft => Ok(CpuOffer::soft()),
    }
}

/// The processor of a VM that is powered on here.
///
/// # Errors
/// [`EngineError::CpuLevel`] or [`EngineError::SoftCpuLevel`] if the engine cannot be that much of a processor on this host.
pub fn cpu_profile(engine: EngineKind, level: CpuLevel) -> Result<CpuProfile, EngineError> {
    match (engine, level) {
        (EngineKind::Kvm, level) => kvm::cpu_profile(level),
        (EngineKind::Soft, CpuLevel::Portable) => Ok(CpuProfile::in_order()),
        (EngineKind::Soft, level) => Err(EngineError::SoftCpuLevel(level)),
    }
}

/// vCPUs and interrupt controllers in neutral form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineState {
    /// The vCPUs, whose turn it is, and the clock.
    pub processors: ProcessorsState,
    /// The I/O APIC.
    pub ioapic: IoApicState,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// A pause was asked for.
    Paused,
    /// The instruction count given to [`Engine::run`] is reached.
    LimitReached,
    /// The guest asked for something that ends the run.
    Guest(GuestEvent),
    /// A vCPU met an exception that it could not deliver (a triple fault), as after a guest's reset by that means.
    Shutdown {
        /// The vCPU.
        vcpu: u32,
    },
}

/// Why an engine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host's virtualization does not do what is needed.
    #[error("KVM: {what}: {source}")]
    Kvm {
        /// The call that failed.
        what: &'static str,
        /// The host's error.
        source: std::io::Error,
    },
    /// KVM gave up on the guest.
    #[error("KVM cannot continue the guest: {0}")]
    KvmExit(String),
    /// A device or the engine panicked while it worked for a vCPU.
    #[error("the thread of vCPU {vcpu} panicked: {message}")]
    VcpuPanicked {
        /// The vCPU.
        vcpu: usize,
        /// What the panic said.
        message: String,
    },
    /// The state does not fit this engine.
    #[error("the VM's state does not fit this engine: {0}")]
    State(String),
    /// The VM's processor cannot be had here.
    #[error("the {engine} engine of this host cannot run the VM, because {why}")]
    Profile {
        /// The engine.
        engine: EngineKind,
        /// A clause that goes on after "because".
        why: String,
    },
    /// The level asked for is more than the host has.
    #[error("cpu = \"{level}\": this host's KVM does not offer {missing}")]
    CpuLevel {
        /// The level.
        level: CpuLevel,
        /// What of it is missing.
        missing: String,
    },
    /// The level asked for is more than the software processor is.
    #[error("cpu = \"{0}\" needs the kvm engine: the software processor is the portable one")]
    SoftCpuLevel(CpuLevel),
    /// A replay is not what was recorded, as the host did with a disk what it had not done then.
    #[error("this is not the run that was recorded: {0}")]
    DiskDiverged(String),
    /// Only an engine that counts instructions can record inputs.
    #[error("the {0} engine does not count instructions: inputs can be neither recorded nor replayed")]
    NoCount(EngineKind),
    /// The host refused something else.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What vCPUs write, logged by somebody else than this process, to be asked also while they run.
///
/// Dirty pages can be harvested while vCPUs run, and copied only then: what is written to one of them from there on is logged anew, so that a copy
/// that missed it is replaced by a later one.
pub trait DirtyLog: Send + Sync {
    /// Marks the pages logged so far in guest RAM, so that [`memory::GuestRam::dirty_pages_estimate`] counts them. Cheap where the host
    /// allows it.
    fn observe(&self) -> Result<(), EngineError>;

    /// Takes the dirty pages of guest RAM, those logged so far included, and begins anew: the next write to any page is logged. It is one step for
    /// whoever observes meanwhile: a page that is logged while it is under way, whose write may not have happened yet, is not taken.
    fn harvest(&self) -> Result<Harvest, EngineError>;

    /// Keeps no log until one of the other calls, which counts all pages as written.
    fn stop(&self) -> Result<(), EngineError>;
}

/// Runs the vCPUs of one VM.
pub trait Engine: Send {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;

    /// Runs until the guest ends the run, a pause is asked for, or (where the engine counts them) `instructions_max`
    /// instructions in all have retired since power-on.
    fn run(&mut self, control: &Control, instructions_max: Option<u64>) -> Result<RunEnd, EngineError>;

    /// How long the vCPUs took to stand still at the end of the last run: nothing where they run on the thread that asks.
    fn stop_time(&self) -> Duration {
        Duration::ZERO
    }

    /// The state of a paused VM.
    fn save(&mut self) -> Result<EngineState, EngineError>;

    /// What the clock of a paused VM shows. Its state may be behind that until the guest runs again.
    fn clock(&mut self) -> Result<ClockReading, EngineError>;

    /// Lets the clock of a VM that has not run yet go on from a reading; what it shows already stays.
    fn go_on_from(&mut self, clock: ClockReading) -> Result<(), EngineError>;

    /// Takes the dirty pages of a paused VM's RAM, those that only the engine knows included, and starts the next round of tracking. An
    /// engine may begin to keep track of writes with the first call; then all pages count as written before it.
    fn harvest(&mut self) -> Result<Harvest, EngineError>;

    /// Has vCPUs of a paused VM ask before the next write to each page, where they can ([`EngineKind::can_freeze_pages`]): for whoever freezes pages
    /// without a harvest. The guest sees nothing of it.
    fn ask_before_writes(&mut self) {}

    /// What the guest was told at power-on that its processors are.
    fn profile(&self) -> &CpuProfile;

    /// The log of what vCPUs write, where that is not marked in guest RAM at once.
    fn dirty_log(&self) -> Option<Arc<dyn DirtyLog>> {
        None
    }

    /// Instructions retired since power-on, where the engine counts them.
    fn instructions(&self) -> Option<u64>;

    /// Changes where the inputs of a paused VM come from. From here on the engine is like one that was just made from the saved state, with
    /// nothing cached.
    fn set_input_mode(&mut self, mode: InputMode) -> Result<(), EngineError>;
}
