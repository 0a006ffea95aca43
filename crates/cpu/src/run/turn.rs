//! The run loop: turns, and what happens between two instructions.
//!
//! Interrupts are recognised before an instruction, whenever one is deliverable then. Everything that can make one deliverable
//! (a timer, a message, an instruction that changes priorities or the interrupt flag) comes at an exact count or ends the
//! innermost loop, so looking between its runs is looking everywhere.

use memory::PAGE_BYTES;

use crate::block::{Built, build, build_across_pages};
use crate::bus::Bus;
use crate::core::{Cpu, INSTRUCTIONS_PER_TICK, tsc_at};
use crate::run::execute::{Leave, execute, run_ops};
use crate::run::processors::{Exit, Processors};
use crate::state::{PendingEvent, RunState};
use crate::stop::{Fault, Stop, vector};
use crate::unit::bit;

/// DR6: the single-step trap.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// Its place in the debug registers.
const DR6: usize = 4;

impl Processors {
    /// Executes at most `instructions_max` instructions, exactly that many if nothing else ends the run.
    pub fn run(&mut self, instructions_max: u64, bus: &mut dyn Bus) -> Exit {
        let end = self.instructions.saturating_add(instructions_max);
        self.forget_overwritten_code();
        while self.instructions < end {
            if (self.turn_left == 0 || !self.is_runnable(self.turn)) && !self.next_turn() {
                return Exit::Halted { deadline_tsc: self.deadline_tsc() };
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

    /// Whether a processor has instructions to execute; wakes it from HLT if an interrupt waits.
    fn is_runnable(&mut self, number: usize) -> bool {
        let machine_tsc = self.tsc();
        let Some(vcpu) = self.vcpus.get_mut(number) else {
            return false;
        };
        let cpu = &mut vcpu.cpu;
        cpu.apic.service_timer(machine_tsc, cpu.system.tsc_offset);
        if cpu.system.run_state == RunState::Halted && cpu.wakes() {
            cpu.system.run_state = RunState::Running;
        }
        cpu.system.run_state == RunState::Running
    }

    /// When the first timer of a halted processor fires, by the machine's time-stamp counter.
    fn deadline_tsc(&self) -> Option<u64> {
        let halted = self.vcpus.iter().filter(|vcpu| vcpu.cpu.system.run_state == RunState::Halted);
        halted.filter_map(|vcpu| vcpu.cpu.apic.next_event(vcpu.cpu.system.tsc_offset)).min()
    }

    /// Runs the processor whose turn it is until something must be seen to between two instructions.
    fn step(&mut self, end: u64, bus: &mut dyn Bus) -> Option<Exit> {
        let (instructions, clock_steps) = (self.instructions, self.clock_steps);
        let cpu = &mut self.vcpus.get_mut(self.turn)?.cpu;
        cpu.count = instructions;
        cpu.clock_steps = clock_steps;
        let shadow = cpu.system.interrupt_shadow.take();
        if shadow.is_none() && !cpu.alone && cpu.deliver_waiting(bus).is_err() {
            return Some(Exit::Shutdown { vcpu: cpu.system.number });
        }
        let mut limit = end.min(instructions.saturating_add(self.turn_left));
        if let Some(due) = cpu.apic.next_event(cpu.system.tsc_offset) {
            limit = limit.min(count_at(due, clock_steps).max(instructions + 1));
        }
        let single_step = cpu.rflags_rest & bit::TF != 0;
        let was_alone = cpu.alone;
        if was_alone || shadow.is_some() || single_step {
            limit = instructions + 1;
        }
        let mut leave = execute(cpu, &mut self.cache, limit, bus);
        if leave == Leave::Missing {
            leave = self.provide(bus);
        }
        let cpu = &mut self.vcpus.get_mut(self.turn)?.cpu;
        if cpu.count == instructions && matches!(leave, Leave::Missing | Leave::Stop(Stop::Alone)) {
            cpu.system.interrupt_shadow = shadow;
        }
        if leave != Leave::Missing {
            cpu.alone = leave == Leave::Stop(Stop::Alone);
        }
        let mut outcome = Ok(());
        let trapped = single_step && cpu.count > instructions;
        match leave {
            Leave::Stop(Stop::Fault) => {
                // So that a guest whose handlers fault at once spends its budget too.
                cpu.count += 1;
                outcome = cpu.deliver_exception(cpu.fault, bus);
            }
            Leave::Stop(Stop::Halt) => {
                cpu.system.run_state = RunState::Halted;
                self.turn_left = 0;
            }
            Leave::Stop(Stop::Pause) => self.turn_left = 0,
            Leave::Stop(Stop::Shutdown) => outcome = Err(Stop::Shutdown),
            _ => {}
        }
        // SYSCALL and INT clear TF for their handlers; the trap of the instruction is lost with it.
        let lost = matches!(leave, Leave::Stop(Stop::Fault))
            || matches!(leave, Leave::Stop(Stop::Transfer)) && cpu.rflags_rest & bit::TF == 0;
        if trapped && !lost && outcome.is_ok() {
            cpu.system.debug[DR6] |= DR6_SINGLE_STEP;
            outcome = cpu.deliver_exception(Fault { vector: vector::DB, error_code: None, address: 0 }, bus);
        }
        let retired = cpu.count - instructions;
        let number = cpu.system.number;
        self.account(retired);
        if was_alone || matches!(leave, Leave::Stop(Stop::Sync | Stop::Transfer)) {
            self.deliver_outgoing(self.turn);
            self.forget_overwritten_code();
            if outcome.is_ok() && bus.wants_stop() {
                return Some(Exit::Attention);
            }
        }
        outcome.is_err().then_some(Exit::Shutdown { vcpu: number })
    }

    fn account(&mut self, retired: u64) {
        if let Some(vcpu) = self.vcpus.get_mut(self.turn) {
            vcpu.instructions += retired;
        }
        self.instructions += retired;
        self.turn_left = self.turn_left.saturating_sub(retired);
    }

    /// Brings the next instruction's block into the cache, or runs the instruction if it cannot be cached.
    #[cold]
    #[inline(never)]
    fn provide(&mut self, bus: &mut dyn Bus) -> Leave {
        let Some(vcpu) = self.vcpus.get_mut(self.turn) else {
            return Leave::Missing;
        };
        let cpu = &mut vcpu.cpu;
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
                    self.forbid_writes_to(first & !(PAGE_BYTES - 1));
                }
                Leave::Missing
            }
            Built::AcrossPages => self.run_crossing(first, linear, bus),
        }
    }

