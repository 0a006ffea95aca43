//! Results that are the same on hosts of every maker: where manuals leave them undefined, or where the host's units compute and
//! implementations could differ.

use crate::guest::Guest;
use crate::literal::{At::*, Literal};

/// Code and data at place 0.
const CODE: u64 = 0x1000_0000;
/// A fault would show a wrong address: every operand in memory is at the start of the scratch, `[0x10002e00]`.
const fn literal(
    code: &'static [&'static str],
    start: &'static [(crate::literal::At, u128)],
    after: &'static [(crate::literal::At, u128)],
) -> Literal {
    Literal { place: 0, rip: CODE, code, start, after }
}

fn check(cases: &[Literal]) {
    let mut guest = Guest::new();
    for case in cases {
        case.check(&mut guest);
    }
}

#[test]
fn shifts_beyond_the_operand() {
    check(&[
        // shld ax, cx, 24; shrd ax, cx, 31; shld ax, cx, cl
        literal(&["660fa4c818"], &[(Gpr(0), 0x1234), (Gpr(1), 0x5678)], &[(Gpr(0), 0x7812), (Rflags, 0x4)]),
        literal(&["660facc81f"], &[(Gpr(0), 0x1234), (Gpr(1), 0x5678)], &[(Gpr(0), 0x2468), (Rflags, 0x1)]),
        literal(&["660fa5c8"], &[(Gpr(0), 0x8001), (Gpr(1), 0x11)], &[(Gpr(0), 0x23), (Rflags, 0x800)]),
        // rcl al, 9; rcl al, 10; rcr ax, 17; rcr ax, 18: OF.
        literal(&["c0d009"], &[(Gpr(0), 0x5a), (Rflags, 0x801)], &[]),
        literal(&["c0d00a"], &[(Gpr(0), 0x5a), (Rflags, 0x801)], &[(Gpr(0), 0xb5), (Rflags, 0x800)]),
        literal(&["66c1d811"], &[(Gpr(0), 0x8001), (Rflags, 0x800)], &[]),
        literal(&["66c1d812"], &[(Gpr(0), 0x8001), (Rflags, 0x1)], &[(Gpr(0), 0xc000)]),
    ]);
}

#[test]
fn flags_and_registers_that_no_manual_defines() {
    check(&[
        // bsf eax, ecx and bsr eax, ecx of zero: the destination stays.
        literal(&["0fbcc1"], &[(Gpr(0), 0x1234_5678_9abc_def0)], &[(Rflags, 0x44)]),
        literal(&["0fbdc1"], &[(Gpr(0), 0x1234_5678_9abc_def0)], &[(Rflags, 0x44)]),
        // mul cl; imul rax, rcx; div cl; and eax, ecx; shl eax, 4.
        literal(&["f6e1"], &[(Gpr(0), 0x80), (Gpr(1), 0x81), (Rflags, 0xd5)], &[(Gpr(0), 0x4080), (Rflags, 0x881)]),
        literal(&["480fafc1"], &[(Gpr(0), 1 << 63), (Gpr(1), 3), (Rflags, 0xd5)], &[(Rflags, 0x885)]),
        literal(&["f6f1"], &[(Gpr(0), 0x123), (Gpr(1), 0x10), (Rflags, 0x8d5)], &[(Gpr(0), 0x312)]),
        literal(&["21c8"], &[(Gpr(0), 0xf0), (Gpr(1), 0x30), (Rflags, 0x11)], &[(Gpr(0), 0x30), (Rflags, 0x4)]),
        literal(&["c1e004"], &[(Gpr(0), 0x1800_0001), (Rflags, 0x10)], &[(Gpr(0), 0x8000_0010), (Rflags, 0x81)]),
    ]);
}

