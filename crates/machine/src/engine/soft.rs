//! The soft engine: the software processor, on one thread, with an I/O APIC of its own.
//!
//! Everything between two inputs is a function of the state before, so a run is repeated by repeating its inputs at
//! the same instruction counts: see [`InputMode`].

mod pace;

use std::mem;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cpu::{Bus, CpuConfig, Exit, Processors, ProcessorsState};
use memory::Harvest;
use spec::{CpuProfile, EngineKind, Translator};

use self::pace::Pace;
use super::{Engine, EngineError, EngineState, RunEnd};
use crate::clock::ClockReading;
use crate::control::Control;
use crate::devices::ioapic::IoApic;
use crate::input::{Input, Journal, Recorder};
use crate::map;
use crate::platform::Platform;

/// Instructions between two looks at the outside world: a fraction of a millisecond.
const SLICE_INSTRUCTIONS: u64 = 50_000;

/// Where the inputs of a run come from.
#[derive(Clone, Debug, Default)]
pub enum InputMode {
    /// From outside, and from the host's clock.
    #[default]
    Live,
    /// As live, and a recorder is told.
    Record(Arc<dyn Recorder>),
    /// From a journal alone: the world outside and the host's clock have no influence. The run ends with
    /// [`RunEnd::LimitReached`] when the guest waits for something that the journal does not have.
    Replay(Journal),
    /// As replayed, and a recorder is told what enters, at the same counts: it gets what the journal has, or the run is another one.
    Rerecord(Journal, Arc<dyn Recorder>),
}

impl InputMode {
    fn recorder(&self) -> Option<&dyn Recorder> {
        match self {
            Self::Record(recorder) | Self::Rerecord(_, recorder) => Some(&**recorder),
            Self::Live | Self::Replay(_) => None,
        }
    }

    /// Tells the devices.
    fn set_up(&self, platform: &Platform) {
        platform.follow_taken(self.recorder().is_some(), matches!(self, Self::Replay(_) | Self::Rerecord(..)));
    }
}

/// What the host adds to how the soft engine executes, as a number: it does the same with the same inputs on all hosts where this is equal.
/// It is computed once in the life of the process; on an emulated host that takes seconds.
pub fn host_signature() -> u64 {
    static SIGNATURE: OnceLock<u64> = OnceLock::new();
    *SIGNATURE.get_or_init(cpu::float_signature)
}

/// The soft engine.
pub struct SoftEngine {
    platform: Arc<Platform>,
    processors: Processors,
    translator: Translator,
    ioapic: IoApic,
    mode: InputMode,
    pace: Pace,
    /// Nothing has run yet: what the devices had under way when the state was saved comes first.
    is_fresh: bool,
}

impl SoftEngine {
    /// An engine for `platform` that goes on where `state` was saved.
    pub fn new(
        platform: &Arc<Platform>,
        state: &EngineState,
        translator: Translator,
        mode: InputMode,
    ) -> Result<Self, EngineError> {
        let processors = processors(platform, &state.processors, translator)?;
        let pace = Pace::new(processors.tsc());
        let ioapic = IoApic::new(&state.ioapic, platform.pins().levels());
        mode.set_up(platform);
        Ok(Self { platform: platform.clone(), processors, translator, ioapic, mode, pace, is_fresh: true })
    }

    /// Carries the levels of the pins through the I/O APIC to the processors.
    fn carry_interrupts(&mut self, platform: &Platform) {
        self.ioapic.sync(platform.pins().levels());
        while let Some(message) = self.ioapic.next_message() {
            self.processors.interrupt(&message);
        }
    }

    fn enter(&mut self, platform: &Platform, input: &Input) {
        if let Some(recorder) = self.mode.recorder() {
            recorder.entered(self.processors.instructions(), input);
        }
        self.apply(platform, input);
    }

    /// Tells the recorder, if there is one, what the guest took in the slice that has just ended.
    fn record_taken(&self, platform: &Platform) {
        if let Some(recorder) = self.mode.recorder() {
            for input in platform.take_taken() {
                recorder.entered(self.processors.instructions(), &input);
            }
        }
    }

