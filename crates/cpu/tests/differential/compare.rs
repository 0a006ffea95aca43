//! Compares what the host did with what the software processor did.

use std::fmt::Write as _;
use std::ops::Range;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::case::{Case, FLAGS_COMPARED};
use crate::host::Host;
use crate::registers::{GPR_NAMES, Outcome};
use crate::state;
use crate::undefined::{Undefined, is_computing};

/// How outcomes of one family are compared on one host.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    pub host: Host,
    /// Whether the scratch holds the images of [`state::save_restore`], with fields that this host fills otherwise.
    images: bool,
}

/// Parts of an FXSAVE image: status word; a reserved byte; last opcode; last instruction and operand; MXCSR_MASK.
const STATUS: Range<usize> = 2..4;
const RESERVED: Range<usize> = 5..6;
const OPCODE: Range<usize> = 6..8;
const INSTRUCTION: Range<usize> = 8..16;
const OPERAND: Range<usize> = 16..24;
const MXCSR_MASK: Range<usize> = 28..32;
/// Everything behind the last XMM register is reserved or the program's.
const REGISTERS_END: usize = 416;
const ERROR_SUMMARY: u8 = 1 << 7;
const OVERFLOW_FLAG: u64 = 1 << 11;

impl Comparison {
    pub fn new(host: Host, family: &str) -> Self {
        Self { host, images: family == "save_restore" && !host.keeps_pointers }
    }

    /// `None` when both did the same but for what is undefined, else the differences in words.
    pub fn differences(self, case: &Case, native: &Outcome, ours: &Outcome, undefined: &Undefined) -> Option<String> {
        let flags = FLAGS_COMPARED & !undefined_flags(case, native) & !undefined.rflags;
        let same = native.fault == ours.fault
            && native.registers.rip == ours.registers.rip
            && (native.registers.rflags ^ ours.registers.rflags) & flags == 0
            && same_gpr(native, ours, undefined)
            && self.same_memory(native, ours, undefined)
            && self.same_fpu(case, native, ours, undefined);
        (!same).then(|| describe(case, native, ours, flags))
    }

    fn same_memory(self, native: &Outcome, ours: &Outcome, undefined: &Undefined) -> bool {
        if native.scratch == ours.scratch {
            return true;
        }
        let images = if self.images { state::IMAGES.as_slice() } else { &[] };
        let open = [RESERVED, OPCODE, INSTRUCTION, OPERAND, MXCSR_MASK];
        let open = images.iter().flat_map(|at| open.clone().map(|part| at + part.start..at + part.end));
        let open: Vec<Range<usize>> = open.chain(undefined.memory.iter().cloned()).collect();
        let differs = native.scratch.iter().zip(&ours.scratch).enumerate().filter(|(_, (native, ours))| native != ours);
        differs.into_iter().all(|(at, _)| open.iter().any(|range| range.contains(&at)))
    }

    fn same_fpu(self, case: &Case, native: &Outcome, ours: &Outcome, undefined: &Undefined) -> bool {
        let (native_fx, ours_fx) = (&native.registers.fx, &ours.registers.fx);
        let same = |range: Range<usize>| native_fx[range.clone()] == ours_fx[range];
        let status = |fx: &[u8; 512]| u16::from_le_bytes([fx[STATUS.start], fx[STATUS.start + 1]]);
        let mask = same(MXCSR_MASK) || !self.host.keeps_pointers;
        let x87 = || {
            same(0..STATUS.start)
                && (status(native_fx) ^ status(ours_fx)) & !undefined.condition_codes == 0
                && same(STATUS.end..OPCODE.start)
                && self.same_pointers(case, native, ours)
                && same(MXCSR_MASK.end..XMM)
        };
        (undefined.x87 || x87()) && same(OPERAND.end..MXCSR_MASK.start) && mask && same_xmm(native, ours, undefined)
    }

