//! What instructions leave undefined: the only differences that are none.
//!
//! A flag, register or byte that is undefined may come out otherwise on the host's processor. Where it does, the case ends there: what
//! later instructions make of it is not compared, everything before is. Where it comes out the same, the case goes on. Flags that a form
//! leaves undefined whatever its operands are are never read by a later instruction ([`Case`]), and so not looked at here.
//!
//! | What | When | Intel SDM | AMD APM |
//! | --- | --- | --- | --- |
//! | OF of RCL and RCR (in [`Case`]) | masked count other than 1 (also where it is 1 or 0 only after the modulo of 9 or 17; a masked count of 0 changes nothing) | volume 2, RCL/RCR/ROL/ROR: "OF flag is defined only for the 1-bit rotates" | volume 3, RCL, RCR |
//! | destination, CF, OF, SF, ZF, AF, PF of SHLD and SHRD | masked count above 16 with 16-bit operands | volume 2, SHLD, SHRD: "count is greater than the operand size" | volume 3, SHLD, SHRD |
//! | which NaN a sum is, and in which elements, of DPPS and DPPD | several terms that are NaNs or infinities | volume 2, DPPS: "horizontal prioritization ... implementation dependent" | volume 4, DPPS |
//! | which NaN an element is, of HADDPS, HADDPD, HSUBPS, HSUBPD | both neighbours are NaNs: "first operand" means no element of a pair | volume 1, table 4-7 | volume 1, table 4-5 |
//! | C0 to C3 | by instruction, see [`condition_codes`] | volume 1, table 8-1 | volume 5, each instruction |
//! | FOP, FCS, FDP, FDS in environments that FNSTENV and FNSAVE store | hosts whose pointers are other than ours ([`Host`]) | volume 1, sections 8.1.8 and 8.1.9 | volume 1, section 6.2.5 |
//! | x87's state after an XRSTOR that faults over MXCSR: Intel's family 6, model 85, has restored it by then | always | volume 2, XRSTOR, whose operation restores one component after the other | volume 4, XRSTOR |
//! | XSTATE_BV of a component in its initial configuration, and whether XSAVEOPT writes it | always | volume 1, section 13.6 | volume 4, XSAVEOPT |

use std::ops::Range;

use iced_x86::{Code, Instruction, Mnemonic, Mnemonic::*, OpKind, Register};

use crate::case::{Case, FLAGS_ARITHMETIC};
use crate::host::Host;
use crate::layout::SCRATCH_LEN;
use crate::registers::{Outcome, Registers};

pub const C0: u16 = 1 << 8;
pub const C1: u16 = 1 << 9;
pub const C2: u16 = 1 << 10;
pub const C3: u16 = 1 << 14;
const STACK_FAULT: u16 = 1 << 6;

/// What of an outcome is undefined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undefined {
    pub rflags: u64,
    /// A general register and its undefined bits.
    pub gpr: Option<(usize, u64)>,
    /// Offsets in the scratch.
    pub memory: Vec<Range<usize>>,
    /// An XMM register, bytes of an element, and a bit for each element of which only that it is a NaN is defined.
    pub nans: Option<(usize, usize, u8)>,
    /// Bits of the x87 status word.
    pub condition_codes: u16,
    /// All of x87's state.
    pub x87: bool,
}

/// What the instruction at `index` leaves undefined that started from `before`; `after` is what the software processor made of it.
pub fn left_by(host: Host, case: &Case, index: usize, before: &Outcome, after: &Outcome) -> Undefined {
    let instruction = &case.instructions[index];
    let mut undefined = Undefined::default();
    match instruction.mnemonic() {
        Shld | Shrd => double_shift(&mut undefined, case, instruction, &before.registers),
        Dpps | Dppd => undefined.nans = dot_product(instruction, case, before),
        Haddps | Hsubps => undefined.nans = horizontal(instruction, 4, case, before),
        Haddpd | Hsubpd => undefined.nans = horizontal(instruction, 8, case, before),
        Fnstenv | Fnsave if !host.keeps_pointers => environment(&mut undefined, case, instruction, &before.registers),
        Xrstor | Xrstor64 => undefined.x87 = after.fault.is_some(),
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 => saved_state(&mut undefined, case, instruction, before),
        _ => {}
    }
    undefined.condition_codes = condition_codes(instruction, &before.registers, &after.registers);
    undefined
}