    fn apply(&mut self, platform: &Platform, input: &Input) {
        match input {
            Input::ClockStep(ticks) => self.processors.step_clock(*ticks),
            input => {
                platform.clock().advance_to(self.processors.tsc());
                platform.deliver(input);
            }
        }
        self.carry_interrupts(platform);
    }

    /// Runs at most `budget` instructions; `None` to go on.
    fn run_slice(&mut self, platform: &Platform, budget: u64) -> Result<Option<Slice>, EngineError> {
        if mem::take(&mut self.is_fresh) {
            platform.clock().advance_to(self.processors.tsc());
            platform.carry_on();
            self.carry_interrupts(platform);
        }
        let mut bus = DeviceBus { platform, ioapic: &mut self.ioapic, recorder: self.mode.recorder(), stop: false };
        let exit = self.processors.run(budget, &mut bus);
        self.carry_interrupts(platform);
        self.record_taken(platform);
        if let Some(event) = platform.take_event() {
            return Ok(Some(Slice::End(RunEnd::Guest(event))));
        }
        Ok(match exit {
            Exit::BudgetSpent | Exit::Attention => None,
            Exit::Halted { deadline_tsc } => Some(Slice::Halted { deadline_tsc }),
            Exit::Shutdown { vcpu } => Some(Slice::End(RunEnd::Shutdown { vcpu })),
        })
    }

    fn run_live(&mut self, platform: &Platform, control: &Control, limit: u64) -> Result<RunEnd, EngineError> {
        let mut inputs = Vec::new();
        loop {
            control.acknowledge();
            if control.take_pause() {
                return Ok(RunEnd::Paused);
            }
            if let Some(ticks) = self.pace.behind(self.processors.tsc()) {
                self.enter(platform, &Input::ClockStep(ticks));
            }
            platform.collect_inputs(control, &mut inputs);
            for input in inputs.drain(..) {
                self.enter(platform, &input);
            }
            if let Some(recorder) = self.mode.recorder() {
                recorder.reached(self.processors.instructions());
            }
            let left = limit.saturating_sub(self.processors.instructions());
            if left == 0 {
                return Ok(RunEnd::LimitReached);
            }
            match self.run_slice(platform, SLICE_INSTRUCTIONS.min(left))? {
                None => {}
                Some(Slice::End(end)) => return Ok(end),
                Some(Slice::Halted { deadline_tsc }) => {
                    let timeout = deadline_tsc.map(|deadline| self.pace.until(deadline));
                    if timeout.is_none_or(|timeout| !timeout.is_zero()) {
                        platform.wait_for_input(control, timeout)?;
                    }
                }
            }
        }
    }

    fn run_replay(&mut self, platform: &Platform, journal: &Journal, limit: u64) -> Result<RunEnd, EngineError> {
        loop {
            while let Some(event) = journal.pop_ahead() {
                platform.deliver(&event.input);
            }
            let now = self.processors.instructions();
            let next = journal.next_at();
            if next.is_some_and(|next| next <= now) {
                if let Some(event) = journal.pop() {
                    self.enter(platform, &event.input);
                }
                continue;
            }
            if let Some(recorder) = self.mode.recorder() {
                recorder.reached(now);
            }
            let left = limit.min(next.unwrap_or(u64::MAX)).saturating_sub(now);
            if left == 0 {
                return Ok(RunEnd::LimitReached);
            }
            let slice = self.run_slice(platform, left)?;
            if let Some(reason) = platform.disk_divergence() {
                return Err(EngineError::DiskDiverged(reason));
            }
            match slice {
                None => {}
                Some(Slice::End(end)) => return Ok(end),
                // Waiting for an event that would have to enter at this very count.
                Some(Slice::Halted { .. }) if self.processors.instructions() == now => return Ok(RunEnd::LimitReached),
                Some(Slice::Halted { .. }) => {}
            }
        }
    }
}

fn processors(platform: &Platform, state: &ProcessorsState, translator: Translator) -> Result<Processors, EngineError> {
    let mut config = CpuConfig { power_on_unix_ns: platform.clock().power_on_unix_ns(), ..CpuConfig::default() };
    if translator == Translator::Off {
        config.translate_after = None;
    }
    Processors::new(platform.ram().clone(), config, state).map_err(|error| EngineError::State(error.to_string()))
}