    /// FOP, FIP and FDP. A host that shows them only while an exception is pending keeps them as ours when it is the last computing
    /// instruction that has raised it: nothing that changes them can run before the exception is delivered. What such a host has restored
    /// counts unless it may have saved it before: an image has its selectors in the upper half of the pointers, and no pointers without an
    /// exception.
    fn same_pointers(self, case: &Case, native: &Outcome, ours: &Outcome) -> bool {
        let same = |range: Range<usize>| native.registers.fx[range.clone()] == ours.registers.fx[range];
        if self.host.keeps_pointers {
            return same(OPCODE.start..OPERAND.end);
        }
        if native.registers.fx[STATUS.start] & ERROR_SUMMARY == 0 {
            return true;
        }
        let executed = case.index_of(native.registers.rip).filter(|_| case.straight).unwrap_or(0);
        let changes = |instruction: &&Instruction| is_x87(instruction.mnemonic()) || restores(instruction.mnemonic());
        let executed = &case.instructions[..executed];
        let Some(last) = executed.iter().rev().find(changes) else { return true };
        if restores(last.mnemonic()) {
            if executed.iter().any(|instruction| saves(instruction.mnemonic())) {
                return true;
            }
            let but_selector =
                |pointer: Range<usize>| same(pointer.start..pointer.start + 4) && same(pointer.start + 6..pointer.end);
            return same(OPCODE) && but_selector(INSTRUCTION) && but_selector(OPERAND);
        }
        let has_operand = last.op0_kind() == OpKind::Memory;
        !is_computing(last.mnemonic()) || same(OPCODE) && same(INSTRUCTION) && (same(OPERAND) || !has_operand)
    }
}

/// Where the XMM registers are in an FXSAVE image.
const XMM: usize = 160;

/// Whether this is an x87 instruction that may change status, exceptions or pointers.
fn is_x87(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    is_computing(mnemonic) || matches!(mnemonic, Fldcw | Fnclex | Fninit | Fnstenv | Fldenv | Fnsave | Frstor)
}

/// Whether this instruction may take x87's state from an image that FXSAVE or XSAVE could have written.
fn restores(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Fxrstor | Mnemonic::Fxrstor64 | Mnemonic::Xrstor | Mnemonic::Xrstor64)
}

/// Whether this instruction writes such an image.
fn saves(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Fxsave | Fxsave64 | Xsave | Xsave64 | Xsaveopt | Xsaveopt64)
}

/// Flags that the case has left undefined. OF after a shift by CL is defined where CL is one.
fn undefined_flags(case: &Case, native: &Outcome) -> u64 {
    const RCX: usize = 1;
    let Some(last) = case.index_of(native.registers.rip).and_then(|count| count.checked_sub(1)) else { return 0 };
    let undefined = case.undefined_flags.get(last).copied().unwrap_or(0);
    let Some(instruction) = case.instructions.get(last).filter(|_| case.straight) else { return undefined };
    let by_cl = instruction.op_count() > 1 && instruction.op_register(instruction.op_count() - 1) == Register::CL;
    let keeps_cl = instruction.op0_register().full_register() != Register::RCX;
    let mask = if instruction.op0_register().size() == 8 || instruction.memory_size().size() == 8 { 63 } else { 31 };
    if by_cl && keeps_cl && native.registers.gpr[RCX] & mask == 1 { undefined & !OVERFLOW_FLAG } else { undefined }
}

fn same_gpr(native: &Outcome, ours: &Outcome, undefined: &Undefined) -> bool {
    native.registers.gpr.iter().zip(&ours.registers.gpr).enumerate().all(|(number, (native, ours))| {
        let open = undefined.gpr.filter(|(register, _)| *register == number).map_or(0, |(_, bits)| bits);
        (native ^ ours) & !open == 0
    })
}

fn same_xmm(native: &Outcome, ours: &Outcome, undefined: &Undefined) -> bool {
    let (native, ours) = (&native.registers.fx[XMM..REGISTERS_END], &ours.registers.fx[XMM..REGISTERS_END]);
    if native == ours {
        return true;
    }
    let Some((open, len, elements)) = undefined.nans else { return false };
    let registers = native.chunks_exact(16).zip(ours.chunks_exact(16)).enumerate();
    registers.filter(|(_, (native, ours))| native != ours).all(|(number, (native, ours))| {
        let mut pairs = native.chunks_exact(len).zip(ours.chunks_exact(len)).enumerate();
        number == open
            && pairs.all(|(n, (native, ours))| {
                native == ours || elements >> n & 1 == 1 && is_quiet_nan(native) && is_quiet_nan(ours)
            })
    })
}

