//! Whole instructions in all three code sizes. What 64-bit user mode shows is compared with the host's processor by the
//! differential tests; here is what they cannot reach, and what tells one design from another.

use memory::GuestRam;

use crate::state::{SegmentState, TableState};
use crate::{Bus, CpuConfig, Processors, ProcessorsState, Registers, VcpuState};

const CODE: u64 = 0x4000;
const STACK: u64 = 0x9000;
const DATA: u64 = 0xa000;
const HANDLERS: u64 = 0x1000;
const IDT: u64 = 0x2000;
const GDT: u64 = 0x3000;
const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const PD: u64 = 0x1_2000;
const PT: u64 = 0x1_3000;
/// In 64-bit mode no page is mapped from here to 2 MiB.
const UNMAPPED: u64 = 0x2_0000;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

const CF: u64 = 1 << 0;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const IF: u64 = 1 << 9;
const DF: u64 = 1 << 10;
const IOPL: u64 = 3 << 12;

/// A processor at CPL 0 with flat segments, whose exception handlers are told apart by RIP.
struct Machine {
    ram: GuestRam,
    processors: Processors,
}

impl Machine {
    fn new(bits: u8, code: &[u8]) -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let put = |address: u64, value: u64| assert!(ram.write_offset(address, &value.to_le_bytes()));
        put(GDT + 8, if bits == 64 { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff });
        for vector in 0..32 {
            let handler = HANDLERS + 16 * vector;
            match bits {
                16 => assert!(ram.write_offset(IDT + 4 * vector, &(handler as u32).to_le_bytes())),
                32 => put(IDT + 8 * vector, handler | 8 << 16 | 0x8e << 40),
                _ => put(IDT + 16 * vector, handler | 8 << 16 | 0x8e << 40),
            }
        }
        put(PML4, PDPT | 3);
        put(PDPT, PD | 3);
        put(PD, PT | 3);
        for page in 0..UNMAPPED >> 12 {
            put(PT + 8 * page, page << 12 | 3);
        }
        assert!(ram.write_offset(CODE, code));
        let mut vcpu = VcpuState::reset(0);
        let data = SegmentState { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093, unusable: false };
        let (cs, data) = match bits {
            16 => {
                let data = SegmentState { selector: 0, limit: 0xffff, attributes: 0x93, ..data };
                (SegmentState { attributes: 0x9b, ..data }, data)
            }
            32 => (SegmentState { selector: 8, attributes: 0xc09b, ..data }, data),
            _ => (SegmentState { selector: 8, attributes: 0xa09b, ..data }, data),
        };
        vcpu.segments = [data, cs, data, data, data, data];
        vcpu.gdtr = TableState { base: GDT, limit: 0x1f };
        vcpu.idtr = TableState { base: IDT, limit: 16 * 32 - 1 };
        (vcpu.cr0, vcpu.cr4, vcpu.efer) = match bits {
            16 => (0x10, 0, 0),
            32 => (0x11, 0, 0),
            _ => (0x8000_0011, 0x20, 0x500),
        };
        vcpu.cr3 = if bits == 64 { PML4 } else { 0 };
        vcpu.rip = CODE;
        vcpu.gpr[RSP] = STACK;
        let state = ProcessorsState::from_vcpus(vec![vcpu]);
        let processors = Processors::new(ram.clone(), CpuConfig::default(), &state).unwrap();
        Self { ram, processors }
    }

    fn with(mut self, change: impl FnOnce(&mut Registers)) -> Self {
        let mut registers = self.registers();
        change(&mut registers);
        assert!(self.processors.set_registers(0, &registers));
        self
    }

    fn run(&mut self, instructions: u64) -> Registers {
        self.processors.run(instructions, &mut NoDevices);
        self.registers()
    }

    fn registers(&self) -> Registers {
        self.processors.registers(0).unwrap()
    }

    fn read<const LEN: usize>(&self, address: u64) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        assert!(self.ram.read_offset(address, &mut bytes));
        bytes
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        assert!(self.ram.write_offset(address, bytes));
    }
}

