//! [`Processors`] and its run loop.

use memory::{GuestRam, PAGE_BYTES};

use crate::block::{BlockCache, Built, build, build_across_pages};
use crate::bus::Bus;
use crate::core::{Cpu, tsc_at};
use crate::flags::bit;
use crate::op::{Stop, vector};
use crate::run::execute::{Leave, execute, run_ops};
use crate::run::state::{ProcessorsState, StateError};
use crate::state::RunState;

/// Most processors of a machine.
pub const VCPUS_MAX: usize = 64;
/// Ticks of the time-stamp counter a second.
pub const TSC_HZ: u64 = 1_000_000_000;

/// What of a machine's processors is fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// Wall-clock time of power-on, when the time-stamp counter was 0, in nanoseconds since the Unix epoch.
    pub power_on_unix_ns: u64,
    /// Instructions that a processor executes before the next one's turn.
    pub turn_instructions: u64,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self { power_on_unix_ns: 0, turn_instructions: 20_000 }
    }
}

/// Why [`Processors::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// As many instructions as asked for were executed.
    BudgetSpent,
    /// The bus asked for its owner's attention (see [`Bus::wants_stop`]).
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
    instructions: u64,
}

/// All processors of a machine, run in deterministic turns on one thread.
///
/// What they are after n instructions depends on the state they were made from, on guest memory, on what the bus
/// answered, and on the calls of this interface with the counts at which they came; not on how the n were divided into calls of
/// [`Processors::run`]. An exception that is delivered counts as one instruction, so that a guest that cannot make progress still spends
/// its budget.
pub struct Processors {
    pub(super) vcpus: Vec<Vcpu>,
    cache: BlockCache,
    ram: GuestRam,
    config: CpuConfig,
    turn: usize,
    turn_left: u64,
    instructions: u64,
    clock_steps: u64,
}

