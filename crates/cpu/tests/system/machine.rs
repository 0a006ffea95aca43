//! A small bare-metal machine: identity-mapped memory, a GDT, an IDT whose handlers report and halt.

use cpu::state::{SegmentState, TableState, VcpuState};
use cpu::{Bus, CpuConfig, Exit, Processors, ProcessorsState};
use iced_x86::code_asm::{CodeAssembler, r8, r9, r10, r11, r12, r13};
use memory::GuestRam;

pub const RAM_BYTES: u64 = 16 << 20;
pub const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
/// Maps the first 2 MiB by 4 KiB pages.
pub const TABLE: u64 = 0x4000;
pub const GDT: u64 = 0x6000;
pub const IDT: u64 = 0x7000;
pub const TSS: u64 = 0x8000;
pub const KERNEL_CODE: u64 = 0x10000;
pub const KERNEL_STACK: u64 = 0x1f000;
pub const USER_CODE: u64 = 0x20000;
pub const USER_STACK: u64 = 0x2f000;
const HANDLERS: u64 = 0x30000;
/// Stack of [`KERNEL_CODE`] after an interrupt from user mode.
pub const INTERRUPT_STACK: u64 = 0x3f000;
/// Second stack for interrupts, by the interrupt stack table.
pub const SPECIAL_STACK: u64 = 0x4f000;
/// Pages that tests may map as they like.
pub const SPARE: u64 = 0x100000;

pub const KERNEL_CS: u16 = 0x08;
pub const KERNEL_SS: u16 = 0x10;
pub const USER_CS_32: u16 = 0x18 | 3;
pub const USER_SS: u16 = 0x20 | 3;
pub const USER_CS: u16 = 0x28 | 3;
pub const TASK: u16 = 0x30;
const KERNEL_CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const KERNEL_DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
const USER_CODE_32_DESCRIPTOR: u64 = 0x00cf_fb00_0000_ffff;
const USER_DATA_DESCRIPTOR: u64 = 0x00cf_f300_0000_ffff;
const USER_CODE_DESCRIPTOR: u64 = 0x00af_fb00_0000_ffff;

pub mod page {
    pub const PRESENT: u64 = 1;
    pub const WRITABLE: u64 = 2;
    pub const USER: u64 = 4;
    pub const ACCESSED: u64 = 0x20;
    pub const DIRTY: u64 = 0x40;
    pub const LARGE: u64 = 0x80;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// What a test sees of the bus.
#[derive(Default)]
pub struct TestBus {
    /// Port writes: port, value, TSC.
    pub written: Vec<(u16, u64, u64)>,
    /// Device-memory writes: address, value, TSC.
    pub stored: Vec<(u64, u64, u64)>,
    /// Vectors of ended level-triggered interrupts.
    pub ended: Vec<u8>,
    /// A write to this port asks for attention.
    pub attention_port: Option<u16>,
    attention: bool,
}

fn value(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl Bus for TestBus {
    fn mmio_read(&mut self, _tsc: u64, address: u64, data: &mut [u8]) {
        data.fill(address as u8);
    }

    fn mmio_write(&mut self, tsc: u64, address: u64, data: &[u8]) {
        self.stored.push((address, value(data), tsc));
    }

    fn port_read(&mut self, _tsc: u64, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }

    fn port_write(&mut self, tsc: u64, port: u16, data: &[u8]) {
        self.written.push((port, value(data), tsc));
        self.attention |= self.attention_port == Some(port);
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        self.ended.push(vector);
    }

    fn wants_stop(&mut self) -> bool {
        std::mem::take(&mut self.attention)
    }
}

/// What the reporting handlers leave in registers.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
}

/// These tests are compiled twice: for the interpreter alone, and with everything translated that can be.
const TRANSLATE_AFTER: Option<u8> =
    if matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"system_translated") { Some(0) } else { None };

/// Memory and the state that a machine starts from.
pub struct Setup {
    pub ram: GuestRam,
    pub state: ProcessorsState,
    pub config: CpuConfig,
}