struct NoDevices;

impl Bus for NoDevices {
    fn mmio_read(&mut self, _tsc: u64, _address: u64, _data: &mut [u8]) {}
    fn mmio_write(&mut self, _tsc: u64, _address: u64, _data: &[u8]) {}
    fn port_read(&mut self, _tsc: u64, _port: u16, _data: &mut [u8]) {}
    fn port_write(&mut self, _tsc: u64, _port: u16, _data: &[u8]) {}
    fn end_of_interrupt(&mut self, _vector: u8) {}
    fn wants_stop(&mut self) -> bool {
        false
    }
}

fn handler(vector: u64) -> u64 {
    HANDLERS + 16 * vector
}

#[test]
fn a_16_bit_stack_wraps_and_leaves_the_upper_half_of_esp() {
    let mut machine = Machine::new(16, &[0x50, 0x5b]).with(|r| {
        r.gpr[RAX] = 0x1234;
        r.gpr[RSP] = 0xabcd_0000;
    });
    assert_eq!(machine.run(1).gpr[RSP], 0xabcd_fffe);
    assert_eq!(machine.read(0xfffe), 0x1234u16.to_le_bytes());
    let after = machine.run(1);
    assert_eq!((after.gpr[RSP], after.gpr[RBX]), (0xabcd_0000, 0x1234));
}

#[test]
fn pushing_the_stack_pointer_pushes_its_old_value() {
    let mut machine = Machine::new(32, &[0x54]);
    machine.run(1);
    assert_eq!(machine.read(STACK - 4), (STACK as u32).to_le_bytes());
}

#[test]
fn pop_to_an_address_with_the_stack_pointer_uses_the_popped_one() {
    // pop dword [esp+4]
    let mut machine = Machine::new(32, &[0x8f, 0x44, 0x24, 0x04]);
    machine.write(STACK, &0x1122_3344u32.to_le_bytes());
    assert_eq!(machine.run(1).gpr[RSP], STACK + 4);
    assert_eq!(machine.read(STACK + 8), 0x1122_3344u32.to_le_bytes());
}

#[test]
fn pusha_and_popa_keep_all_but_the_stack_pointer() {
    let mut machine = Machine::new(32, &[0x60, 0x61]).with(|r| {
        for (number, register) in r.gpr.iter_mut().enumerate().take(8).filter(|(number, _)| *number != RSP) {
            *register = 0x1111_1111 * (number as u64 + 1);
        }
    });
    let before = machine.registers();
    let pushed = machine.run(1);
    assert_eq!(pushed.gpr[RSP], STACK - 32);
    assert_eq!(machine.read(STACK - 4), 0x1111_1111u32.to_le_bytes());
    assert_eq!(machine.read(STACK - 20), (STACK as u32).to_le_bytes());
    // The image of ESP is not used.
    machine.write(STACK - 20, &[0xff; 4]);
    assert_eq!(machine.run(1).gpr, before.gpr);
}

#[test]
fn enter_copies_the_display_and_leave_undoes_it() {
    // enter 16, 2; leave
    let mut machine = Machine::new(32, &[0xc8, 0x10, 0x00, 0x02, 0xc9]).with(|r| r.gpr[RBP] = STACK + 0x100);
    machine.write(STACK + 0xfc, &0x5566_7788u32.to_le_bytes());
    let entered = machine.run(1);
    assert_eq!((entered.gpr[RBP], entered.gpr[RSP]), (STACK - 4, STACK - 12 - 16));
    assert_eq!(machine.read(STACK - 4), (STACK as u32 + 0x100).to_le_bytes());
    assert_eq!(machine.read(STACK - 8), 0x5566_7788u32.to_le_bytes());
    assert_eq!(machine.read(STACK - 12), (STACK as u32 - 4).to_le_bytes());
    let left = machine.run(1);
    assert_eq!((left.gpr[RBP], left.gpr[RSP]), (STACK + 0x100, STACK));
}