impl Processors {
    /// The processors of a state. Nothing is taken from RAM before they run.
    pub fn new(ram: GuestRam, config: CpuConfig, state: &ProcessorsState) -> Result<Self, StateError> {
        let count = state.vcpus.len();
        if count == 0 || count > VCPUS_MAX {
            return Err(StateError::Count(count));
        }
        if state.turn_vcpu as usize >= count {
            return Err(StateError::Turn(state.turn_vcpu));
        }
        let vcpus = state
            .vcpus
            .iter()
            .enumerate()
            .map(|(number, vcpu)| {
                let cpu = Cpu::from_state(ram.clone(), vcpu, number, count, state.tsc())?;
                Ok(Vcpu { cpu, instructions: vcpu.instructions })
            })
            .collect::<Result<_, StateError>>()?;
        Ok(Self {
            vcpus,
            cache: BlockCache::new(&ram),
            ram,
            config,
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
            turn_vcpu: self.turn as u32,
            turn_left: self.turn_left,
            instructions: self.instructions,
            clock_steps: self.clock_steps,
        }
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

    /// Forgets all cached translations. A guest that changes page tables without invalidating them can tell a processor that
    /// has just been made from one that has run for a while; so a primary does this at the state from which a lockstep secondary
    /// starts.
    pub fn forget_translations(&mut self) {
        for vcpu in &mut self.vcpus {
            vcpu.cpu.flush_tlb();
        }
    }

    /// Executes at most `instructions_max` instructions, exactly that many if nothing else ends the run.
    pub fn run(&mut self, instructions_max: u64, bus: &mut dyn Bus) -> Exit {
        let end = self.instructions.saturating_add(instructions_max);
        self.forget_overwritten_code();
        while self.instructions < end {
            if self.turn_left == 0 || !self.is_runnable(self.turn) {
                if !self.next_turn() {
                    return Exit::Halted { deadline_tsc: None };
                }
            }
            if let Some(exit) = self.step(end, bus) {
                return exit;
            }
        }
        Exit::BudgetSpent
    }

    /// Gives the turn to the next processor that can run.
    fn next_turn(&mut self) -> bool {
        for distance in 1..=self.vcpus.len() {
            let candidate = (self.turn + distance) % self.vcpus.len();
            if self.is_runnable(candidate) {
                self.turn = candidate;
                self.turn_left = self.config.turn_instructions.max(1);
                return true;
            }
        }
        false
    }

    fn is_runnable(&mut self, number: usize) -> bool {
        self.vcpus.get(number).is_some_and(|vcpu| vcpu.cpu.system.run_state == RunState::Running)
    }

    /// Runs the processor whose turn it is until something must be seen to between two instructions.
    fn step(&mut self, end: u64, bus: &mut dyn Bus) -> Option<Exit> {
        let vcpu = self.vcpus.get_mut(self.turn)?;
        let cpu = &mut vcpu.cpu;
        cpu.count = self.instructions;
        cpu.clock_steps = self.clock_steps;
        let mut limit = end.min(self.instructions.saturating_add(self.turn_left));
        let shadow = std::mem::take(&mut cpu.system.interrupt_shadow);
        let single_step = cpu.rflags_rest & bit::TF != 0;
        if cpu.alone || shadow || single_step {
            limit = cpu.count + 1;
        }
        let mut leave = execute(cpu, &mut self.cache, limit, bus);
        if leave == Leave::Missing {
            leave = self.provide(limit, bus);
        }
        let vcpu = self.vcpus.get_mut(self.turn)?;
        let cpu = &mut vcpu.cpu;
        if cpu.count == self.instructions && matches!(leave, Leave::Missing | Leave::Stop(Stop::Alone)) {
            cpu.system.interrupt_shadow = shadow;
        }
        let was_alone = cpu.alone;
        if leave != Leave::Missing {
            cpu.alone = leave == Leave::Stop(Stop::Alone);
        }
        let mut exit = None;
        match leave {
            Leave::Stop(Stop::Fault) => {
                cpu.count += 1;
                exit = Some(Exit::Shutdown { vcpu: cpu.system.number });
            }
            Leave::Stop(Stop::Halt) => {
                cpu.system.run_state = RunState::Halted;
                self.turn_left = 0;
            }
            Leave::Stop(Stop::Pause) => self.turn_left = 0,
            Leave::Stop(Stop::Shutdown) => exit = Some(Exit::Shutdown { vcpu: cpu.system.number }),
            _ => {}
        }
        let retired = cpu.count - self.instructions;
        vcpu.instructions += retired;
        self.instructions += retired;
        self.turn_left = self.turn_left.saturating_sub(retired);
        if was_alone || matches!(leave, Leave::Stop(Stop::Sync | Stop::Transfer)) {
            self.forget_overwritten_code();
            if exit.is_none() && bus.wants_stop() {
                exit = Some(Exit::Attention);
            }
        }
        exit
    }

    /// Brings the next instruction's block into the cache, or runs the instruction if it cannot be cached.
    fn provide(&mut self, limit: u64, bus: &mut dyn Bus) -> Leave {
        let Some(vcpu) = self.vcpus.get_mut(self.turn) else {
            return Leave::Missing;
        };
        let cpu = &mut vcpu.cpu;
        if cpu.count >= limit {
            return Leave::Limit;
        }
        let linear = cpu.fetch_linear();
        let first = match cpu.fetch_offset(linear) {
            Ok(offset) => offset,
            Err(stop) => return Leave::Stop(stop),
        };
        if self.cache.find(first, cpu.mode).is_some() {
            return Leave::Missing;
        }
        match build(&self.ram, first, cpu.rip, cpu.mode) {
            Built::Block(ops, len_bytes) => {
                if self.cache.insert(&self.ram, first, cpu.mode, &ops, len_bytes) {
                    let page = first & !(PAGE_BYTES - 1);
                    for vcpu in &mut self.vcpus {
                        vcpu.cpu.tlb.forbid_writes_to(page);
                    }
                }
                Leave::Missing
            }
            Built::AcrossPages => {
                let next_page = (linear | (PAGE_BYTES - 1)).wrapping_add(1);
                let second = match cpu.fetch_offset(next_page) {
                    Ok(offset) => offset,
                    Err(stop) => return Leave::Stop(stop),
                };
                let Some(op) = build_across_pages(&self.ram, first, second, cpu.rip, cpu.mode) else {
                    return Leave::Stop(cpu.raise(vector::UD, None));
                };
                match run_ops(cpu, &[op], bus) {
                    Ok(()) => Leave::Limit,
                    Err(stop) => Leave::Stop(stop),
                }
            }
        }
    }

    /// Forgets the blocks of pages whose code was overwritten.
    fn forget_overwritten_code(&mut self) {
        if self.ram.has_code_writes() {
            for page in self.ram.take_code_writes() {
                self.cache.forget_page(&self.ram, page);
            }
        }
    }
}