    /// Runs an instruction that runs over the end of its page.
    fn run_crossing(&mut self, first: u64, linear: u64, bus: &mut dyn Bus) -> Leave {
        let Some(vcpu) = self.vcpus.get_mut(self.turn) else {
            return Leave::Missing;
        };
        let cpu = &mut vcpu.cpu;
        let next_page = (linear | (PAGE_BYTES - 1)).wrapping_add(1);
        let second = match cpu.fetch_offset(next_page) {
            Ok(offset) => offset,
            Err(stop) => return Leave::Stop(stop),
        };
        let Some(op) = self.cache.find_crossing(first, second, cpu.mode) else {
            let Some(op) = build_across_pages(&self.ram, first, second, cpu.rip, cpu.mode) else {
                return Leave::Stop(cpu.raise(vector::UD, None));
            };
            for page in self.cache.insert_crossing(&self.ram, first, second, cpu.mode, op) {
                self.forbid_writes_to(page);
            }
            return Leave::Missing;
        };
        match run_ops(cpu, &[op], bus) {
            Ok(()) => Leave::Limit,
            Err(stop) => Leave::Stop(stop),
        }
    }

    /// Makes stores to a page that has become code take the slow path.
    fn forbid_writes_to(&mut self, page: u64) {
        for vcpu in &mut self.vcpus {
            vcpu.cpu.tlb.forbid_writes_to(page);
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

impl Cpu {
    /// Whether something waits that ends HLT.
    fn wakes(&self) -> bool {
        self.system.pending.is_some()
            || self.system.nmi_pending && !self.system.nmi_blocked
            || self.rflags_rest & bit::IF != 0 && self.apic.deliverable().is_some()
    }

    /// Delivers the most urgent of what waits, if anything may be delivered now.
    #[inline]
    fn deliver_waiting(&mut self, bus: &mut dyn Bus) -> Result<(), Stop> {
        if let Some(event) = self.system.pending.take() {
            return self.deliver_pending(event, bus);
        }
        if self.system.nmi_pending && !self.system.nmi_blocked {
            self.system.nmi_pending = false;
            self.system.nmi_blocked = true;
            return self.deliver_interrupt(vector::NMI, bus);
        }
        if self.rflags_rest & bit::IF != 0
            && let Some(vector) = self.apic.acknowledge()
        {
            return self.deliver_interrupt(vector, bus);
        }
        Ok(())
    }

    /// Delivers an event that another engine had begun to deliver.
    fn deliver_pending(&mut self, event: PendingEvent, bus: &mut dyn Bus) -> Result<(), Stop> {
        match event {
            PendingEvent::Interrupt { vector } => self.deliver_interrupt(vector, bus),
            PendingEvent::Exception { vector, error_code, payload } => {
                let address = if vector == vector::PF { payload.unwrap_or(self.system.cr2) } else { 0 };
                if vector == vector::DB {
                    self.system.debug[DR6] |= payload.unwrap_or(0);
                }
                self.deliver_exception(Fault { vector, error_code, address }, bus)
            }
        }
    }
}

/// The first instruction count at which the machine's time-stamp counter is at least `tsc`.
fn count_at(tsc: u64, clock_steps: u64) -> u64 {
    tsc.saturating_sub(clock_steps).saturating_mul(INSTRUCTIONS_PER_TICK)
}

const _: () = assert!(INSTRUCTIONS_PER_TICK > 0 && tsc_at(INSTRUCTIONS_PER_TICK, 0) == 1);