#[test]
fn popf_at_privilege_0_sets_the_interrupt_flag_and_iopl_but_never_the_upper_half_at_16_bits() {
    let mut machine = Machine::new(16, &[0x9d]);
    machine.write(STACK, &[0xff, 0x76]);
    let after = machine.run(1);
    assert_eq!(after.rflags & (IF | IOPL | DF | CF), IF | IOPL | DF | CF);
    assert_eq!(after.rflags >> 16, 0);
}

#[test]
fn a_divide_error_leaves_everything_and_points_at_the_instruction() {
    // nop; div cx
    let mut machine = Machine::new(16, &[0x90, 0xf7, 0xf1]).with(|r| {
        (r.gpr[RDX], r.gpr[RAX], r.gpr[RCX]) = (5, 7, 5);
    });
    let after = machine.run(2);
    assert_eq!(after.rip, handler(0));
    assert_eq!((after.gpr[RDX], after.gpr[RAX]), (5, 7));
    assert_eq!(machine.read(after.gpr[RSP]), (CODE as u16 + 1).to_le_bytes());
}

#[test]
fn near_jumps_in_16_bit_code_wrap_at_64_kib() {
    // jmp to 0x10002 - 0x10000
    let code = [0xe9, 0xff, 0xbf];
    assert_eq!(Machine::new(16, &code).run(1).rip, (CODE + 3 + 0xbfff) & 0xffff);
}

#[test]
fn loop_counts_in_the_register_of_the_address_size() {
    // loop $ with CX, then with ECX
    let after = Machine::new(16, &[0xe2, 0xfe]).with(|r| r.gpr[RCX] = 0x1_0001).run(1);
    assert_eq!((after.rip, after.gpr[RCX]), (CODE + 2, 0x1_0000));
    let after = Machine::new(16, &[0x67, 0xe2, 0xfd]).with(|r| r.gpr[RCX] = 0x1_0001).run(1);
    assert_eq!((after.rip, after.gpr[RCX]), (CODE, 0x1_0000));
}

#[test]
fn a_call_to_a_non_canonical_address_faults_before_it_pushes() {
    // call rax
    let mut machine = Machine::new(64, &[0xff, 0xd0]).with(|r| r.gpr[RAX] = 1 << 47);
    let after = machine.run(1);
    assert_eq!(after.rip, handler(13));
    let frame = after.gpr[RSP];
    assert_eq!(machine.read(frame + 8), CODE.to_le_bytes());
    assert_eq!(machine.read(frame + 8 + 24), STACK.to_le_bytes());
}

#[test]
fn lock_on_an_instruction_that_has_no_lock_is_undefined() {
    // lock mov eax, [rcx]; lock add eax, ecx
    assert_eq!(Machine::new(64, &[0xf0, 0x8b, 0x01]).run(1).rip, handler(6));
    assert_eq!(Machine::new(64, &[0xf0, 0x01, 0xc8]).run(1).rip, handler(6));
}

#[test]
fn bit_strings_reach_below_their_address() {
    // bts [ebx], ecx
    let mut machine = Machine::new(32, &[0x0f, 0xab, 0x0b]).with(|r| {
        (r.gpr[RBX], r.gpr[RCX]) = (DATA, (-33i32) as u32 as u64);
    });
    assert_eq!(machine.run(1).rflags & CF, 0);
    assert_eq!(machine.read(DATA - 8), 0x8000_0000u32.to_le_bytes());
}