#[test]
fn sums_of_neighbours_that_are_nans() {
    const LEFT: u128 = 0x7fc0_0004_3f80_0000_7fc0_0002_7fc0_0001;
    const RIGHT: u128 = 0x7fc0_0008_4040_0000_4000_0000_7f80_0005;
    const DOUBLES: u128 = 0x7ff8_0000_0000_0002_fff8_0000_0000_0001;
    const SIGNALING: u128 = 0x7ff0_0000_0000_0004_3ff0_0000_0000_0000;
    check(&[
        // haddps, hsubps, haddpd, hsubpd xmm0, xmm1
        literal(
            &["f20f7cc1"],
            &[(Xmm(0), LEFT), (Xmm(1), RIGHT)],
            &[(Mxcsr, 0x1f81), (Xmm(0), 0x7fc0_0008_7fc0_0005_7fc0_0004_7fc0_0001)],
        ),
        literal(
            &["f20f7dc1"],
            &[(Xmm(0), LEFT), (Xmm(1), RIGHT)],
            &[(Mxcsr, 0x1f81), (Xmm(0), 0x7fc0_0008_7fc0_0005_7fc0_0004_7fc0_0001)],
        ),
        literal(
            &["660f7cc1"],
            &[(Xmm(0), DOUBLES), (Xmm(1), SIGNALING)],
            &[(Mxcsr, 0x1f81), (Xmm(0), 0x7ff8_0000_0000_0004_fff8_0000_0000_0001)],
        ),
        literal(
            &["660f7dc1"],
            &[(Xmm(0), DOUBLES), (Xmm(1), SIGNALING)],
            &[(Mxcsr, 0x1f81), (Xmm(0), 0x7ff8_0000_0000_0004_fff8_0000_0000_0001)],
        ),
        // addps, mulps xmm0, xmm1; addps xmm1, xmm0: the first operand's NaN.
        literal(
            &["0f58c1"],
            &[(Xmm(0), LEFT), (Xmm(1), RIGHT)],
            &[(Mxcsr, 0x1f81), (Xmm(0), 0x7fc0_0004_4080_0000_7fc0_0002_7fc0_0001)],
        ),
        literal(
            &["0f59c1"],
            &[(Xmm(0), LEFT), (Xmm(1), RIGHT)],
            &[(Mxcsr, 0x1f81), (Xmm(0), 0x7fc0_0004_4040_0000_7fc0_0002_7fc0_0001)],
        ),
        literal(
            &["0f58c8"],
            &[(Xmm(0), LEFT), (Xmm(1), RIGHT)],
            &[(Mxcsr, 0x1f81), (Xmm(1), 0x7fc0_0008_4080_0000_7fc0_0002_7fc0_0005)],
        ),
        // dpps xmm0, xmm1, 0xff; dppd xmm0, xmm1, 0x33
        literal(
            &["660f3a40c1ff"],
            &[(Xmm(0), LEFT), (Xmm(1), RIGHT)],
            &[(Mxcsr, 0x1f81), (Xmm(0), 0x7fc0_0004_7fc0_0004_7fc0_0001_7fc0_0002)],
        ),
        literal(&["660f3a41c133"], &[(Xmm(0), DOUBLES), (Xmm(1), SIGNALING)], &[(Mxcsr, 0x1f81)]),
    ]);
}

#[test]
fn approximations() {
    const NUMBERS: u128 = 0x4120_0000_3f00_0001_4040_0000_0000_0001;
    check(&[
        // rcpps, rsqrtps, rcpss, rsqrtss xmm0, xmm1
        literal(&["0f53c1"], &[(Xmm(1), NUMBERS)], &[(Xmm(0), 0x3dcc_d000_4000_0000_3eaa_a800_7f80_0000)]),
        literal(&["0f52c1"], &[(Xmm(1), NUMBERS)], &[(Xmm(0), 0x3ea1_e800_3fb5_0800_3f13_d000_7f80_0000)]),
        literal(&["f30f53c1"], &[(Xmm(1), NUMBERS >> 32)], &[(Xmm(0), 0x3eaa_a800)]),
        literal(&["f30f52c1"], &[(Xmm(1), NUMBERS >> 32)], &[(Xmm(0), 0x3f13_d000)]),
    ]);
}

