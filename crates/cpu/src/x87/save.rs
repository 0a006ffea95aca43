//! FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR: x87 and SSE state in the standard format (Intel SDM volume 1, sections 10.5 and
//! 13.4 to 13.9).

use iced_x86::Code;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::mmu::Access;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::Sse;
use crate::unit::x87::{Register80, X87, control};

/// Bytes from the control word to the last XMM register; those behind are left to the program.
const LEGACY_LEN: usize = 416;
const MXCSR: usize = 24;
const MXCSR_LEN: usize = 8;
/// Where the x87 registers are, each in 16 bytes.
const ST: usize = 32;
const XMM: usize = 160;
/// Where the header of an XSAVE area is.
const HEADER: u64 = 512;
/// XSTATE_BV, XCOMP_BV and the reserved word behind them.
const HEADER_LEN: usize = 24;

/// State components.
const X87_STATE: u64 = 1 << 0;
const SSE_STATE: u64 = 1 << 1;

const RAX: usize = 0;
const RDX: usize = 2;

type Image = [u8; LEGACY_LEN];

pub(super) fn lower(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Fxsave_m512byte => fxsave::<false>,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        Code::Xsave_mem => xsave::<false, false>,
        Code::Xsave64_mem => xsave::<true, false>,
        Code::Xsaveopt_mem => xsave::<false, true>,
        Code::Xsaveopt64_mem => xsave::<true, true>,
        Code::Xrstor_mem => xrstor::<false>,
        Code::Xrstor64_mem => xrstor::<true>,
        _ => return None,
    })
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let linear = aligned(cpu, op, 16)?;
    let image = image::<WIDE>(cpu);
    let len = XMM + 16 * xmm_registers(cpu);
    cpu.write_linear(linear, &image[..len], Access::Write, bus)
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let linear = aligned(cpu, op, 16)?;
    let mut image = [0; LEGACY_LEN];
    cpu.read_linear(linear, &mut image, Access::Read, bus)?;
    let mxcsr = mxcsr_of(cpu, &image)?;
    restore_x87::<WIDE>(cpu, &image);
    restore_xmm(cpu, &image);
    cpu.sse.mxcsr = mxcsr;
    Ok(())
}

/// XSAVE; with `OPTIMIZED` XSAVEOPT, which does not write components that are in their initial configuration.
fn xsave<const WIDE: bool, const OPTIMIZED: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let linear = aligned(cpu, op, 64)?;
    let requested = requested(cpu);
    let header_at = linear.wrapping_add(HEADER);
    let mut header = [0; 8];
    cpu.read_linear(header_at, &mut header, Access::Read, bus)?;
    cpu.probe_write(linear, HEADER + 64, bus)?;

    let in_use = in_use(cpu) & requested;
    let written = if OPTIMIZED { in_use } else { requested };
    let image = image::<WIDE>(cpu);
    let mut write = |at: usize, len: usize| {
        let bytes = image.get(at..at + len).unwrap_or_default();
        cpu.write_linear(linear.wrapping_add(at as u64), bytes, Access::Write, bus)
    };
    if written & X87_STATE != 0 {
        write(0, MXCSR)?;
        write(ST, XMM - ST)?;
    }
    if requested & SSE_STATE != 0 {
        write(MXCSR, MXCSR_LEN)?;
    }
    if written & SSE_STATE != 0 {
        let len = 16 * xmm_registers(cpu);
        let bytes = image.get(XMM..XMM + len).unwrap_or_default();
        cpu.write_linear(linear.wrapping_add(XMM as u64), bytes, Access::Write, bus)?;
    }
    let components = u64::from_le_bytes(header) & !requested | in_use;
    cpu.write_linear(header_at, &components.to_le_bytes(), Access::Write, bus)
}

fn xrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let linear = aligned(cpu, op, 64)?;
    let requested = requested(cpu);
    let mut header = [0; HEADER_LEN];
    cpu.read_linear(linear.wrapping_add(HEADER), &mut header, Access::Read, bus)?;
    let (components, reserved) = header.split_at(8);
    let components = components.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    if components & !cpu.system.xcr0 != 0 || reserved.iter().any(|byte| *byte != 0) {
        return Err(cpu.general_protection(0));
    }
    let mut image = [0; LEGACY_LEN];
    cpu.read_linear(linear, &mut image, Access::Read, bus)?;
    if requested & SSE_STATE != 0 {
        cpu.sse.mxcsr = mxcsr_of(cpu, &image)?;
        if components & SSE_STATE == 0 {
            image[XMM..].fill(0);
        }
        restore_xmm(cpu, &image);
    }
    if requested & X87_STATE != 0 {
        if components & X87_STATE == 0 {
            cpu.x87 = X87::new();
        } else {
            restore_x87::<WIDE>(cpu, &image);
        }
    }
    Ok(())
}