/// Where the memory operand lies in the scratch.
fn operand_offset(case: &Case, instruction: &Instruction, registers: &Registers) -> Option<usize> {
    let number = |register: Register| register.full_register() as usize - Register::RAX as usize;
    let operand = (0..instruction.op_count()).find(|operand| instruction.op_kind(*operand) == OpKind::Memory)?;
    let address = instruction.virtual_address(operand, 0, |register, _, _| {
        let value = if register.is_gpr() { registers.gpr[number(register)] } else { 0 };
        Some(if register.size() == 4 { value & 0xffff_ffff } else { value })
    })?;
    usize::try_from(address.checked_sub(case.place.scratch())?).ok().filter(|offset| *offset < SCRATCH_LEN)
}

fn double_shift(undefined: &mut Undefined, case: &Case, instruction: &Instruction, before: &Registers) {
    const RCX: usize = 1;
    let count =
        if instruction.op2_kind() == OpKind::Register { before.gpr[RCX] as u8 } else { instruction.immediate8() };
    if instruction.op1_register().size() != 2 || count & 31 <= 16 {
        return;
    }
    undefined.rflags = FLAGS_ARITHMETIC;
    if instruction.op0_kind() == OpKind::Register {
        undefined.gpr = Some((instruction.op0_register() as usize - Register::AX as usize, 0xffff));
    } else if let Some(at) = operand_offset(case, instruction, before) {
        undefined.memory.push(at..at + 2);
    }
}

/// The two vector operands.
fn vectors(instruction: &Instruction, case: &Case, before: &Outcome) -> Option<(usize, [u128; 2])> {
    let xmm = before.registers.fpu().xmm;
    let number = |register: Register| register as usize - Register::XMM0 as usize;
    let destination = number(instruction.op0_register());
    let source = if instruction.op1_kind() == OpKind::Register {
        xmm[number(instruction.op1_register())]
    } else {
        let at = operand_offset(case, instruction, &before.registers)?;
        u128::from_le_bytes(before.scratch.get(at..at + 16)?.try_into().ok()?)
    };
    Some((destination, [xmm[destination], source]))
}

/// The elements of a vector, as doubles.
fn elements(vector: u128, len: usize, denormals_are_zeros: bool) -> Vec<f64> {
    let flushed = |value: f64, denormal: bool| if denormal && denormals_are_zeros { 0.0 } else { value };
    (0..16 / len)
        .map(|n| {
            let bits = (vector >> (8 * len * n)) as u64;
            if len == 4 {
                let single = f32::from_bits(bits as u32);
                flushed(single.into(), single.is_subnormal())
            } else {
                let double = f64::from_bits(bits);
                flushed(double, double.is_subnormal())
            }
        })
        .collect()
}

/// Products of singles are exact in doubles; those of doubles overflow or not whatever the rounding, but for a hair.
fn dot_product(instruction: &Instruction, case: &Case, before: &Outcome) -> Option<(usize, usize, u8)> {
    let len = if instruction.mnemonic() == Dpps { 4 } else { 8 };
    let (destination, operands) = vectors(instruction, case, before)?;
    let denormals_are_zeros = before.registers.fpu().mxcsr & 1 << 6 != 0;
    let [left, right] = operands.map(|vector| elements(vector, len, denormals_are_zeros));
    let chosen = |n: &usize| instruction.immediate8() >> (4 + n) & 1 == 1;
    let products = (0..16 / len).filter(chosen).map(|n| left[n] * right[n]);
    let special = products.filter(|product| !product.is_finite()).count();
    (special > 1).then_some((destination, len, 0xff))
}

fn horizontal(instruction: &Instruction, len: usize, case: &Case, before: &Outcome) -> Option<(usize, usize, u8)> {
    let (destination, operands) = vectors(instruction, case, before)?;
    let all = operands.map(|vector| elements(vector, len, false)).concat();
    let pairs = all.chunks_exact(2).enumerate();
    let both = pairs.filter(|(_, pair)| pair.iter().all(|value| value.is_nan()));
    Some((destination, len, both.fold(0, |mask, (n, _)| mask | 1 << n)))
}

/// FOP, FCS, FDP and FDS of an environment (Intel SDM volume 1, figures 8-9 and 8-11).
pub fn maker_fields(instruction: &Instruction) -> Range<usize> {
    match instruction.code() {
        Code::Fnstenv_m14byte | Code::Fnsave_m94byte => 8..14,
        // Not the reserved half behind FDS.
        _ => 16..26,
    }
}