/// Whether these are the bytes of a quiet NaN, single or double.
fn is_quiet_nan(bytes: &[u8]) -> bool {
    let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    let quiet = if bytes.len() == 4 { 0x7fc0_0000 } else { 0x7ff8 << 48 };
    value & quiet == quiet
}

fn describe(case: &Case, native: &Outcome, ours: &Outcome, flags: u64) -> String {
    let mut text = String::new();
    let mut line = |what: &str, native: String, ours: String| {
        if native != ours {
            let _ = writeln!(text, "  {what:<8} native {native}  ours {ours}");
        }
    };
    line("fault", format!("{:?}", native.fault), format!("{:?}", ours.fault));
    line("rip", format!("{:x}", native.registers.rip), format!("{:x}", ours.registers.rip));
    for (number, name) in GPR_NAMES.iter().enumerate() {
        line(name, format!("{:016x}", native.registers.gpr[number]), format!("{:016x}", ours.registers.gpr[number]));
    }
    line("rflags", format!("{:x}", native.registers.rflags & flags), format!("{:x}", ours.registers.rflags & flags));
    let (native_fpu, ours_fpu) = (native.registers.fpu(), ours.registers.fpu());
    line("mxcsr", format!("{:x}", native_fpu.mxcsr), format!("{:x}", ours_fpu.mxcsr));
    for number in 0..16 {
        line(
            &format!("xmm{number}"),
            format!("{:032x}", native_fpu.xmm[number]),
            format!("{:032x}", ours_fpu.xmm[number]),
        );
    }
    line("fcw", format!("{:04x}", native_fpu.control), format!("{:04x}", ours_fpu.control));
    line("fsw", format!("{:04x}", native_fpu.status), format!("{:04x}", ours_fpu.status));
    line("ftw", format!("{:02x}", native_fpu.valid), format!("{:02x}", ours_fpu.valid));
    line("fop", format!("{:03x}", native_fpu.last_opcode), format!("{:03x}", ours_fpu.last_opcode));
    line("fip", format!("{:x}", native_fpu.last_instruction), format!("{:x}", ours_fpu.last_instruction));
    line("fdp", format!("{:x}", native_fpu.last_operand), format!("{:x}", ours_fpu.last_operand));
    for number in 0..8 {
        let show = |(significand, sign_exponent): (u64, u16)| format!("{sign_exponent:04x}:{significand:016x}");
        line(&format!("r{number}"), show(native_fpu.registers[number]), show(ours_fpu.registers[number]));
    }
    for (at, (native, ours)) in native.scratch.chunks(8).zip(ours.scratch.chunks(8)).enumerate() {
        if native != ours {
            let show = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            line(&format!("{:x}", case.place.scratch() + 8 * at as u64), show(native), show(ours));
        }
    }
    text
}

/// The state a case starts from, as far as its instructions are likely to need it.
pub fn describe_start(case: &Case) -> String {
    let mut text = String::new();
    let registers = &case.registers;
    for (number, name) in GPR_NAMES.iter().enumerate() {
        let end = if number % 4 == 3 { "\n" } else { "" };
        let _ = write!(text, "  {name:>4} {:016x}{end}", registers.gpr[number]);
    }
    let fpu = registers.fpu();
    let _ = writeln!(text, "  rflags {:x} mxcsr {:x}", registers.rflags, fpu.mxcsr);
    let disassembly = case.disassembly();
    if disassembly.contains("xmm") {
        for (number, value) in fpu.xmm.iter().enumerate() {
            if disassembly.contains(&format!("xmm{number}")) {
                let _ = writeln!(text, "  xmm{number} {value:032x}");
            }
        }
    }
    let x87 = case.instructions.iter().any(|instruction| format!("{:?}", instruction.mnemonic()).starts_with('F'));
    if x87 || disassembly.contains("mm") {
        let _ = writeln!(text, "  fcw {:04x} fsw {:04x} ftw {:02x}", fpu.control, fpu.status, fpu.valid);
        for (number, (significand, sign_exponent)) in fpu.registers.iter().enumerate() {
            let _ = writeln!(text, "  r{number} {sign_exponent:04x}:{significand:016x}");
        }
    }
    text
}
