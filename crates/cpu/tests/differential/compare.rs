//! Compares what the host did with what the software processor did.

use std::fmt::Write as _;

use crate::case::{Case, FLAGS_COMPARED};
use crate::registers::{GPR_NAMES, Outcome};
use crate::vendor::Compared;

/// `None` when both did the same, else the differences in words.
pub fn differences(case: &Case, native: &Outcome, ours: &Outcome, compared: Compared) -> Option<String> {
    let reached = case.index_of(native.registers.rip);
    let undefined = match reached {
        Some(0) | None => 0,
        Some(count) => case.undefined_flags.get(count - 1).copied().unwrap_or(0),
    };
    let flags = FLAGS_COMPARED & !undefined;
    let same = native.fault == ours.fault
        && native.registers.rip == ours.registers.rip
        && native.registers.gpr[1..] == ours.registers.gpr[1..]
        && (native.registers.rflags ^ ours.registers.rflags) & flags == 0
        && compared.same(native, ours);
    (!same).then(|| describe(case, native, ours, flags))
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
