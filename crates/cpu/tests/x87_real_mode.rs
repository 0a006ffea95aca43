//! The x87 environment in the formats of real-address mode (Intel SDM volume 1, figures 8-10 and 8-12), which no 64-bit host
//! runs natively.

use cpu::{Bus, CpuConfig, Exit, Processors, ProcessorsState};
use memory::GuestRam;

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

const CODE: u64 = 0x1000;
const SHORT: u64 = 0x2000;
const LONG: u64 = 0x2040;
const CONTROL: u64 = 0x2080;

fn run(code: &[u8], instructions: u64) -> GuestRam {
    let ram = GuestRam::new(1 << 20).expect("a mebibyte");
    ram.write_bytes(CODE, code).expect("the code is in RAM");
    // Every exception unmasked.
    ram.write_bytes(CONTROL, &0x340u16.to_le_bytes()).expect("the control word is in RAM");
    let mut state = ProcessorsState::reset(1);
    let vcpu = &mut state.vcpus[0];
    vcpu.segments[1].selector = 0;
    vcpu.segments[1].base = 0;
    vcpu.rip = CODE;
    let mut processors = Processors::new(ram.clone(), CpuConfig::default(), &state).expect("a valid state");
    assert_eq!(processors.run(instructions, &mut Nothing), Exit::BudgetSpent);
    ram
}

fn words<const N: usize>(ram: &GuestRam, address: u64) -> [u16; N] {
    std::array::from_fn(|index| ram.load(address + 2 * index as u64).expect("the environment is in RAM"))
}

#[test]
fn the_environment_has_the_formats_of_real_address_mode() {
    let code = [
        0xdb, 0xe3, // fninit
        0xd9, 0xe8, // fld1
        0xd9, 0x2e, 0x80, 0x20, // fldcw [CONTROL]
        0xd8, 0x36, 0x00, 0x30, // fdiv dword [0x3000], which is zero
        0xd9, 0x36, 0x00, 0x20, // fnstenv [SHORT]
        0x66, 0xd9, 0x36, 0x40, 0x20, // fnstenvd [LONG]
    ];
    let ram = run(&code, 6);
    // Zero-divide, ES, B; TOP is 7, and register 7 alone is valid.
    let status = 0xb884;
    let opcode = 0x036;
    assert_eq!(words(&ram, SHORT), [0x340, status, 0x3fff, 0x1008, opcode, 0x3000, 0]);
    // FNSTENV has masked everything.
    let status = 0x3804;
    assert_eq!(
        words(&ram, LONG),
        [0x37f, 0xffff, status, 0xffff, 0x3fff, 0xffff, 0x1008, 0, opcode, 0, 0x3000, 0, 0, 0]
    );
}

#[test]
fn an_environment_loads_from_what_it_was_stored_to() {
    let code = [
        0xdb, 0xe3, // fninit
        0xd9, 0xe8, // fld1
        0x66, 0xd9, 0x36, 0x40, 0x20, // fnstenvd [LONG]
        0xdb, 0xe3, // fninit
        0x66, 0xd9, 0x26, 0x40, 0x20, // fldenvd [LONG]
        0xd9, 0x36, 0x00, 0x20, // fnstenv [SHORT]
    ];
    let ram = run(&code, 6);
    assert_eq!(words(&ram, SHORT), [0x37f, 0x3800, 0x3fff, 0x1002, 0, 0, 0]);
}