#[test]
fn tzcnt_and_lzcnt_are_bsf_and_bsr_with_an_idle_prefix() {
    // tzcnt eax, ecx; lzcnt eax, ecx
    for (code, expected) in [([0xf3, 0x0f, 0xbc, 0xc1], 4), ([0xf3, 0x0f, 0xbd, 0xc1], 8)] {
        let after = Machine::new(64, &code).with(|r| r.gpr[RCX] = 0x110).run(1);
        assert_eq!(after.gpr[RAX], expected);
        let after = Machine::new(64, &code).with(|r| r.gpr[RAX] = 77).run(1);
        assert_eq!((after.gpr[RAX], after.rflags & ZF), (77, ZF));
    }
}

#[test]
fn crc32_gives_the_check_value_of_the_castagnoli_polynomial() {
    // Nine times: crc32 eax, byte [rsi]; inc rsi
    let step = [0xf2, 0x0f, 0x38, 0xf0, 0x06, 0x48, 0xff, 0xc6];
    let mut machine = Machine::new(64, &step.repeat(9)).with(|r| (r.gpr[RAX], r.gpr[RSI]) = (0xffff_ffff, DATA));
    machine.write(DATA, b"123456789");
    assert_eq!(machine.run(18).gpr[RAX] as u32 ^ u32::MAX, 0xe306_9283);
}

#[test]
fn a_repeated_copy_stops_at_the_element_that_faults() {
    // rep movsq, from the last 24 bytes that are mapped, 8 bytes after a page's start
    let mut machine = Machine::new(64, &[0xf3, 0x48, 0xa5]).with(|r| {
        (r.gpr[RSI], r.gpr[RDI], r.gpr[RCX]) = (UNMAPPED - 24, DATA, 10);
    });
    machine.write(UNMAPPED - 24, &[0x77; 24]);
    let after = machine.run(2);
    assert_eq!(after.rip, handler(14));
    assert_eq!((after.gpr[RSI], after.gpr[RDI], after.gpr[RCX]), (UNMAPPED, DATA + 24, 7));
    assert_eq!(machine.read(DATA), [0x77; 24]);
    let frame = after.gpr[RSP];
    assert_eq!(machine.read(frame + 8), CODE.to_le_bytes());
}

#[test]
fn a_repeated_instruction_counts_one_for_each_page_whatever_was_accessed_before() {
    let copy = [0xf3, 0xa4, 0x90];
    let registers = |r: &mut Registers| (r.gpr[RSI], r.gpr[RDI], r.gpr[RCX]) = (0x1_8000, 0x1_8f00, 0x1200);
    let steps = |machine: &mut Machine| {
        let mut counts = Vec::new();
        while machine.registers().rip != CODE + 2 {
            counts.push(machine.run(1).gpr[RCX]);
        }
        counts
    };
    let mut cold = Machine::new(64, &copy).with(registers);
    let counts = steps(&mut cold);
    assert_eq!(counts, [0x1100, 0x200, 0x100, 0]);
    let mut warm = cold.with(|r| r.rip = CODE).with(registers);
    assert_eq!(steps(&mut warm), counts);
}

#[test]
fn a_copy_onto_what_follows_repeats_the_start() {
    let mut machine = Machine::new(64, &[0xf3, 0xa4]).with(|r| {
        (r.gpr[RSI], r.gpr[RDI], r.gpr[RCX]) = (DATA, DATA + 3, 9);
    });
    machine.write(DATA, b"abc");
    machine.run(1);
    assert_eq!(&machine.read::<12>(DATA), b"abcabcabcabc");
    // Once more, with the pages known to be in RAM.
    let mut machine = machine.with(|r| (r.rip, r.gpr[RSI], r.gpr[RDI], r.gpr[RCX]) = (CODE, DATA + 1, DATA + 2, 8));
    machine.run(1);
    assert_eq!(&machine.read::<12>(DATA), b"abbbbbbbbbbc");
}

