//! Interrupt messages between processors, and from outside to them.

use crate::apic::{ApicMessage, DeliveryMode, Outgoing};
use crate::core::Cpu;
use crate::run::convert::Place;
use crate::run::processors::Processors;
use crate::state::{RunState, VcpuState};

impl Processors {
    /// Delivers an interrupt message, as from an I/O APIC. It takes effect before the next instruction of its receivers.
    pub fn interrupt(&mut self, message: &ApicMessage) {
        let receivers = self.receivers(|_, cpu| cpu.apic.is_addressed(message));
        self.deliver(message, &receivers);
    }

    /// Raises a non-maskable interrupt.
    pub fn nmi(&mut self, vcpu: u32) {
        if let Some(vcpu) = self.vcpus.get_mut(vcpu as usize) {
            vcpu.cpu.system.nmi_pending = true;
        }
    }

    /// Delivers what the APIC of a processor has sent.
    pub(super) fn deliver_outgoing(&mut self, sender: usize) {
        let Some(vcpu) = self.vcpus.get_mut(sender) else {
            return;
        };
        for outgoing in vcpu.cpu.apic.take_outgoing() {
            let (message, receivers) = match outgoing {
                Outgoing::To(message) => (message, self.receivers(|_, cpu| cpu.apic.is_addressed(&message))),
                Outgoing::ToSelf(message) => (message, vec![sender]),
                Outgoing::ToAll(message) => (message, self.receivers(|_, _| true)),
                Outgoing::ToOthers(message) => (message, self.receivers(|number, _| number != sender)),
            };
            self.deliver(&message, &receivers);
        }
    }

    fn receivers(&self, is_receiver: impl Fn(usize, &Cpu) -> bool) -> Vec<usize> {
        let numbered = self.vcpus.iter().enumerate();
        numbered.filter(|(number, vcpu)| is_receiver(*number, &vcpu.cpu)).map(|(number, _)| number).collect()
    }

    fn deliver(&mut self, message: &ApicMessage, receivers: &[usize]) {
        if message.mode == DeliveryMode::LowestPriority {
            let priority =
                |number: &usize| self.vcpus.get(*number).map(|vcpu| (vcpu.cpu.apic.processor_priority(), *number));
            let chosen = receivers.iter().filter_map(priority).min();
            if let Some(vcpu) = chosen.and_then(|(_, number)| self.vcpus.get_mut(number)) {
                vcpu.cpu.apic.accept(message.vector, message.level);
            }
            return;
        }
        for &number in receivers {
            let Some(vcpu) = self.vcpus.get_mut(number) else {
                continue;
            };
            let cpu = &mut vcpu.cpu;
            match message.mode {
                DeliveryMode::Fixed | DeliveryMode::LowestPriority => cpu.apic.accept(message.vector, message.level),
                DeliveryMode::Nmi => cpu.system.nmi_pending = true,
                DeliveryMode::Init => self.initialize(number),
                DeliveryMode::StartUp => start_up(cpu, message.vector),
            }
        }
    }

    /// INIT (SDM table 10-1): as after power-on, but x87, SSE, model-specific registers and time go on. The bootstrap processor starts
    /// over at the reset vector, the others wait for a start-up message.
    fn initialize(&mut self, number: usize) {
        let (machine_tsc, count) = (self.tsc(), self.vcpus.len());
        let Some(vcpu) = self.vcpus.get_mut(number) else {
            return;
        };
        let before = vcpu.cpu.to_state(machine_tsc, vcpu.instructions);
        let mut apic = vcpu.cpu.apic.clone();
        apic.reset();
        let state = VcpuState {
            fpu: before.fpu,
            xcr0: before.xcr0,
            msrs: before.msrs,
            tsc: before.tsc,
            apic: apic.to_state(machine_tsc),
            run_state: if number == 0 { RunState::Running } else { RunState::WaitForSipi },
            ..VcpuState::reset(number as u32)
        };
        let profile = self.profile.clone();
        let place = Place { number, count, machine_tsc, timer: None, profile: &profile };
        if let Ok(cpu) = Cpu::from_state(self.ram.clone(), &state, &place, &self.config) {
            vcpu.cpu = cpu;
        }
    }
}

/// A start-up message: real mode at the page that the vector names. Only a processor that waits for it listens.
fn start_up(cpu: &mut Cpu, vector: u8) {
    if cpu.system.run_state != RunState::WaitForSipi {
        return;
    }
    let code = &mut cpu.system.segments[1];
    *code = code.real(u16::from(vector) << 8);
    cpu.rip = 0;
    cpu.system.run_state = RunState::Running;
    cpu.update_mode();
}