fn environment(undefined: &mut Undefined, case: &Case, instruction: &Instruction, before: &Registers) {
    if let Some(at) = operand_offset(case, instruction, before) {
        let fields = maker_fields(instruction);
        undefined.memory.push(at + fields.start..at + fields.end);
    }
}

/// XSTATE_BV's low byte in an XSAVE area, and the components' parts of it.
const XSTATE_BV: usize = 512;
const X87_PARTS: [Range<usize>; 2] = [0..24, 32..160];
const SSE_PART: Range<usize> = 160..416;

fn saved_state(undefined: &mut Undefined, case: &Case, instruction: &Instruction, before: &Outcome) {
    let Some(at) = operand_offset(case, instruction, &before.registers) else { return };
    let mut leave = |part: Range<usize>| undefined.memory.push(at + part.start..at + part.end);
    let fpu = before.registers.fpu();
    let x87_initial = fpu.registers == [(0, 0); 8] && (fpu.control, fpu.status, fpu.valid) == (0x37f, 0, 0);
    let sse_initial = fpu.xmm == [0; 16];
    if x87_initial || sse_initial {
        leave(XSTATE_BV..XSTATE_BV + 1);
    }
    if matches!(instruction.mnemonic(), Xsaveopt | Xsaveopt64) {
        if x87_initial {
            X87_PARTS.into_iter().for_each(&mut leave);
        }
        if sse_initial {
            leave(SSE_PART);
        }
    }
}

/// Condition codes that an instruction leaves undefined (Intel SDM volume 1, table 8-1, and volume 2; AMD APM volume 5). C1 tells
/// overflow from underflow of the stack after every stack fault.
pub fn condition_codes(instruction: &Instruction, before: &Registers, after: &Registers) -> u16 {
    let (status, was) = (after.fpu().status, before.fpu().status);
    let faulted = status & !was & STACK_FAULT != 0;
    let defined_c1 = |codes: u16| if faulted { codes & !C1 } else { codes };
    match instruction.mnemonic() {
        Fcom | Fcomp | Fcompp | Ficom | Ficomp | Ftst | Fucom | Fucomp | Fucompp => 0,
        // The codes of pseudo-denormals are in no table.
        Fxam if is_pseudo_denormal(before) => C0 | C2 | C3,
        Fxam | Fninit | Fnsave | Fldenv | Frstor => 0,
        // Not in table 8-1's second row only: C1 is "set to 0" in volume 2, but processors leave it.
        Fcomi | Fcomip | Fucomi | Fucomip | Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne | Fcmovnbe
        | Fcmovnu => defined_c1(C0 | C1 | C2 | C3),
        // Without a quotient, or with only a part of it.
        Fprem | Fprem1 if status & C2 != 0 || status & 1 != 0 || top_is_nan(after) => defined_c1(C0 | C1 | C3),
        Fprem | Fprem1 => 0,
        Fsin | Fcos | Fsincos | Fptan if status & C2 != 0 => defined_c1(C0 | C1 | C3),
        Fsin | Fcos | Fsincos | Fptan => C0 | C3,
        Fldcw | Fnclex | Fnstcw | Fnstsw | Fnstenv | Ffree | Ffreep | Fnop | Fstpnce => C0 | C1 | C2 | C3,
        mnemonic if is_computing(mnemonic) => C0 | C2 | C3,
        _ => 0,
    }
}

/// Whether this is an x87 instruction that FIP, and where it concerns them FOP and FDP, are set by. Processors count FNOP, FFREE,
/// FINCSTP and FDECSTP, which table 8-1 calls control instructions.
pub fn is_computing(mnemonic: Mnemonic) -> bool {
    let control = matches!(
        mnemonic,
        Fldcw
            | Fnstcw
            | Fnstsw
            | Fnclex
            | Fninit
            | Fnstenv
            | Fldenv
            | Fnsave
            | Frstor
            | Fneni
            | Fndisi
            | Fnsetpm
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Femms
    );
    format!("{mnemonic:?}").starts_with('F') && !control
}

fn top(registers: &Registers) -> (u64, u16) {
    let fpu = registers.fpu();
    fpu.registers[usize::from(fpu.status >> 11 & 7)]
}

fn is_pseudo_denormal(registers: &Registers) -> bool {
    let (significand, sign_exponent) = top(registers);
    sign_exponent & 0x7fff == 0 && significand >> 63 == 1
}

fn top_is_nan(registers: &Registers) -> bool {
    let (significand, sign_exponent) = top(registers);
    sign_exponent & 0x7fff == 0x7fff && significand << 1 != 0
}