#[test]
fn fills_downwards_and_around_a_16_bit_segment() {
    // std; rep stosw
    let mut machine = Machine::new(16, &[0xfd, 0xf3, 0xab]).with(|r| {
        (r.gpr[RAX], r.gpr[RDI], r.gpr[RCX]) = (0x5aa5, 0xdead_0002, 4);
    });
    machine.write(0xfff8, &[0; 8]);
    let after = machine.run(4);
    assert_eq!((after.rip, after.gpr[RDI], after.gpr[RCX]), (CODE + 3, 0xdead_fffa, 0));
    assert_eq!(machine.read(0), [0xa5, 0x5a, 0xa5, 0x5a]);
    assert_eq!(machine.read(0xfffa), [0, 0, 0xa5, 0x5a, 0xa5, 0x5a]);
}

#[test]
fn repeated_comparisons_stop_where_the_condition_ends() {
    // repne scasb
    let mut machine = Machine::new(64, &[0xf2, 0xae]).with(|r| {
        (r.gpr[RAX], r.gpr[RDI], r.gpr[RCX]) = (u64::from(b'd'), DATA, 100);
    });
    machine.write(DATA, b"abcdef");
    let after = machine.run(1);
    assert_eq!((after.gpr[RDI], after.gpr[RCX], after.rflags & ZF), (DATA + 4, 96, ZF));
}

#[test]
fn decimal_adjustments_follow_the_manual() {
    let run = |code: &[u8], ax: u64, flags: u64| {
        let after = Machine::new(32, code)
            .with(|r| {
                r.gpr[RAX] = ax;
                r.rflags |= flags;
            })
            .run(1);
        (after.gpr[RAX], after.rflags & (CF | AF))
    };
    assert_eq!(run(&[0x27], 0xae, 0), (0x14, CF | AF));
    assert_eq!(run(&[0x27], 0x03, AF), (0x09, AF));
    assert_eq!(run(&[0x2f], 0xee, 0), (0x88, CF | AF));
    assert_eq!(run(&[0x2f], 0x03, AF), (0xfd, CF | AF));
    assert_eq!(run(&[0x37], 0x010f, 0), (0x0205, CF | AF));
    assert_eq!(run(&[0x37], 0x0105, 0), (0x0105, 0));
    assert_eq!(run(&[0x3f], 0x0205, AF), (0x000f, CF | AF));
    assert_eq!(run(&[0xd4, 0x0a], 0x37, 0).0, 0x0505);
    assert_eq!(run(&[0xd5, 0x0a], 0x0505, 0).0, 0x37);
    assert_eq!(run(&[0xd6], 0, CF), (0xff, CF));
    assert_eq!(Machine::new(32, &[0xd4, 0x00]).run(1).rip, handler(0));
}

#[test]
fn bound_lets_the_bounds_themselves_pass() {
    // bound eax, [ebx]
    for (index, rip) in [(-2i32, CODE + 2), (3, CODE + 2), (-3, handler(5)), (4, handler(5))] {
        let mut machine =
            Machine::new(32, &[0x62, 0x03]).with(|r| (r.gpr[RAX], r.gpr[RBX]) = (index as u32 as u64, DATA));
        machine.write(DATA, &(-2i32).to_le_bytes());
        machine.write(DATA + 4, &3i32.to_le_bytes());
        assert_eq!(machine.run(1).rip, rip, "{index}");
    }
}

/// No guest may bring the processor down, whatever it executes, in whatever state its own exceptions leave it.
#[test]
fn random_bytes_as_code_panic_nowhere() {
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for bits in [16, 32, 64].repeat(100) {
        let code: Vec<u8> = (0..4096).map(|_| random() as u8).collect();
        let mut machine = Machine::new(bits, &code).with(|r| {
            for register in &mut r.gpr {
                *register = if random() & 7 == 0 { random() } else { DATA + (random() & 0xfff) };
            }
        });
        let handlers: Vec<u8> = (0..16 * 32).map(|_| random() as u8).collect();
        machine.write(HANDLERS, &handlers);
        for _ in 0..50 {
            machine.run(100);
            machine = machine.with(|r| {
                r.rip = CODE + (random() & 0xfff);
                r.gpr[RSP] = STACK;
            });
        }
    }
}
