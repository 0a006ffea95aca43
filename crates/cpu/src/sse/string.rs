//! PCMPESTRM, PCMPESTRI, PCMPISTRM and PCMPISTRI (Intel SDM volume 2, section 4.1).

use iced_x86::Code;

use crate::bus::Bus;
use crate::core::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::unit::bit;
use crate::width::Width;

use super::operand::{Source, Unaligned, Xmm};
use super::vector::{bits, vector};

/// Registers in [`Cpu::gpr`].
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

pub(super) fn lower(code: Code, memory: bool) -> Option<Handler> {
    macro_rules! compare {
        ($lengths:ty, $index:literal) => {
            if memory { compare::<Unaligned, $lengths, $index> } else { compare::<Xmm, $lengths, $index> }
        };
    }
    Some(match code {
        Code::Pcmpistri_xmm_xmmm128_imm8 => compare!(Implicit, true),
        Code::Pcmpistrm_xmm_xmmm128_imm8 => compare!(Implicit, false),
        Code::Pcmpestri_xmm_xmmm128_imm8 => compare!(Explicit<u32>, true),
        Code::Pcmpestrm_xmm_xmmm128_imm8 => compare!(Explicit<u32>, false),
        Code::Pcmpestri64_xmm_xmmm128_imm8 => compare!(Explicit<u64>, true),
        Code::Pcmpestrm64_xmm_xmmm128_imm8 => compare!(Explicit<u64>, false),
        _ => return None,
    })
}

fn compare<S: Source, L: Lengths, const INDEX: bool>(cpu: &mut Cpu, op: &Op, bus: &mut dyn Bus) -> Result<(), Stop> {
    let right = S::read(cpu, op, bus)?;
    let control = Control(op.imm as u8);
    let left = Text::new(bits(cpu.sse.get(op.dst)), control, L::of(cpu, RAX));
    let right = Text::new(bits(right), control, L::of(cpu, RDX));
    let matches = control.polarize(control.aggregate(&left, &right), &right);
    if INDEX {
        control.index(matches).write(&mut cpu.gpr, RCX);
    } else {
        cpu.sse.set(0, vector(control.mask(matches)));
    }
    let flag = |set: bool, bit: u64| u64::from(set) * bit;
    cpu.flags.set_bits(
        flag(matches != 0, bit::CF)
            | flag(right.len < control.elements(), bit::ZF)
            | flag(left.len < control.elements(), bit::SF)
            | flag(matches & 1 != 0, bit::OF),
    );
    Ok(())
}

/// Where the lengths of the operands come from.
trait Lengths {
    /// The length that a register gives, in elements, or `None` when the first zero element ends an operand.
    fn of(cpu: &Cpu, register: u8) -> Option<u64>;
}

struct Implicit;
struct Explicit<W>(W);

impl Lengths for Implicit {
    fn of(_cpu: &Cpu, _register: u8) -> Option<u64> {
        None
    }
}

impl<W: Width> Lengths for Explicit<W> {
    fn of(cpu: &Cpu, register: u8) -> Option<u64> {
        Some((W::read(&cpu.gpr, register).sign_extended() as i64).unsigned_abs())
    }
}

/// The immediate.
#[derive(Clone, Copy)]
struct Control(u8);

impl Control {
    fn words(self) -> bool {
        self.0 & 1 != 0
    }

    fn signed(self) -> bool {
        self.0 & 2 != 0
    }

    /// Elements of an operand: 8 words or 16 bytes.
    fn elements(self) -> usize {
        if self.words() { 8 } else { 16 }
    }

    fn all(self) -> u32 {
        (1 << self.elements()) - 1
    }

    /// Bit j tells whether element j of `right` matches (`IntRes1`).
    fn aggregate(self, left: &Text, right: &Text) -> u32 {
        match self.0 >> 2 & 3 {
            // Equal any: some element of `left` is the same.
            0 => left.valid().iter().fold(0, |matches, &wanted| matches | right.positions(|element| element == wanted)),
            // Ranges: it lies between the elements of some pair of `left`.
            1 => left.valid().chunks_exact(2).fold(0, |matches, range| {
                matches | right.positions(|element| range[0] <= element && element <= range[1])
            }),
            // Equal each: both are the same, or both past the end.
            2 => {
                let both = left.valid().iter().zip(right.valid());
                let same = both.enumerate().fold(0, |same, (n, (left, right))| same | u32::from(left == right) << n);
                let past_both_ends = self.all() & !0 << left.len.max(right.len);
                same | past_both_ends
            }
            // Equal ordered: `left` starts here, as far as the register shows.
            _ => left.valid().iter().enumerate().fold(self.all(), |matches, (n, &wanted)| {
                let beyond_register = !(self.all() >> n);
                matches & (right.positions(|element| element == wanted) >> n | beyond_register)
            }),
        }
    }

    /// `IntRes2`.
    fn polarize(self, matches: u32, right: &Text) -> u32 {
        match self.0 >> 4 & 3 {
            1 => matches ^ self.all(),
            3 => matches ^ ((1 << right.len) - 1),
            _ => matches,
        }
    }

    fn index(self, matches: u32) -> u32 {
        if matches == 0 {
            self.elements() as u32
        } else if self.0 & 0x40 != 0 {
            matches.ilog2()
        } else {
            matches.trailing_zeros()
        }
    }

    fn mask(self, matches: u32) -> u128 {
        if self.0 & 0x40 == 0 {
            return matches.into();
        }
        let (width, ones) = if self.words() { (16, 0xffff) } else { (8, 0xff) };
        (0..self.elements()).filter(|n| matches >> n & 1 == 1).fold(0, |mask, n| mask | ones << (n * width))
    }
}

/// An operand.
struct Text {
    elements: [i32; 16],
    /// Number of valid elements.
    len: usize,
}

impl Text {
    fn new(bits: u128, control: Control, explicit_len: Option<u64>) -> Self {
        let mut elements = [0; 16];
        for (n, element) in elements.iter_mut().enumerate().take(control.elements()) {
            *element = match (control.words(), control.signed()) {
                (false, false) => i32::from((bits >> (n * 8)) as u8),
                (false, true) => i32::from((bits >> (n * 8)) as i8),
                (true, false) => i32::from((bits >> (n * 16)) as u16),
                (true, true) => i32::from((bits >> (n * 16)) as i16),
            };
        }
        let limit = control.elements();
        let len = match explicit_len {
            Some(len) => len.min(limit as u64) as usize,
            None => elements.iter().take(limit).position(|&element| element == 0).unwrap_or(limit),
        };
        Self { elements, len }
    }

    fn valid(&self) -> &[i32] {
        self.elements.get(..self.len).unwrap_or(&self.elements)
    }

    /// Bit n tells whether valid element n satisfies the predicate.
    #[inline(always)]
    fn positions(&self, predicate: impl Fn(i32) -> bool) -> u32 {
        self.valid().iter().enumerate().fold(0, |found, (n, &element)| found | u32::from(predicate(element)) << n)
    }
}
