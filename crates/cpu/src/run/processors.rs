//! [`Processors`]: making, saving and stepping the clock of all processors of a machine.

use std::sync::Arc;

use memory::GuestRam;
use spec::{CpuOffer, CpuProfile};

use crate::block::BlockCache;
use crate::core::{Cpu, tsc_at};
use crate::cpuid::TSC_HZ;
use crate::run::config::CpuConfig;
use crate::run::convert::Place;
use crate::run::state::{ProcessorsState, StateError};

/// Most processors of a machine.
pub const VCPUS_MAX: usize = 64;

/// Most instructions a state can have behind it: centuries, with room to count on.
const INSTRUCTIONS_MAX: u64 = 1 << 62;

/// Why [`Processors::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// As many instructions as asked for were executed.
    BudgetSpent,
    /// The bus asked for its owner's attention (see [`Bus::wants_stop`](crate::Bus::wants_stop)).
    Attention,
    /// No processor can go on before an interrupt comes.
    Halted {
        /// When the first armed timer fires, in ticks of the time-stamp counter.
        deadline_tsc: Option<u64>,
    },
    /// A processor met a triple fault. The machine must be reset.
    Shutdown {
        /// Number of the processor.
        vcpu: u32,
    },
}

pub(super) struct Vcpu {
    pub(super) cpu: Cpu,
    /// Instructions that this processor has retired.
    pub(super) instructions: u64,
}

/// All processors of a machine, run in deterministic turns on one thread.
///
/// What they are after n instructions depends on the state they were made from, on guest memory, on what the bus
/// answered, and on the calls of this interface with the counts at which they came; not on how the n were divided into calls of
/// [`Processors::run`]. An exception that is delivered counts as one instruction, so that a guest that cannot make progress still spends
/// its budget.
pub struct Processors {
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) cache: BlockCache,
    pub(super) ram: GuestRam,
    pub(super) config: CpuConfig,
    pub(super) profile: Arc<CpuProfile>,
    pub(super) turn: usize,
    pub(super) turn_left: u64,
    pub(super) instructions: u64,
    pub(super) clock_steps: u64,
}

impl Processors {
    /// The processors of a state. Nothing is taken from RAM before they run.
    pub fn new(ram: GuestRam, config: CpuConfig, state: &ProcessorsState) -> Result<Self, StateError> {
        let count = state.vcpus.len();
        if count == 0 || count > VCPUS_MAX {
            return Err(StateError::Count(count));
        }
        if state.timers.len() != count {
            return Err(StateError::Timers { vcpus: count, timers: state.timers.len() });
        }
        if state.turn_vcpu as usize >= count {
            return Err(StateError::Turn(state.turn_vcpu));
        }
        if state.instructions > INSTRUCTIONS_MAX {
            return Err(StateError::Instructions(state.instructions));
        }
        if let Some(why) = CpuOffer::soft().refusal(&state.profile) {
            return Err(StateError::Profile(why));
        }
        let profile = Arc::new(state.profile.clone());
        let vcpus = state
            .vcpus
            .iter()
            .zip(&state.timers)
            .enumerate()
            .map(|(number, (vcpu, &timer))| {
                let place = Place { number, count, machine_tsc: state.tsc(), timer, profile: &profile };
                let mut cpu = Cpu::from_state(ram.clone(), vcpu, &place, &config)?;
                // Another engine's time-stamp counter may have had another rate.
                cpu.write_system_time();
                Ok(Vcpu { cpu, instructions: vcpu.instructions })
            })
            .collect::<Result<_, StateError>>()?;
        Ok(Self {
            vcpus,
            cache: BlockCache::new(&ram, config.translate_after),
            ram,
            config,
            profile,
            turn: state.turn_vcpu as usize,
            turn_left: state.turn_left,
            instructions: state.instructions,
            clock_steps: state.clock_steps,
        })
    }

    /// What the processors are now.
    pub fn save(&self) -> ProcessorsState {
        let tsc = self.tsc();
        ProcessorsState {
            vcpus: self.vcpus.iter().map(|vcpu| vcpu.cpu.to_state(tsc, vcpu.instructions)).collect(),
            timers: self.vcpus.iter().map(|vcpu| vcpu.cpu.apic.expiry()).collect(),
            turn_vcpu: self.turn as u32,
            turn_left: self.turn_left,
            instructions: self.instructions,
            clock_steps: self.clock_steps,
            tsc_hz: TSC_HZ,
            profile: (*self.profile).clone(),
        }
    }

    /// What the guest was told that its processors are.
    pub fn profile(&self) -> &CpuProfile {
        &self.profile
    }

    /// Instructions that all processors together have retired.
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// The machine's time-stamp counter: ticks at [`TSC_HZ`].
    pub fn tsc(&self) -> u64 {
        tsc_at(self.instructions, self.clock_steps)
    }

    /// Steps the time-stamp counter forward, for time that passed without instructions.
    pub fn step_clock(&mut self, ticks: u64) {
        self.clock_steps = self.clock_steps.wrapping_add(ticks);
    }

    /// After dirty pages were harvested: makes the next store to each page mark it again.
    pub fn after_harvest(&mut self) {
        for vcpu in &mut self.vcpus {
            vcpu.cpu.tlb.forbid_writes();
        }
    }
}
