//! [`Vm`]: one virtual machine, put together.

mod snapshot;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cpu::ProcessorsState;
use memory::{GuestRam, Harvest, MemoryError};
use serde::{Deserialize, Serialize};
use spec::{CpuLevel, CpuProfile, EngineKind, MemoryBacking, Translator};

use crate::acpi::AcpiError;
use crate::boot::BootError;
use crate::boot::linux::LinuxBoot;
use crate::clock::ClockReading;
use crate::control::Control;
use crate::device_meter::DeviceMeter;
use crate::devices::ioapic::IoApicState;
use crate::digest::{Digest, StateHasher};
use crate::engine::kvm::KvmEngine;
use crate::engine::soft::{InputMode, SoftEngine};
use crate::engine::{DirtyLog, Engine, EngineError, EngineState, RunEnd};
use crate::generation::GenerationId;
use crate::platform::{Parts, Platform, PlatformError, PlatformState};
use crate::snapshot::format::FormatError;
use crate::triple_fault::TripleFault;

pub use self::snapshot::{FrozenVm, Snapshot, SnapshotContent, SnapshotHead, SnapshotPlace};

/// The hardware of a VM, apart from what [`Parts`] connects it to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Name, for messages.
    pub name: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// How much of a processor it is given at power-on.
    pub cpu: CpuLevel,
    /// What this host makes the memory of. That is no part of a VM: a snapshot does not say it, and replicas may differ in it.
    #[serde(skip)]
    pub backing: MemoryBacking,
    /// Whether the soft engine translates hot code. That is no part of a VM either.
    #[serde(skip)]
    pub translator: Translator,
}

impl VmConfig {
    /// Whether a guest would find the same hardware.
    pub fn is_same_hardware(&self, other: &Self) -> bool {
        let hardware = |config: &Self| Self {
            backing: MemoryBacking::default(),
            translator: Translator::default(),
            ..config.clone()
        };
        hardware(self) == hardware(other)
    }
}

/// What a VM starts with.
#[derive(Clone, Debug)]
pub enum Boot<'a> {
    /// Linux.
    Linux {
        /// bzImage or vmlinux.
        kernel: &'a [u8],
        /// Initial RAM disk.
        initrd: Option<&'a [u8]>,
        /// Kernel command line.
        command_line: &'a str,
    },
    /// A bare-metal program at an address, entered at its first byte with RSI as given.
    Flat {
        /// The program.
        program: &'a [u8],
        /// Its guest-physical address.
        address: u64,
        /// RSI at its start.
        rsi: u64,
    },
}

/// Why a VM cannot be made, run or saved.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Its ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Its devices.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Its engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its snapshot.
    #[error(transparent)]
    Snapshot(#[from] FormatError),
    /// A snapshot of disks, where memory is needed, or the other way round.
    #[error("{}", if *has_memory { "it is of a running VM, memory included" } else { "it holds disks alone, and no memory to go on from" })]
    Kind {
        /// Whether the snapshot has memory.
        has_memory: bool,
    },
    /// More vCPUs than the engine runs.
    #[error("the {engine} engine runs 1 to {cpus_max} vCPUs, not {cpus}")]
    Cpus {
        /// The engine.
        engine: EngineKind,
        /// vCPUs asked for.
        cpus: u32,
        /// Most vCPUs.
        cpus_max: u32,
    },
    /// The host refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The state of a paused VM without its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// vCPUs and interrupt controllers.
    pub engine: EngineState,
    /// Devices.
    pub platform: PlatformState,
}

impl VmState {
    /// The state as if `step_ns` nanoseconds of real time had passed while the VM was paused: for one that goes on in real time where another
    /// was lost. Every clock that the guest can read, time-stamp counters, the paravirtual clock and the devices' clock, is that much
    /// ahead and none goes back. Timers stay armed for the same moment: those that are due by then fire once, as soon as the guest
    /// runs, also periodic ones that were due more often.
    pub fn advance_clock(&mut self, step_ns: u64) {
        self.engine.processors.advance_clock(step_ns);
        self.platform.clock_ns = self.platform.clock_ns.saturating_add(step_ns);
    }

    /// The state as if the VM had been paused until this moment, in nanoseconds since the Unix epoch: its clocks are ahead by what they are behind
    /// the host's ([`Self::advance_clock`]), and its real-time clock shows the host's time. Where the host's clock is behind the guest's, the
    /// real-time clock alone goes back.
    pub fn catch_up(&mut self, unix_ns: u64) {
        let saved_ns = self.platform.power_on_unix_ns.saturating_add(self.platform.clock_ns);
        self.advance_clock(unix_ns.saturating_sub(saved_ns));
        self.platform.power_on_unix_ns = unix_ns.saturating_sub(self.platform.clock_ns);
    }
}

