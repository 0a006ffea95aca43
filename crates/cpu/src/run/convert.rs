//! Between [`VcpuState`] and [`Cpu`].

use std::sync::Arc;

use memory::GuestRam;
use spec::CpuProfile;

use crate::apic::Apic;
use crate::context::Context;
use crate::core::Cpu;
use crate::cpuid::has_msr;
use crate::run::config::CpuConfig;
use crate::run::state::StateError;
use crate::state::{FpuState, VcpuState};
use crate::stop::Fault;
use crate::tlb::{TABLE_SUPERVISOR, Tlb};
use crate::unit::control::{cr0, cr4, efer, xcr0};
use crate::unit::{LazyFlags, Mode, Msrs, Register80, Segment, Sse, System, X87, attribute, number};

/// Where and when a processor is made.
pub(super) struct Place<'a> {
    /// Number of the processor in its machine.
    pub number: usize,
    /// How many processors the machine has.
    pub count: usize,
    /// The machine's time-stamp counter now.
    pub machine_tsc: u64,
    /// When the count-down timer of the APIC reaches 0.
    pub timer: Option<u64>,
    /// What CPUID says.
    pub profile: &'a Arc<CpuProfile>,
}

impl Cpu {
    /// The processor of a state.
    pub(super) fn from_state(
        ram: GuestRam,
        state: &VcpuState,
        place: &Place,
        config: &CpuConfig,
    ) -> Result<Self, StateError> {
        for (register, value, supported) in [
            ("CR0", state.cr0, cr0::ALL),
            ("CR4", state.cr4, cr4::ALL),
            ("EFER", state.efer, efer::SCE | efer::LME | efer::LMA | efer::NXE),
            ("XCR0", state.xcr0, xcr0::X87 | xcr0::SSE),
        ] {
            if value & !supported != 0 {
                return Err(StateError::Unsupported { vcpu: place.number, register, value });
            }
        }
        if let Some(extended) = state.extended.first() {
            let value = u64::from(extended.component);
            return Err(StateError::Unsupported { vcpu: place.number, register: "XSAVE component", value });
        }
        let apic = Apic::from_state(&state.apic, place.timer)
            .ok_or(StateError::ApicPage { vcpu: place.number, len: state.apic.registers.len() })?;
        let mut segments = [Segment::default(); 8];
        for (segment, saved) in segments.iter_mut().zip(&state.segments) {
            *segment = Segment::from_state(saved);
        }
        let mut gpr = [0; 18];
        for (register, saved) in gpr.iter_mut().zip(state.gpr) {
            *register = saved;
        }
        let mut cpu = Self {
            gpr,
            rip: state.rip,
            flags: LazyFlags::from_bits(0),
            rflags_rest: 0,
            tlb_generation: 0,
            tlb_table: TABLE_SUPERVISOR,
            cpl: 0,
            code_bits: 64,
            alone: false,
            mode: Mode::default(),
            code_base: 0,
            count: 0,
            clock_steps: 0,
            context: Context::default(),
            tlb: Tlb::new(),
            ram,
            sse: Sse::new(),
            x87: X87::new(),
            fault: Fault { vector: 0, error_code: None, address: 0 },
            apic,
            system: System {
                segments,
                ldtr: Segment::from_state(&state.ldtr),
                tr: Segment::from_state(&state.tr),
                gdtr: state.gdtr,
                idtr: state.idtr,
                cr0: state.cr0 | cr0::ET,
                cr2: state.cr2,
                cr3: state.cr3,
                cr4: state.cr4,
                xcr0: state.xcr0,
                efer: state.efer,
                debug: state.debug,
                msrs: Msrs::from_state(&state.msrs),
                tsc_offset: state.tsc.wrapping_sub(place.machine_tsc),
                interrupt_shadow: state.interrupt_shadow,
                nmi_blocked: state.nmi_blocked,
                nmi_pending: state.nmi_pending,
                pending: state.pending,
                run_state: state.run_state,
                number: place.number as u32,
                processors: place.count as u32,
                profile: place.profile.clone(),
                power_on_unix_ns: config.power_on_unix_ns,
            },
        };
        cpu.set_fpu_state(&state.fpu);
        cpu.set_rflags(state.rflags);
        cpu.cpl = cpu.system.segments[2].dpl();
        cpu.use_context();
        cpu.update_mode();
        Ok(cpu)
    }

    /// What this processor is; `instructions` is what it has retired.
    pub(super) fn to_state(&self, machine_tsc: u64, instructions: u64) -> VcpuState {
        let system = &self.system;
        VcpuState {
            gpr: std::array::from_fn(|register| self.gpr[register]),
            rip: self.rip,
            rflags: self.rflags(),
            segments: std::array::from_fn(|register| {
                let mut segment = system.segments[register];
                if register == number::SS {
                    // SS carries the privilege level, also when it is null.
                    segment.attributes &= !(3 << attribute::DPL_SHIFT);
                    segment.attributes |= u16::from(self.cpl) << attribute::DPL_SHIFT;
                }
                segment.to_state()
            }),
            ldtr: system.ldtr.to_state(),
            tr: system.tr.to_state(),
            gdtr: system.gdtr,
            idtr: system.idtr,
            cr0: system.cr0,
            cr2: system.cr2,
            cr3: system.cr3,
            cr4: system.cr4,
            cr8: self.apic.cr8(),
            xcr0: system.xcr0,
            efer: system.efer,
            debug: system.debug,
            fpu: self.fpu_state(),
            extended: Vec::new(),
            msrs: system.msrs.to_state(|index| has_msr(&system.profile, index)),
            apic: self.apic.to_state(machine_tsc),
            tsc: machine_tsc.wrapping_add(system.tsc_offset),
            run_state: system.run_state,
            pending: system.pending,
            interrupt_shadow: system.interrupt_shadow,
            nmi_blocked: system.nmi_blocked,
            nmi_pending: system.nmi_pending,
            instructions,
        }
    }

    /// x87 and SSE registers.
    pub(super) fn fpu_state(&self) -> FpuState {
        FpuState {
            registers: self.x87.registers.map(|register| (register.significand, register.sign_exponent)),
            control: self.x87.control,
            status: self.x87.status,
            valid: self.x87.valid,
            last_opcode: self.x87.last_opcode,
            last_instruction: self.x87.last_instruction,
            last_operand: self.x87.last_operand,
            xmm: self.sse.xmm,
            mxcsr: self.sse.mxcsr,
        }
    }

    /// The reverse of [`Cpu::fpu_state`].
    pub(super) fn set_fpu_state(&mut self, state: &FpuState) {
        self.x87 = X87 {
            registers: state.registers.map(|(significand, sign_exponent)| Register80 { significand, sign_exponent }),
            control: state.control,
            status: state.status,
            valid: state.valid,
            last_opcode: state.last_opcode,
            last_instruction: state.last_instruction,
            last_operand: state.last_operand,
        };
        self.sse.xmm = state.xmm;
        self.sse.mxcsr = state.mxcsr;
    }

    /// Derives what is cached from CS, CR0, CR4, EFER, CPL and RFLAGS. After a change of any of them.
    pub(crate) fn update_mode(&mut self) {
        let code = self.system.segments[1];
        let long = self.system.efer & efer::LMA != 0;
        self.code_bits = if long && code.has(attribute::LONG) {
            64
        } else if code.has(attribute::DEFAULT_32) {
            32
        } else {
            16
        };
        self.code_base = if self.code_bits == 64 { 0 } else { code.base };
        self.mode = Mode::of(&self.system, self.code_bits, self.rflags_rest);
        self.update_tlb_table();
    }
}