impl Setup {
    /// 64-bit kernel mode at [`KERNEL_CODE`], interrupts off, all pages writable, those from [`USER_CODE`] to [`USER_STACK`] and from
    /// [`SPARE`] on for user mode too.
    pub fn new(vcpus: u32) -> Self {
        let ram = GuestRam::new(RAM_BYTES).unwrap();
        let config = CpuConfig { translate_after: TRANSLATE_AFTER, ..CpuConfig::default() };
        let setup = Self { ram, state: ProcessorsState::reset(vcpus), config };
        let table_bits = page::PRESENT | page::WRITABLE | page::USER;
        setup.write64(PML4, PDPT | table_bits);
        setup.write64(PDPT, DIRECTORY | table_bits);
        setup.write64(DIRECTORY, TABLE | table_bits);
        for directory in 1..8 {
            setup.write64(DIRECTORY + directory * 8, directory << 21 | page::LARGE | page::PRESENT | page::WRITABLE);
        }
        for number in 0..512 {
            let address = number << 12;
            let user = (USER_CODE..USER_STACK).contains(&address) || address >= SPARE;
            let bits = page::PRESENT | page::WRITABLE | if user { page::USER } else { 0 };
            setup.write64(TABLE + number * 8, address | bits);
        }
        let descriptors = [
            0,
            KERNEL_CODE_DESCRIPTOR,
            KERNEL_DATA_DESCRIPTOR,
            USER_CODE_32_DESCRIPTOR,
            USER_DATA_DESCRIPTOR,
            USER_CODE_DESCRIPTOR,
            0x0000_8b00_0000_0067 | TSS << 16,
            0,
        ];
        for (number, descriptor) in descriptors.into_iter().enumerate() {
            setup.write64(GDT + number as u64 * 8, descriptor);
        }
        setup.write64(TSS + 4, INTERRUPT_STACK);
        setup.write64(TSS + 0x24, SPECIAL_STACK);
        // The I/O permission map begins beyond the limit: no ports for user mode.
        setup.write64(TSS + 0x60, 0x68 << 48);
        setup.write_handlers();
        let mut setup = setup;
        let first = setup.kernel_vcpu(0);
        setup.state.vcpus[0] = first;
        setup
    }

    /// A processor in 64-bit kernel mode.
    pub fn kernel_vcpu(&self, number: u32) -> VcpuState {
        let mut vcpu = VcpuState::reset(number);
        let data = segment(KERNEL_SS, KERNEL_DATA_DESCRIPTOR);
        vcpu.segments = [data, segment(KERNEL_CS, KERNEL_CODE_DESCRIPTOR), data, data, data, data];
        vcpu.tr = SegmentState { base: TSS, limit: 0x67, ..segment(TASK, 0x0000_8b00_0000_0067) };
        vcpu.gdtr = TableState { base: GDT, limit: 63 };
        vcpu.idtr = TableState { base: IDT, limit: 0xfff };
        vcpu.cr0 = 0x8001_0033;
        vcpu.cr3 = PML4;
        vcpu.cr4 = 0x6a0 | 1 << 16;
        vcpu.efer = 0xd01;
        vcpu.rip = KERNEL_CODE;
        vcpu.gpr[4] = KERNEL_STACK;
        vcpu
    }

    /// Makes processor 0 start in 64-bit user mode at [`USER_CODE`].
    pub fn start_in_user_mode(&mut self) {
        let vcpu = &mut self.state.vcpus[0];
        let data = segment(USER_SS, USER_DATA_DESCRIPTOR);
        vcpu.segments = [data, segment(USER_CS, USER_CODE_DESCRIPTOR), data, data, data, data];
        vcpu.rip = USER_CODE;
        vcpu.gpr[4] = USER_STACK;
    }

    /// Makes processor 0 start in 32-bit user mode at [`USER_CODE`].
    pub fn start_in_compatibility_mode(&mut self) {
        self.start_in_user_mode();
        self.state.vcpus[0].segments[1] = segment(USER_CS_32, USER_CODE_32_DESCRIPTOR);
    }

    pub fn write64(&self, address: u64, value: u64) {
        self.ram.write_bytes(address, &value.to_le_bytes()).unwrap();
    }