/// The address of the operand; #GP unless it is a multiple of `alignment`.
fn aligned(cpu: &mut Cpu, op: &Op, alignment: u64) -> Result<u64, Stop> {
    let linear = cpu.linear(op);
    if linear.is_multiple_of(alignment) { Ok(linear) } else { Err(cpu.general_protection(0)) }
}

/// The components that EDX:EAX asks for and XCR0 enables.
fn requested(cpu: &Cpu) -> u64 {
    (cpu.gpr[RDX] << 32 | cpu.gpr[RAX] & 0xffff_ffff) & cpu.system.xcr0
}

/// The components that are not in their initial configuration. MXCSR does not count.
fn in_use(cpu: &Cpu) -> u64 {
    let x87 = &cpu.x87;
    let x87_initial = x87.registers == [Register80::default(); 8]
        && (x87.control, x87.status, x87.valid) == (control::INITIAL, 0, 0)
        && (x87.last_opcode, x87.last_instruction, x87.last_operand) == (0, 0, 0);
    let sse_initial = cpu.sse.xmm[..xmm_registers(cpu)].iter().all(|value| *value == 0);
    let x87_in_use = if x87_initial { 0 } else { X87_STATE };
    let sse_in_use = if sse_initial { 0 } else { SSE_STATE };
    x87_in_use | sse_in_use
}

fn xmm_registers(cpu: &Cpu) -> usize {
    if cpu.code_bits == 64 { 16 } else { 8 }
}

/// The image of x87, MXCSR and all XMM registers; `WIDE` pointers have 64 bits.
fn image<const WIDE: bool>(cpu: &Cpu) -> Image {
    let x87 = &cpu.x87;
    let pointer = |value: u64| if WIDE { value } else { value & 0xffff_ffff };
    let mut image = [0; LEGACY_LEN];
    image[0..2].copy_from_slice(&x87.control.to_le_bytes());
    image[2..4].copy_from_slice(&x87.status.to_le_bytes());
    image[4] = x87.valid;
    image[6..8].copy_from_slice(&x87.last_opcode.to_le_bytes());
    image[8..16].copy_from_slice(&pointer(x87.last_instruction).to_le_bytes());
    image[16..24].copy_from_slice(&pointer(x87.last_operand).to_le_bytes());
    image[24..28].copy_from_slice(&cpu.sse.mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&Sse::MXCSR_MASK.to_le_bytes());
    for (index, slot) in image[ST..XMM].chunks_exact_mut(16).enumerate() {
        let Register80 { significand, sign_exponent } = x87.get(index as u8);
        slot[..8].copy_from_slice(&significand.to_le_bytes());
        slot[8..10].copy_from_slice(&sign_exponent.to_le_bytes());
    }
    for (slot, value) in image[XMM..].chunks_exact_mut(16).zip(cpu.sse.xmm) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    image
}

/// MXCSR of an image; #GP if reserved bits are set.
fn mxcsr_of(cpu: &mut Cpu, image: &Image) -> Result<u32, Stop> {
    let mxcsr = u32::from_le_bytes([image[MXCSR], image[MXCSR + 1], image[MXCSR + 2], image[MXCSR + 3]]);
    if mxcsr & !Sse::MXCSR_MASK == 0 { Ok(mxcsr) } else { Err(cpu.general_protection(0)) }
}

fn restore_x87<const WIDE: bool>(cpu: &mut Cpu, image: &Image) {
    let half = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    let pointer = |at: usize| {
        let value = (0..8).rev().fold(0, |value, byte| value << 8 | u64::from(image[at + byte]));
        if WIDE { value } else { value & 0xffff_ffff }
    };
    let x87 = &mut cpu.x87;
    x87.status = half(2);
    x87.valid = image[4];
    x87.last_opcode = half(6) & 0x7ff;
    x87.last_instruction = pointer(8);
    x87.last_operand = pointer(16);
    let top = x87.top();
    for (index, slot) in image[ST..XMM].chunks_exact(16).enumerate() {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(slot);
        x87.registers[(top + index) & 7] = Register80::from_u128(u128::from_le_bytes(bytes));
    }
    x87.set_control(half(0));
}

fn restore_xmm(cpu: &mut Cpu, image: &Image) {
    let count = xmm_registers(cpu);
    for (value, slot) in cpu.sse.xmm.iter_mut().take(count).zip(image[XMM..].chunks_exact(16)) {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(slot);
        *value = u128::from_le_bytes(bytes);
    }
}
