use iced_x86::{Code, CpuidFeature, Instruction, OpKind, Register};
use memory::GuestRam;

use crate::bus::Bus;
use crate::op::{Op, Site};
use crate::state::VcpuState;
use crate::unit::control::cr4;
use crate::{CpuConfig, Processors, ProcessorsState, Registers};

const CODE: u64 = 0x1000;
/// Handlers of vector n lie at this plus 16 n.
const HANDLERS: u64 = 0x2000;
const OVERFLOW_AND_INEXACT: u32 = 1 << 3 | 1 << 5;
const UNMASKED: u32 = 0;

#[test]
fn every_instruction_of_the_extensions_is_lowered() {
    const OTHERS: [&str; 12] = [
        "Prefetch", "Lfence", "Mfence", "Sfence", "Movnti", "Crc32", "Fisttp", "Clflush", "Monitor", "Mwait", "Pause",
        "VEX",
    ];
    let family = [
        CpuidFeature::MMX,
        CpuidFeature::SSE,
        CpuidFeature::SSE2,
        CpuidFeature::SSE3,
        CpuidFeature::SSSE3,
        CpuidFeature::SSE4_1,
        CpuidFeature::SSE4_2,
    ];
    let mut lowered = 0;
    for code in Code::values() {
        let name = format!("{code:?}");
        if OTHERS.iter().any(|other| name.starts_with(other))
            || !code.cpuid_features().iter().any(|feature| family.contains(feature))
        {
            continue;
        }
        // As in "Pinsrw_xmm_r32m16_imm8": one part an operand.
        let operands: Vec<&str> = name.split('_').skip(1).collect();
        let is_memory =
            |operand: &str| operand.strip_prefix('m').is_some_and(|rest| rest.starts_with(char::is_numeric));
        let may_be_memory = |operand: &str| {
            operand.contains("mmm") || operand.starts_with("rm") || operand.starts_with('r') && operand.contains('m')
        };
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        for operand in 0..instruction.op_count().min(3) {
            instruction.set_op_register(operand, Register::XMM1);
        }
        if !operands.iter().any(|operand| is_memory(operand)) {
            assert!(lower(&instruction), "{name}");
        }
        if let Some(operand) = operands.iter().position(|operand| is_memory(operand) || may_be_memory(operand)) {
            instruction.set_op_kind(operand as u32, OpKind::Memory);
            assert!(lower(&instruction), "{name} with memory");
        }
        lowered += 1;
    }
    assert_eq!(lowered, 383);
}

fn lower(instruction: &Instruction) -> bool {
    let mut op = Op::new(instruction, 0);
    super::lower(instruction, Site { block_rip: 0, offset: 0, code_bits: 64 }, &mut op).is_some()
}

#[test]
fn unmasked_exception_sets_flags_and_changes_nothing_else() {
    // mulps xmm0, xmm1
    let code = [0x0f, 0x59, 0xc1];
    let huge = u128::from(f32::MAX.to_bits());
    let after = run(&code, cr4::OSFXSR | cr4::OSXMMEXCPT, |registers| {
        registers.fpu.mxcsr = UNMASKED;
        registers.fpu.xmm[0] = huge;
        registers.fpu.xmm[1] = huge;
    });
    assert_eq!(after.rip, HANDLERS + 16 * 19);
    assert_eq!(after.fpu.mxcsr, UNMASKED | OVERFLOW_AND_INEXACT);
    assert_eq!(after.fpu.xmm[0], huge);
}

#[test]
fn unmasked_exception_is_an_invalid_opcode_for_systems_that_do_not_handle_it() {
    let divps = [0x0f, 0x5e, 0xc1];
    let after = run(&divps, cr4::OSFXSR, |registers| registers.fpu.mxcsr = UNMASKED);
    assert_eq!(after.rip, HANDLERS + 16 * 6);
    assert_eq!(after.fpu.mxcsr, 1);
}

#[test]
fn flags_of_earlier_instructions_raise_nothing() {
    let addps = [0x0f, 0x58, 0xc1];
    let after = run(&addps, cr4::OSFXSR | cr4::OSXMMEXCPT, |registers| registers.fpu.mxcsr = UNMASKED | 0x3f);
    assert_eq!(after.rip, CODE + 3);
    assert_eq!(after.fpu.mxcsr, UNMASKED | 0x3f);
}

#[test]
fn misaligned_operands_fault_before_anything_changes() {
    // addps xmm0, [bx]; movaps [bx], xmm0; movups [bx], xmm0
    for (code, vector) in [([0x0f, 0x58, 0x07], Some(13)), ([0x0f, 0x29, 0x07], Some(13)), ([0x0f, 0x11, 0x07], None)] {
        let after = run(&code, cr4::OSFXSR, |registers| registers.gpr[3] = 0x3008);
        assert_eq!(after.rip, vector.map_or(CODE + 3, |vector| HANDLERS + 16 * vector), "{code:x?}");
    }
}

/// Runs an instruction in real mode, and what delivers its exception if it raises one.
fn run(code: &[u8], cr4: u64, prepare: impl Fn(&mut Registers)) -> Registers {
    let ram = GuestRam::new(1 << 16).unwrap();
    for vector in 0..32 {
        assert!(ram.write_offset(4 * vector, &((HANDLERS + 16 * vector) as u32).to_le_bytes()));
    }
    assert!(ram.write_offset(CODE, code));
    let mut vcpu = VcpuState::reset(0);
    vcpu.cr0 = 0x10;
    vcpu.cr4 = cr4;
    vcpu.segments[1].base = 0;
    vcpu.segments[1].selector = 0;
    vcpu.rip = CODE;
    vcpu.gpr[4] = 0x8000;
    let mut processors = Processors::new(ram, CpuConfig::default(), &ProcessorsState::from_vcpus(vec![vcpu])).unwrap();
    let mut registers = processors.registers(0).unwrap();
    prepare(&mut registers);
    assert!(processors.set_registers(0, &registers));
    processors.run(1, &mut NoDevices);
    processors.registers(0).unwrap()
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
