//! Runs a case on the software processor: 64-bit user mode, identity-mapped, with an exception handler for every vector.

use cpu::state::{SegmentState, TableState};
use cpu::{Bus, CpuConfig, Processors, ProcessorsState, Registers as CpuRegisters, VcpuState};
use memory::GuestRam;

use crate::case::Case;
use crate::layout;
use crate::registers::Outcome;

const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const PD: u64 = 0x1_2000;
const GDT: u64 = 0x1_3000;
const IDT: u64 = 0x1_4000;
const TSS: u64 = 0x1_5000;
/// Sixteen bytes for each vector: a jump to itself.
const HANDLERS: u64 = 0x1_6000;
const VECTORS: u64 = 32;
/// IRETQ, to get back to user mode.
const IRET: u64 = HANDLERS + 16 * VECTORS;
/// Exceptions push here, whatever RSP is.
const EXCEPTION_STACK: u64 = 0x1_8000;

const KERNEL_CODE: u16 = 0x10;
/// As Linux has them, since PUSH CS and the like show them.
const USER_DATA: u16 = 0x2b;
const USER_CODE: u16 = 0x33;

/// The software side of one test thread.
pub struct Guest {
    ram: GuestRam,
    config: CpuConfig,
    processors: Processors,
    registers: CpuRegisters,
}

/// JMP to itself: behind a case's code, it ends the block.
const STAY: [u8; 2] = [0xeb, 0xfe];

/// No devices.
struct Nothing;

impl Bus for Nothing {
    fn mmio_read(&mut self, _tsc: u64, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&mut self, _tsc: u64, _address: u64, _data: &[u8]) {}

    fn port_read(&mut self, _tsc: u64, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&mut self, _tsc: u64, _port: u16, _data: &[u8]) {}

    fn end_of_interrupt(&mut self, _vector: u8) {}

    fn wants_stop(&mut self) -> bool {
        false
    }
}

impl Guest {
    /// One that interprets everything.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// One that translates everything.
    pub fn translated() -> Self {
        Self::with(Some(0))
    }

    fn with(translate_after: Option<u8>) -> Self {
        let config = CpuConfig { translate_after, ..CpuConfig::default() };
        let ram = GuestRam::new(layout::END).expect("sparse memory");
        write_tables(&ram);
        let processors = user_mode(&ram, &config);
        let registers = processors.registers(0).expect("processor 0");
        Self { ram, config, processors, registers }
    }

    pub fn run(&mut self, case: &Case, outcome: &mut Outcome) {
        let start = &case.registers;
        let end = start.rip + case.code.len() as u64;
        self.ram.write_bytes(start.rip, &case.code).expect("the code page is RAM");
        self.ram.write_bytes(end, &STAY).expect("the code page is RAM");
        self.ram.write_bytes(case.place.scratch(), &case.scratch).expect("the scratch is RAM");
        self.registers.gpr = start.gpr;
        self.registers.rip = start.rip;
        self.registers.rflags = start.rflags | 1 << 9;
        self.registers.fpu = start.fpu();
        assert!(self.processors.set_registers(0, &self.registers));
        let mut left = case.instructions.len() as u64;
        if self.config.translate_after.is_some() {
            // All at once and until the case's end is passed, or a block would be cut there and interpreted.
            let most = if case.straight { left + 1 } else { 64 * (left + 1) };
            self.processors.run(most, &mut Nothing);
            self.registers = self.processors.registers(0).expect("processor 0");
        } else if case.straight {
            self.processors.run(left, &mut Nothing);
            self.registers = self.processors.registers(0).expect("processor 0");
        } else {
            // Branches skip, repeats may take several turns: step until the end.
            left = 64 * (left + 1);
            while left > 0 {
                self.processors.run(1, &mut Nothing);
                self.registers = self.processors.registers(0).expect("processor 0");
                if self.registers.rip == end || self.vector().is_some() {
                    break;
                }
                left -= 1;
            }
        }
        outcome.fault = self.vector();
        if let Some(vector) = outcome.fault {
            self.leave_handler(vector);
        }
        outcome.registers.gpr = self.registers.gpr;
        outcome.registers.rip = self.registers.rip;
        outcome.registers.rflags = self.registers.rflags;
        outcome.registers.set_fpu(&self.registers.fpu);
        assert!(self.ram.read_offset(case.place.scratch(), &mut outcome.scratch));
    }