/// Most vCPUs the soft engine runs: they take turns on one host thread.
const SOFT_CPUS_MAX: u32 = 4;

/// One virtual machine: memory, devices, engine.
pub struct Vm {
    config: VmConfig,
    platform: Arc<Platform>,
    engine: Box<dyn Engine>,
    control: Arc<Control>,
}

impl Vm {
    /// A VM at power-on, with its guest in memory.
    pub fn boot(
        config: VmConfig,
        boot: &Boot,
        parts: Parts,
        engine: EngineKind,
        mode: InputMode,
    ) -> Result<Self, VmError> {
        check_cpus(engine, config.cpus)?;
        let ram = GuestRam::with_backing(config.memory_bytes, &config.backing)?;
        let platform = Platform::new(&ram, unix_now_ns(), parts)?;
        let start = match boot {
            Boot::Linux { kernel, initrd, command_line } => {
                let rsdp = crate::acpi::write_tables(&ram, &platform.acpi_config(config.cpus))?;
                GenerationId::random()?.write(&ram)?;
                crate::boot::linux::load(&ram, &LinuxBoot { kernel, initrd: *initrd, command_line, rsdp })?
            }
            Boot::Flat { program, address, rsi } => crate::boot::flat::load(&ram, program, *address, *rsi)?,
        };
        let mut processors = ProcessorsState::reset(config.cpus);
        processors.profile = crate::engine::cpu_profile(engine, config.cpu)?;
        if engine == EngineKind::Kvm {
            // Whatever rate the host's time-stamp counter has.
            processors.tsc_hz = 0;
        }
        if let Some(first) = processors.vcpus.first_mut() {
            *first = start.vcpu();
        }
        let state = EngineState { processors, ioapic: IoApicState::default() };
        Self::assemble(config, platform, &state, engine, mode)
    }

    fn assemble(
        config: VmConfig,
        mut platform: Platform,
        state: &EngineState,
        engine: EngineKind,
        mode: InputMode,
    ) -> Result<Self, VmError> {
        if engine == EngineKind::Kvm {
            platform.queue_requests()?;
        }
        let platform = Arc::new(platform);
        let engine: Box<dyn Engine> = match engine {
            EngineKind::Kvm => Box::new(KvmEngine::new(&platform, state)?),
            EngineKind::Soft => Box::new(SoftEngine::new(&platform, state, config.translator, mode)?),
        };
        Ok(Self { config, platform, engine, control: Control::new()? })
    }

    /// The hardware.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Which engine runs it.
    pub fn engine(&self) -> EngineKind {
        self.engine.kind()
    }

    /// What the guest was told at power-on that its processors are: a host that is to hold the VM has to be able to be that.
    pub fn profile(&self) -> &CpuProfile {
        self.engine.profile()
    }

    /// Instructions retired since power-on, where the engine counts them.
    pub fn instructions(&self) -> Option<u64> {
        self.engine.instructions()
    }

    /// Memory and devices.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// How others reach the VM while it runs.
    pub fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    /// Runs until the guest ends the run, a pause is asked for, or (soft engine) so many instructions in all have retired since
    /// power-on.
    pub fn run(&mut self, instructions_max: Option<u64>) -> Result<RunEnd, VmError> {
        Ok(self.engine.run(&self.control, instructions_max)?)
    }

    /// What is known of the triple fault that ended a run ([`RunEnd::Shutdown`]) on this vCPU.
    pub fn triple_fault(&mut self, vcpu: u32) -> TripleFault {
        // That the guest crashed is news also where its state cannot be read.
        let state = self.engine.save().ok();
        let state = state.as_ref().and_then(|state| state.processors.vcpus.get(vcpu as usize));
        state.map_or(TripleFault { vcpu, place: None }, |state| TripleFault::of(vcpu, state))
    }

    /// How long the vCPUs took to stand still at the end of the last run.
    pub fn stop_time(&self) -> Duration {
        self.engine.stop_time()
    }

    /// The state of the paused VM, without its memory.
    pub fn save(&mut self) -> Result<VmState, VmError> {
        // In pause order: the vCPUs are out of the guest already, then the devices, then pending interrupts.
        let platform = self.platform.save();
        Ok(VmState { engine: self.engine.save()?, platform })
    }