    /// Maps a page of the first 2 MiB.
    pub fn map(&self, linear: u64, entry: u64) {
        self.write64(TABLE + (linear >> 12) * 8, entry);
    }

    /// Puts 64-bit code at an address.
    pub fn code(&self, address: u64, write: impl FnOnce(&mut CodeAssembler)) {
        self.code_of(64, address, write);
    }

    /// Puts code at an address.
    pub fn code_of(&self, bits: u32, address: u64, write: impl FnOnce(&mut CodeAssembler)) {
        let mut code = CodeAssembler::new(bits).unwrap();
        write(&mut code);
        self.ram.write_bytes(address, &code.assemble(address).unwrap()).unwrap();
    }

    /// Sets a gate of the IDT.
    pub fn gate(&self, vector: u64, handler: u64, dpl: u64, stack_table: u64) {
        let low = handler & 0xffff
            | u64::from(KERNEL_CS) << 16
            | stack_table << 32
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        self.write64(IDT + vector * 16, low);
        self.write64(IDT + vector * 16 + 8, handler >> 32);
    }

    /// Handlers that put what they got into R8 to R13 and halt for good.
    fn write_handlers(&self) {
        for vector in 0..256 {
            let handler = HANDLERS + vector * 16;
            let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21);
            self.code(handler, |code| {
                if !has_error_code {
                    code.push(0).unwrap();
                }
                code.push(vector as i32).unwrap();
                code.jmp(HANDLERS + 256 * 16).unwrap();
            });
            self.gate(vector, handler, 0, 0);
        }
        self.code(HANDLERS + 256 * 16, |code| {
            for register in [r8, r9, r10, r11, r12, r13] {
                code.pop(register).unwrap();
            }
            code.hlt().unwrap();
        });
    }

    pub fn start(&self) -> Machine {
        let processors = Processors::new(self.ram.clone(), self.config.clone(), &self.state).unwrap();
        Machine { ram: self.ram.clone(), config: self.config.clone(), processors, bus: TestBus::default() }
    }
}

/// A machine that runs.
pub struct Machine {
    pub ram: GuestRam,
    pub config: CpuConfig,
    pub processors: Processors,
    pub bus: TestBus,
}

impl Machine {
    pub fn run(&mut self, instructions_max: u64) -> Exit {
        self.processors.run(instructions_max, &mut self.bus)
    }

    /// Runs until a reporting handler halts.
    pub fn report(&mut self) -> Report {
        let exit = self.run(1_000_000);
        assert!(matches!(exit, Exit::Halted { .. }), "{exit:?} {:x?}", self.vcpu(0));
        let gpr = self.vcpu(0).gpr;
        Report { vector: gpr[8], error_code: gpr[9], rip: gpr[10], cs: gpr[11], rflags: gpr[12], rsp: gpr[13] }
    }

    /// Runs until the guest halts.
    pub fn run_to_halt(&mut self) {
        let exit = self.run(10_000_000);
        assert!(matches!(exit, Exit::Halted { .. }), "{exit:?} {:x?}", self.vcpu(0));
    }

    pub fn vcpu(&self, number: usize) -> VcpuState {
        self.processors.save().vcpus[number].clone()
    }

    pub fn read64(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read_bytes(address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Everything there is: the processors' state and memory.
    pub fn digest(&self) -> (ProcessorsState, Vec<u8>) {
        let mut memory = vec![0; RAM_BYTES as usize];
        self.ram.read_bytes(0, &mut memory).unwrap();
        (self.processors.save(), memory)
    }

    /// Saves the processors and makes new ones from that.
    pub fn restore(&mut self) {
        let state = self.processors.save();
        self.processors = Processors::new(self.ram.clone(), self.config.clone(), &state).unwrap();
        assert_eq!(self.processors.save(), state);
    }
}

fn segment(selector: u16, descriptor: u64) -> SegmentState {
    SegmentState { selector, base: 0, limit: u32::MAX, attributes: (descriptor >> 40) as u16 & 0xf0ff, unusable: false }
}