    /// The exception whose handler RIP is in.
    fn vector(&self) -> Option<u8> {
        let offset = self.registers.rip.wrapping_sub(HANDLERS);
        (offset < 16 * VECTORS).then_some((offset / 16) as u8)
    }

    /// Takes the registers at the exception from the frame on the stack, and returns to user mode.
    fn leave_handler(&mut self, vector: u8) {
        let frame = EXCEPTION_STACK - 40;
        let word = |number: u64| self.ram.load::<u64>(frame + 8 * number).expect("the stack is RAM");
        let (rip, rflags, rsp) = (word(0), word(2), word(3));
        let has_error_code = matches!(vector, 8 | 10..=14 | 17);
        assert_eq!(self.registers.gpr[4], frame - 8 * u64::from(has_error_code), "the stack in a handler");
        self.registers.rip = IRET;
        self.registers.gpr[4] = frame;
        assert!(self.processors.set_registers(0, &self.registers));
        self.processors.run(1, &mut Nothing);
        let back = self.processors.registers(0).expect("processor 0");
        if (back.rip, back.gpr[4]) != (rip, rsp) {
            self.processors = user_mode(&self.ram, &self.config);
        }
        self.registers.rip = rip;
        self.registers.rflags = rflags;
        self.registers.gpr[4] = rsp;
    }
}

fn write_tables(ram: &GuestRam) {
    let put = |address: u64, value: u64| ram.write_bytes(address, &value.to_le_bytes()).expect("tables are in RAM");
    put(PML4, PDPT | 7);
    put(PDPT, PD | 7);
    for page in 0..512 {
        put(PD + 8 * page, page << 21 | 0x87);
    }
    put(GDT + u64::from(KERNEL_CODE), 0x00af_9b00_0000_ffff);
    put(GDT + u64::from(USER_DATA & !7), 0x00cf_f300_0000_ffff);
    put(GDT + u64::from(USER_CODE & !7), 0x00af_fb00_0000_ffff);
    // IST1.
    put(TSS + 36, EXCEPTION_STACK);
    // No I/O permission bitmap: it would begin behind the limit.
    put(TSS + 96, 0xffff << 48);
    for vector in 0..VECTORS {
        let handler = HANDLERS + 16 * vector;
        // Offset, selector, IST 1, 64-bit interrupt gate that INT3 may use.
        let low =
            handler & 0xffff | u64::from(KERNEL_CODE) << 16 | 1 << 32 | 0xee << 40 | (handler >> 16 & 0xffff) << 48;
        put(IDT + 16 * vector, low);
        put(IDT + 16 * vector + 8, handler >> 32);
        put(handler, 0xfeeb);
    }
    put(IRET, 0xcf48);
}

fn user_mode(ram: &GuestRam, config: &CpuConfig) -> Processors {
    let data = SegmentState { selector: USER_DATA, base: 0, limit: u32::MAX, attributes: 0xc0f3, unusable: false };
    let null = SegmentState { selector: 0, limit: 0, attributes: 0, unusable: true, ..data };
    let mut vcpu = VcpuState::reset(0);
    vcpu.segments = [null, SegmentState { selector: USER_CODE, attributes: 0xa0fb, ..data }, data, null, null, null];
    vcpu.tr = SegmentState { selector: 0x40, base: TSS, limit: 0x67, attributes: 0x8b, unusable: false };
    vcpu.gdtr = TableState { base: GDT, limit: 0x7f };
    vcpu.idtr = TableState { base: IDT, limit: 16 * VECTORS as u16 - 1 };
    // PG, AM, WP, NE, ET, MP, PE; OSXSAVE, OSXMMEXCPT, OSFXSR, PAE; NXE, LMA, LME, SCE.
    vcpu.cr0 = 0x8005_0033;
    vcpu.cr3 = PML4;
    vcpu.cr4 = 0x4_0620;
    vcpu.efer = 0xd01;
    vcpu.xcr0 = 3;
    vcpu.rflags = 0x202;
    let mut state = ProcessorsState::reset(1);
    state.vcpus[0] = vcpu;
    Processors::new(ram.clone(), config.clone(), &state).expect("a valid state")
}