    /// What the clock of the paused VM shows: where it stands in the state, or further, as it goes with the host's.
    ///
    /// # Errors
    /// [`EngineError`] if it cannot be read.
    pub fn clock(&mut self) -> Result<ClockReading, VmError> {
        Ok(self.engine.clock()?)
    }

    /// Lets the clock of a VM that was just restored go on from a reading of where it was lost, rather than from its state and the moment at which
    /// it was made: whatever making it took is no time that the guest misses. No clock goes back.
    ///
    /// # Errors
    /// [`EngineError`] if it cannot be set.
    pub fn go_on_from(&mut self, clock: ClockReading) -> Result<(), VmError> {
        Ok(self.engine.go_on_from(clock)?)
    }

    /// A VM in a saved state, with `ram` as it was then.
    pub fn restore(
        config: VmConfig,
        ram: &GuestRam,
        state: VmState,
        parts: Parts,
        engine: EngineKind,
        mode: InputMode,
    ) -> Result<Self, VmError> {
        check_cpus(engine, config.cpus)?;
        if state.engine.processors.vcpus.len() != config.cpus as usize {
            return Err(EngineError::State(format!(
                "it holds {} vCPUs, the VM has {}",
                state.engine.processors.vcpus.len(),
                config.cpus
            ))
            .into());
        }
        let platform = Platform::restore(ram, state.platform, parts)?;
        Self::assemble(config, platform, &state.engine, engine, mode)
    }

    /// Gives back to a VM that was just booted the generation ID that it had before a reset.
    ///
    /// # Errors
    /// [`VmError::Memory`] if its memory is too small for one.
    pub fn keep_generation(&self, id: GenerationId) -> Result<(), VmError> {
        Ok(id.write(self.platform.ram())?)
    }

    /// Makes a VM that was restored from a snapshot, and has not run since, one of its own: it gets a new generation ID, and the event that tells
    /// its kernel; and what watches for hangs in it is told that it stood still.
    ///
    /// # Errors
    /// [`VmError::Memory`] if its memory is too small for an ID; [`VmError::Engine`] if its state cannot be read.
    pub fn begin_generation(&mut self, id: GenerationId) -> Result<(), VmError> {
        cpu::tell_stopped(&self.engine.save()?.processors.vcpus, self.platform.ram());
        id.write(self.platform.ram())?;
        self.platform.announce_generation();
        Ok(())
    }

    /// Changes where the inputs of the paused VM come from. From here on its engine is like one that was just made from the saved state, so
    /// that a VM restored from that state elsewhere does exactly the same with the same inputs.
    ///
    /// # Errors
    /// [`EngineError::NoCount`] for an engine that does not count instructions.
    pub fn set_input_mode(&mut self, mode: InputMode) -> Result<(), VmError> {
        Ok(self.engine.set_input_mode(mode)?)
    }

    /// Takes the dirty pages of the paused VM's memory, those that only its engine knows included.
    ///
    /// # Errors
    /// [`EngineError`] if the engine cannot say what was written.
    pub fn harvest(&mut self) -> Result<Harvest, VmError> {
        Ok(self.engine.harvest()?)
    }

    /// The log of what vCPUs write, where the engine keeps one outside of guest RAM.
    pub fn dirty_log(&self) -> Option<Arc<dyn DirtyLog>> {
        self.engine.dirty_log()
    }

    /// What reads what its devices do while it runs.
    pub fn device_meter(&self) -> DeviceMeter {
        DeviceMeter::new(self.platform.clone())
    }

    /// A digest of everything the paused VM is: state and memory. Equal digests mean equal VMs. Frames that wait for room in the
    /// host's network are no part of it: how many do depends on the host.
    pub fn digest(&mut self) -> Result<Digest, VmError> {
        let mut state = self.save()?;
        for card in &mut state.platform.cards {
            card.device.waiting_tx.clear();
        }
        let mut hasher = StateHasher::new();
        hasher.value(&state).map_err(|error| EngineError::State(error.to_string()))?;
        hasher.memory(self.platform.ram());
        Ok(hasher.finish())
    }
}

fn check_cpus(engine: EngineKind, cpus: u32) -> Result<(), VmError> {
    let cpus_max = match engine {
        EngineKind::Soft => SOFT_CPUS_MAX,
        EngineKind::Kvm => spec::VCPUS_MAX,
    };
    if (1..=cpus_max).contains(&cpus) { Ok(()) } else { Err(VmError::Cpus { engine, cpus, cpus_max }) }
}

/// The host's time of day, in nanoseconds since the Unix epoch.
pub fn unix_now_ns() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}
