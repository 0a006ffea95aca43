//! The code that loads all registers, jumps to a case, and stores all registers.

use std::mem::offset_of;

use super::Context;
use crate::layout::Place;
use crate::registers::Registers;

const RSP: u8 = 4;

pub struct Trampoline {
    pub code: Vec<u8>,
    /// Where a finished case jumps to.
    pub exit: u64,
    /// Where the signal handler resumes, with RSP as the host had it.
    pub fault_exit: u64,
}

pub fn build(place: Place) -> Trampoline {
    let field = |offset: usize| u32::try_from(place.context() + offset as u64).expect("the context is below 4 GiB");
    let before = |offset: usize| field(offset_of!(Context, before) + offset);
    let after = |offset: usize| field(offset_of!(Context, after) + offset);
    let gpr = |number: u8| offset_of!(Registers, gpr) + 8 * usize::from(number);
    let host_rsp = field(offset_of!(Context, host_rsp));
    let mut code = Vec::new();

    // push rbx, rbp, r12 to r15
    code.extend([0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]);
    absolute(&mut code, &[0x89], RSP, host_rsp);
    // fninit, since some processors' FXRSTOR leaves the last pointers as they are
    code.extend([0xdb, 0xe3]);
    absolute(&mut code, &[0x0f, 0xae], 1, before(offset_of!(Registers, fx))); // fxrstor64
    code.push(0xbc); // mov esp, address of the flags
    code.extend(before(offset_of!(Registers, rflags)).to_le_bytes());
    code.push(0x9d); // popfq
    for number in (0..16).filter(|number| *number != RSP).chain([RSP]) {
        absolute(&mut code, &[0x8b], number, before(gpr(number)));
    }
    absolute(&mut code, &[0xff], 4, before(offset_of!(Registers, rip))); // jmp

    let exit = place.trampoline() + code.len() as u64;
    for number in 0..16 {
        absolute(&mut code, &[0x89], number, after(gpr(number)));
    }
    code.push(0xbc); // mov esp, end of the flags
    code.extend((after(offset_of!(Registers, rflags)) + 8).to_le_bytes());
    code.push(0x9c); // pushfq
    absolute(&mut code, &[0x0f, 0xae], 0, after(offset_of!(Registers, fx))); // fxsave64
    absolute(&mut code, &[0x8b], RSP, host_rsp);

    let fault_exit = place.trampoline() + code.len() as u64;
    code.extend([0x68, 2, 0, 0, 0, 0x9d]); // push 2; popfq
    code.extend([0xdb, 0xe3]); // fninit
    absolute(&mut code, &[0x0f, 0xae], 2, field(offset_of!(Context, mxcsr))); // ldmxcsr
    // pop r15 to r12, rbp, rbx; ret
    code.extend([0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);
    Trampoline { code, exit, fault_exit }
}

/// REX.W, opcode, and a ModRM byte with `reg` and an absolute 32-bit address.
fn absolute(code: &mut Vec<u8>, opcode: &[u8], reg: u8, address: u32) {
    code.push(0x48 | (reg >> 3) << 2);
    code.extend(opcode);
    code.extend([(reg & 7) << 3 | 4, 0x25]);
    code.extend(address.to_le_bytes());
}