/// How a slice ended, where it did not simply use up its budget.
enum Slice {
    End(RunEnd),
    Halted { deadline_tsc: Option<u64> },
}

impl Engine for SoftEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Soft
    }

    fn run(&mut self, control: &Control, instructions_max: Option<u64>) -> Result<RunEnd, EngineError> {
        let platform = &*self.platform.clone();
        let limit = instructions_max.unwrap_or(u64::MAX);
        self.carry_interrupts(platform);
        let end = match self.mode.clone() {
            InputMode::Live | InputMode::Record(_) => self.run_live(platform, control, limit),
            InputMode::Replay(journal) | InputMode::Rerecord(journal, _) => self.run_replay(platform, &journal, limit),
        };
        // So that the platform is not saved with the time of its last device access: another engine goes on from there.
        platform.clock().advance_to(self.processors.tsc());
        end
    }

    fn save(&mut self) -> Result<EngineState, EngineError> {
        Ok(EngineState { processors: self.processors.save(), ioapic: self.ioapic.save() })
    }

    fn clock(&mut self) -> Result<ClockReading, EngineError> {
        let at = Instant::now();
        let shows = self.pace.tsc_at(at).max(self.processors.tsc());
        Ok(ClockReading { shows: Duration::from_nanos(shows), at })
    }

    fn go_on_from(&mut self, clock: ClockReading) -> Result<(), EngineError> {
        self.pace = Pace::of(clock);
        Ok(())
    }

    fn harvest(&mut self) -> Result<Harvest, EngineError> {
        self.processors.after_harvest();
        Ok(self.platform.ram().harvest())
    }

    fn ask_before_writes(&mut self) {
        self.processors.after_harvest();
    }

    fn profile(&self) -> &CpuProfile {
        self.processors.profile()
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.processors.instructions())
    }

    fn set_input_mode(&mut self, mode: InputMode) -> Result<(), EngineError> {
        let state = self.save()?;
        self.processors = processors(&self.platform, &state.processors, self.translator)?;
        self.ioapic = IoApic::new(&state.ioapic, self.platform.pins().levels());
        mode.set_up(&self.platform);
        self.mode = mode;
        Ok(())
    }
}

/// Devices as the processors see them during a slice.
struct DeviceBus<'a> {
    platform: &'a Platform,
    ioapic: &'a mut IoApic,
    recorder: Option<&'a dyn Recorder>,
    stop: bool,
}

impl DeviceBus<'_> {
    fn before(&mut self, tsc: u64) {
        self.platform.clock().advance_to(tsc);
    }

    /// The processors must stop if the access changed what only the owner of both can carry on.
    fn after(&mut self) {
        self.ioapic.sync(self.platform.pins().levels());
        let is_recorder_waiting = self.recorder.is_some_and(|recorder| recorder.is_waiting());
        let is_anything_told = self.platform.has_event() || self.platform.has_taken();
        self.stop |= self.ioapic.has_message() || is_anything_told || is_recorder_waiting;
    }
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address.checked_sub(map::IO_APIC).filter(|&offset| offset < map::IO_APIC_LEN)
}

impl Bus for DeviceBus<'_> {
    fn mmio_read(&mut self, tsc: u64, address: u64, data: &mut [u8]) {
        self.before(tsc);
        match ioapic_offset(address) {
            Some(offset) => crate::bus::BusDevice::read(self.ioapic, offset, data),
            None => self.platform.mmio_read(address, data),
        }
        self.after();
    }

    fn mmio_write(&mut self, tsc: u64, address: u64, data: &[u8]) {
        self.before(tsc);
        match ioapic_offset(address) {
            Some(offset) => crate::bus::BusDevice::write(self.ioapic, offset, data),
            None => self.platform.mmio_write(address, data),
        }
        self.after();
    }

    fn port_read(&mut self, tsc: u64, port: u16, data: &mut [u8]) {
        self.before(tsc);
        self.platform.port_read(port, data);
        self.after();
    }

    fn port_write(&mut self, tsc: u64, port: u16, data: &[u8]) {
        self.before(tsc);
        self.platform.port_write(port, data);
        self.after();
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
        self.stop |= self.ioapic.has_message();
    }

    fn wants_stop(&mut self) -> bool {
        std::mem::take(&mut self.stop)
    }
}