#[test]
fn nans_of_two_x87_operands() {
    const POSITIVE: u128 = 0x7fff_c000_0100_0000_0000;
    const NEGATIVE: u128 = 0xffff_c000_0100_0000_0000;
    const SIGNALING: u128 = 0xffff_a000_0000_0000_0000;
    const SINGLE: u128 = 0xffc0_0001;
    check(&[
        // fadd st, st(1); fsub st(1), st; fpatan; fscale; fadd dword [0x10002e00]
        literal(
            &["d8c1"],
            &[(X87(0), NEGATIVE), (X87(1), POSITIVE), (Valid, 3)],
            &[(X87(0), 0x7fff_c000_0100_0000_0000), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["dce9"],
            &[(X87(0), POSITIVE), (X87(1), NEGATIVE), (Valid, 3)],
            &[(X87(1), 0x7fff_c000_0100_0000_0000), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["d9f3"],
            &[(X87(0), NEGATIVE), (X87(1), POSITIVE), (Valid, 3)],
            &[(Status, 0x800), (Valid, 0x2), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["d9fd"],
            &[(X87(0), SIGNALING), (X87(1), POSITIVE), (Valid, 3)],
            &[(X87(0), 0x7fff_c000_0100_0000_0000), (Status, 0x1), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["d80425002e0010"],
            &[(X87(0), POSITIVE), (Memory(0), SINGLE), (Valid, 1)],
            &[(LastInstruction, 0x1000_0000)],
        ),
    ]);
}

#[test]
fn x87_operands_in_encodings_of_their_own() {
    const ONE: u128 = 0x3fff_8000_0000_0000_0000;
    check(&[
        // fadd st, st(1) of a pseudo-denormal, a denormal, an unnormal, a pseudo-infinity and a pseudo-NaN.
        literal(
            &["d8c1"],
            &[(X87(0), 0x8000_0000_0000_0001), (Valid, 3)],
            &[(X87(0), 0x1_8000_0000_0000_0001), (Status, 0x2), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["d8c1"],
            &[(X87(0), 0x4000_0000_0000_0001), (X87(1), ONE), (Valid, 3)],
            &[(X87(0), 0x3fff_8000_0000_0000_0000), (Status, 0x22), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["d8c1"],
            &[(X87(0), 0x3fff_4000_0000_0000_0000), (X87(1), ONE), (Valid, 3)],
            &[(X87(0), 0xffff_c000_0000_0000_0000), (Status, 0x1), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["d8c1"],
            &[(X87(0), 0x7fff_0000_0000_0000_0000), (X87(1), ONE), (Valid, 3)],
            &[(X87(0), 0xffff_c000_0000_0000_0000), (Status, 0x1), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["d8c1"],
            &[(X87(0), 0x7fff_0000_0000_0000_0001), (X87(1), ONE), (Valid, 3)],
            &[(X87(0), 0xffff_c000_0000_0000_0000), (Status, 0x1), (LastInstruction, 0x1000_0000)],
        ),
        // fxam of a pseudo-denormal and an unnormal.
        literal(
            &["d9e5"],
            &[(X87(0), 0x8000_0000_0000_0001), (Valid, 1)],
            &[(Status, 0x4400), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["d9e5"],
            &[(X87(0), 0x3fff_4000_0000_0000_0000), (Valid, 1), (Status, 0x4700)],
            &[(Status, 0x0), (LastInstruction, 0x1000_0000)],
        ),
        // fbld tbyte [0x10002e00] of digits above 9.
        literal(
            &["df2425002e0010"],
            &[(Memory(0), 0xfa)],
            &[(X87(7), 0x4006_a000_0000_0000_0000), (Status, 0x3800), (Valid, 0x80), (LastInstruction, 0x1000_0000)],
        ),
    ]);
}

#[test]
fn x87_choices() {
    const DIVIDEND: u128 = 0x4041_fedc_ba98_7654_3210;
    const DIVISOR: u128 = 0x3fff_c90f_daa2_2168_c235;
    const FACTORS: [u128; 2] = [0x3fff_ffff_ffff_ffff_f123, 0x3fff_abcd_ef01_2345_6789];
    check(&[
        // fprem, fprem1: a partial remainder.
        literal(
            &["d9f8"],
            &[(X87(0), DIVIDEND), (X87(1), DIVISOR), (Valid, 3), (Status, 0x4300)],
            &[(X87(0), 0x401f_b8da_73f2_ea42_8747), (Status, 0x400), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["d9f5"],
            &[(X87(0), DIVIDEND), (X87(1), DIVISOR), (Valid, 3), (Status, 0x4300)],
            &[(X87(0), 0x401f_b8da_73f2_ea42_8747), (Status, 0x400), (LastInstruction, 0x1000_0000)],
        ),
        // fmul st, st(1) in the reserved precision.
        literal(
            &["d8c9"],
            &[(X87(0), FACTORS[0]), (X87(1), FACTORS[1]), (Valid, 3), (Control, 0x17f)],
            &[(X87(0), 0x4000_abcd_ef01_2345_5d8f), (Status, 0x20), (LastInstruction, 0x1000_0000)],
        ),
        // fldpi, fldl2t, fldl2e, fldlg2, fldln2, to nearest, down, up, and towards zero.
        literal(
            &["d9eb", "d9e9", "d9ea", "d9ec", "d9ed"],
            &[],
            &[
                (X87(3), 0x3ffe_b172_17f7_d1cf_79ac),
                (X87(4), 0x3ffd_9a20_9a84_fbcf_f799),
                (X87(5), 0x3fff_b8aa_3b29_5c17_f0bc),
                (X87(6), 0x4000_d49a_784b_cd1b_8afe),
                (X87(7), 0x4000_c90f_daa2_2168_c235),
                (Status, 0x1800),
                (Valid, 0xf8),
                (LastInstruction, 0x1000_0008),
            ],
        ),
        literal(
            &["d9eb", "d9e9", "d9ea", "d9ec", "d9ed"],
            &[(Control, 0x77f)],
            &[
                (X87(3), 0x3ffe_b172_17f7_d1cf_79ab),
                (X87(4), 0x3ffd_9a20_9a84_fbcf_f798),
                (X87(5), 0x3fff_b8aa_3b29_5c17_f0bb),
                (X87(6), 0x4000_d49a_784b_cd1b_8afe),
                (X87(7), 0x4000_c90f_daa2_2168_c234),
                (Status, 0x1800),
                (Valid, 0xf8),
                (LastInstruction, 0x1000_0008),
            ],
        ),
        literal(
            &["d9eb", "d9e9", "d9ea", "d9ec", "d9ed"],
            &[(Control, 0xb7f)],
            &[
                (X87(3), 0x3ffe_b172_17f7_d1cf_79ac),
                (X87(4), 0x3ffd_9a20_9a84_fbcf_f799),
                (X87(5), 0x3fff_b8aa_3b29_5c17_f0bc),
                (X87(6), 0x4000_d49a_784b_cd1b_8aff),
                (X87(7), 0x4000_c90f_daa2_2168_c235),
                (Status, 0x1800),
                (Valid, 0xf8),
                (LastInstruction, 0x1000_0008),
            ],
        ),
        literal(
            &["d9eb", "d9e9", "d9ea", "d9ec", "d9ed"],
            &[(Control, 0xf7f)],
            &[
                (X87(3), 0x3ffe_b172_17f7_d1cf_79ab),
                (X87(4), 0x3ffd_9a20_9a84_fbcf_f798),
                (X87(5), 0x3fff_b8aa_3b29_5c17_f0bb),
                (X87(6), 0x4000_d49a_784b_cd1b_8afe),
                (X87(7), 0x4000_c90f_daa2_2168_c234),
                (Status, 0x1800),
                (Valid, 0xf8),
                (LastInstruction, 0x1000_0008),
            ],
        ),
        // fsin of 2^63; fcomi st, st(1), fcmove st, st(1) and fnop with every condition code set.
        literal(
            &["d9fe"],
            &[(X87(0), 0x403e_8000_0000_0000_0000), (Valid, 1), (Status, 0x4300)],
            &[(Status, 0x4500), (LastInstruction, 0x1000_0000)],
        ),
        literal(
            &["dbf1", "dac9", "d9d0"],
            &[(Valid, 3), (Status, 0x4700)],
            &[(Rflags, 0x40), (LastInstruction, 0x1000_0004)],
        ),
    ]);
}

#[test]
fn x87_pointers() {
    check(&[
        // fld1; fadd dword [0x10002e00]; fnstenv [0x10002e40]; fnstenv word [0x10002e80]: without an unmasked exception there is a FIP
        // and nothing else.
        literal(
            &["d9e8", "d80425002e0010", "d93425402e0010", "66d93425802e0010"],
            &[(Memory(0), 0x3f80_0000)],
            &[
                (X87(7), 0x4000_8000_0000_0000_0000),
                (Status, 0x3800),
                (Valid, 0x80),
                (LastInstruction, 0x1000_0002),
                (Memory(0x40), 0xffff_3800_ffff_037f),
                (Memory(0x48), 0x1000_0002_ffff_3fff),
                (Memory(0x58), 0xffff_0000),
                (Memory(0x80), 0x2_3fff_3800_037f),
            ],
        ),
        // The same with a signaling NaN and invalid operations unmasked: opcode and operand, and no selectors.
        literal(
            &["d9e8", "d80425002e0010", "d93425402e0010"],
            &[(Memory(0), 0x7f80_0001), (Control, 0x37e)],
            &[
                (X87(7), 0x3fff_8000_0000_0000_0000),
                (Control, 0x37f),
                (Status, 0x3801),
                (Valid, 0x80),
                (LastOpcode, 0x4),
                (LastInstruction, 0x1000_0002),
                (LastOperand, 0x1000_2e00),
                (Memory(0x40), 0xffff_b881_ffff_037e),
                (Memory(0x48), 0x1000_0002_ffff_3fff),
                (Memory(0x50), 0x1000_2e00_0004_0000),
                (Memory(0x58), 0xffff_0000),
            ],
        ),
    ]);
}
