//! Every instruction form that came out differently on AMD's family 25, model 17, in a million cases of each family (twinvm of
//! 2026-11), each with its first case.
//!
//! A test checks what guests see on any host; that what the AMD processor gave is accepted on it, because it differs in nothing but what
//! is undefined or that maker's own; and that the same with any defined bit wrong is not. State that plays no part was set to zero, and
//! operands in memory of two rotates (`rcr [r15+150h]`, `rcl [r13d+r9d+3Eh]`) are ours, since the record has only registers.
//!
//! The forms of `x87_control` differed in what they read from an environment that FNSTENV or FNSAVE had stored before: the selectors,
//! opcode and operand pointer in it, loaded as numbers, as a control word, or as tags by an FLDENV or FRSTOR of the other format. So what
//! is compared is the instruction that stored it.

use crate::case::FLAGS_ARITHMETIC as ALL;
use crate::compare::Comparison;
use crate::guest::Guest;
use crate::host::Host;
use crate::literal::{At, At::*, Literal, get, parts, set};
use crate::undefined;

const OVERFLOW: u64 = 1 << 11;
const CONDITION_CODES: u128 = 0x4700;
const ERROR_SUMMARY: u128 = 1 << 7;

/// `theirs` is what the AMD processor had, beside the same as ours, after the first `count` instructions; flags may differ in
/// `open_flags`.
fn check(literal: &Literal, count: usize, open_flags: u64, theirs: &[(At, u128)]) {
    let mut guest = Guest::new();
    literal.check(&mut guest);

    let case = literal.case(count);
    let before = literal.run(&mut guest, count - 1);
    let ours = literal.run(&mut guest, count);
    let mut native = ours.clone();
    set(&mut native, theirs);
    if get(&native, Status) & ERROR_SUMMARY == 0 {
        set(&mut native, &[(LastOpcode, 0), (LastInstruction, 0), (LastOperand, 0)]);
    }
    let comparison = Comparison::new(Host::amd(), "recorded");
    let undefined = undefined::left_by(comparison.host, &case, count - 1, &before, &ours);
    let text = case.disassembly();
    let differences = comparison.differences(&case, &native, &ours, &undefined);
    assert_eq!(differences, None, "{text}");

    for part in parts() {
        for bit in defined_bits(part, open_flags, theirs) {
            let mut wrong = native.clone();
            set(&mut wrong, &[(part, get(&native, part) ^ 1 << bit)]);
            let differences = comparison.differences(&case, &wrong, &ours, &undefined);
            assert!(differences.is_some(), "bit {bit} of {part:?} may be wrong after\n{text}");
        }
    }
}

/// Bits of a part of the state that must not differ.
fn defined_bits(part: At, open_flags: u64, theirs: &[(At, u128)]) -> Vec<u32> {
    let differs = theirs.iter().any(|(at, _)| *at == part);
    let bits = |mask: u128| (0..128).filter(|bit| mask >> bit & 1 == 1).collect();
    match part {
        Rflags => bits(u128::from(ALL & !open_flags) | 1 << 10),
        // SHLD of 16 bits.
        Gpr(_) if differs => bits(!0xffff & u128::from(u64::MAX)),
        // The highest bits of each element's exponent: it must stay a NaN.
        Xmm(_) if differs => bits(1 << 126 | 1 << 62),
        // Fields and operands that differ, and the upper end of an environment's, FDS.
        Memory(_) if differs => vec![],
        Memory(at) if theirs.iter().any(|(before, _)| *before == Memory(at.wrapping_sub(8))) => {
            bits(u128::from(!0xffff_u64))
        }
        Status => bits(0xffff & !CONDITION_CODES),
        LastOpcode | LastInstruction | LastOperand => vec![],
        Control => bits(0x1f3f),
        Valid => bits(0xff),
        Mxcsr => bits(0xffff),
        X87(_) => bits((1 << 80) - 1),
        Xmm(_) => bits(u128::MAX),
        Gpr(_) | Memory(_) => bits(u64::MAX.into()),
    }
}

macro_rules! recorded {
    ($($name:ident: $literal:expr, $count:expr, $flags:expr, [$($theirs:expr),* $(,)?];)*) => {
        $(
            #[test]
            fn $name() {
                check(&$literal, $count, $flags, &[$($theirs),*]);
            }
        )*
    };
}

recorded! {
    // rcr byte ptr [r15+150h],92h
    mixture_rcr_rm8_imm8: Literal {
        place: 4,
        rip: 0x1040_0044,
        code: &["41c09f5001000092"],
        start: &[(Gpr(15), 0x1040_3090), (Rflags, 0x807), (Memory(0x3e0), 0x41)],
        after: &[(Rflags, 0x805)],
    }, 1, OVERFLOW, [(Rflags, 0x5)];
    // rcr bp,31h
    mixture_rcr_rm16_imm8: Literal {
        place: 4,
        rip: 0x1040_0a81,
        code: &["66c1dd31"],
        start: &[(Gpr(5), 0xffff_ffff_b931_8217), (Rflags, 0x8c6)],
        after: &[],
    }, 1, OVERFLOW, [(Rflags, 0xc4)];
    // ldmxcsr [10402E2Ch]; shld r14w,bp,0F7h
    mixture_shld_rm16_r16_imm8: Literal {
        place: 4,
        rip: 0x1040_0295,
        code: &["0fae15902b0000", "66410fa4eef7"],
        start: &[(Gpr(5), 0x290c_97ff_ce91_8b1d), (Gpr(14), 0x9cf_0b61_2161_5c9f), (Memory(0x28), 0xffbe_0000_0001)],
        after: &[(Gpr(14), 0x9cf_0b61_2161_8eae), (Rflags, 0x881), (Mxcsr, 0xffbe)],
    }, 2, ALL, [(Gpr(14), 0x09cf_0b61_2161_8ec5), (Rflags, 0x84)];
    // sete [r15+r13-1BEh]; or dword ptr [r15-54h],17h; sub r11w,0; add byte ptr gs:[r15+r13*2+4Fh],0C7h; neg r14b;
    // sbb ax,bp; shld [r15-4],cx,cl
    mixture_shld_rm16_r16_cl: Literal {
        place: 4,
        rip: 0x1040_0324,
        code: &["430f94842f42feffff", "41834fac17", "664183eb00", "654380446f4fc7", "41f6de", "661bc5", "66410fa54ffc"],
        start: &[
            (Gpr(0), 0x759_4d64_4264_8bf9), (Gpr(1), 0x21b6_5aff), (Gpr(5), 0x5f7_5425_1971_5411),
            (Gpr(13), 0xffff_ffff_ffff_ffe1), (Gpr(14), 0x2c), (Gpr(15), 0x1040_30d0), (Rflags, 0x8d5),
            (Memory(0xf0), 0x1eb4_1a88_cfb4_2b8a), (Memory(0x278), 0x8_0000_0000),
            (Memory(0x2c8), 0xb6b6_b6b6_b6b6_b6b6), (Memory(0x2e0), 0xffff_ffff_ce51_b6fd),
        ],
        after: &[
            (Gpr(0), 0x759_4d64_4264_37e7), (Gpr(14), 0xd4), (Rflags, 0x81), (Memory(0xf0), 0x1eb4_1a88_01b4_2b8a),
            (Memory(0x278), 0x1f_0000_0000), (Memory(0x2c8), 0xb6b6_db5b_b6b6_b6b6),
            (Memory(0x2e0), 0xffff_ffff_ce51_7dfd),
        ],
    }, 7, ALL, [(Rflags, 0x80), (Memory(0x2c8), 0xb6b6_ad7f_b6b6_b6b6)];
    // add rax,0FFFFFFFFFFFFFFFFh; dpps xmm15,xmm9,0CBh
    mixture_dpps: Literal {
        place: 4,
        rip: 0x1040_04ca,
        code: &["4805ffffffff", "66450f3a40f9cb"],
        start: &[(Gpr(0), 0x1154_3d6b_580a_777b), (Xmm(9), 0xffef_ffff_ffff_fffd_7f7f_fffe_3c8c_76c2)],
        after: &[(Gpr(0), 0x1154_3d6b_580a_777a), (Rflags, 0x11), (Xmm(15), 0xffff_fffd_0000_0000_ffff_fffd_ffef_ffff)],
    }, 2, 0, [(Xmm(15), 0xffff_fffd_0000_0000_ffff_fffd_ffff_fffd)];
    // fxch st,st(0); cmovge ax,sp; fstp qword ptr [r11+1F8h],st; dppd xmm1,[r11+rbp*4+22Ch],0FFh
    mixture_dppd: Literal {
        place: 4,
        rip: 0x1040_0db4,
        code: &["dfc8", "660f4dc4", "41dd9bf8010000", "66410f3a418cab2c020000ff"],
        start: &[
            (Gpr(5), 0x25), (Gpr(11), 0x1040_2e40), (Mxcsr, 0x9f81), (Status, 0x3000),
            (Memory(0x300), 0x7ff5_0855_de30_ac19), (Memory(0x308), 0xfffc_71d4_50b7_ed87),
        ],
        after: &[
            (Xmm(1), 0xfffc_71d4_50b7_ed87_7ffd_0855_de30_ac19), (X87(6), 0xffff_c000_0000_0000_0000),
            (Status, 0x3841), (LastInstruction, 0x1040_0dba), (Memory(0x238), 0xfff8_0000_0000_0000),
        ],
    }, 4, 0, [(Xmm(1), 0x7ffd_0855_de30_ac19_7ffd_0855_de30_ac19)];
    // rcl byte ptr [r13d+r9d+3Eh],49h
    shift_rcl_rm8_imm8: Literal {
        place: 10,
        rip: 0x10a0_0a90,
        code: &["6743c0540d3e49"],
        start: &[(Gpr(9), 0xffff_ffff_ffff_ffc7), (Gpr(13), 0x10a0_3180), (Rflags, 0x847), (Memory(0x380), 0x4100_0000_0000)],
        after: &[],
    }, 1, OVERFLOW, [(Rflags, 0x45)];
    // rcl byte ptr [r10-172h],1; rcr r15b,0D2h
    shift_rcr_rm8_imm8: Literal {
        place: 10,
        rip: 0x10a0_0a82,
        code: &["41d0928efeffff", "41c0dfd2"],
        start: &[(Gpr(10), 0x10a0_3020), (Rflags, 0x805), (Memory(0xa8), 0xffff_ffff_ffff_ffde)],
        after: &[(Rflags, 0x5)],
    }, 2, OVERFLOW, [(Rflags, 0x805)];
    // ror qword ptr [r14-210h],1; rcl r15w,51h
    shift_rcl_rm16_imm8: Literal {
        place: 10,
        rip: 0x10a0_0c58,
        code: &["49d18ef0fdffff", "6641c1d751"],
        start: &[(Gpr(14), 0x10a0_31b0), (Rflags, 0x51), (Memory(0x1a0), 0x293b_8c7d_5c77_1ab4)],
        after: &[(Rflags, 0x50), (Memory(0x1a0), 0x149d_c63e_ae3b_8d5a)],
    }, 2, OVERFLOW, [(Rflags, 0x850)];
    // rcr r14w,71h
    shift_rcr_rm16_imm8: Literal {
        place: 10,
        rip: 0x10a0_07ec,
        code: &["6641c1de71"],
        start: &[(Gpr(14), 0x27a0), (Rflags, 0x816)],
        after: &[],
    }, 1, OVERFLOW, [(Rflags, 0x14)];
    // dpps xmm15,xmm6,0B9h
    sse_float_dpps: Literal {
        place: 14,
        rip: 0x10e0_0e23,
        code: &["66440f3a40feb9"],
        start: &[
            (Xmm(6), 0x4626_6e00_ba8c_01d1_87a8_fa95_7fc8_e3af), (Xmm(15), 0x8080_008b_0080_0073_ffef_ffff_ffff_ffff),
        ],
        after: &[(Mxcsr, 0x1fa0), (Xmm(15), 0xffff_ffff_0000_0000_0000_0000_ffef_ffff)],
    }, 1, 0, [(Xmm(15), 0xffff_ffff_0000_0000_0000_0000_ffff_ffff)];
    // divss xmm15,xmm14; xorpd xmm7,[edi-220h]; dppd xmm8,[rdi+r10-39h],0FFh
    sse_float_dppd: Literal {
        place: 14,
        rip: 0x10e0_043e,
        code: &["f3450f5efe", "67660f57bfe0fdffff", "66460f3a414417c7ff"],
        start: &[
            (Gpr(7), 0x10e0_30c0), (Gpr(10), 0xffff_ffff_ffff_ffd9), (Mxcsr, 0xffcf),
            (Xmm(7), 0x433d_386b_fc39_22ba_8bc5_089e_3656_9ccd), (Xmm(8), 0x7ff6_6fda_01c2_707b_800f_1754_0f74_f184),
            (Xmm(14), 0x46b0_2700_bbe7_0787_bd22_b2ca_c130_3800),
            (Xmm(15), 0x4049_339c_c079_e1b3_41c9_e451_7e56_7bb4), (Memory(0xa0), 0x8010_0000_0000_0052),
            (Memory(0xa8), 0x8000_0000_0000_000f), (Memory(0x260), 0x7ff6_cd05_af16_ba3b),
        ],
        after: &[
            (Mxcsr, 0xffef), (Xmm(7), 0xc33d_386b_fc39_22b5_0bd5_089e_3656_9c9f),
            (Xmm(8), 0x7ffe_6fda_01c2_707b_7ffe_cd05_af16_ba3b), (Xmm(15), 0x4049_339c_c079_e1b3_41c9_e451_fc9b_cb4d),
        ],
    }, 3, 0, [(Xmm(8), 0x7ffe_cd05_af16_ba3b_7ffe_cd05_af16_ba3b)];
    // fadd st,st(0); fldenv [r8+1F0h]; fnsave [r8+r13*4+158h]; fld st,st(0); fdiv st,st(0);
    // fadd st,dword ptr [r8+r13*4+162h]
    x87_control_fadd_m32fp: Literal {
        place: 18,
        rip: 0x1120_0b16,
        code: &["d8c0", "6641d9a0f0010000", "6643ddb4a858010000", "d9c0", "d8f0", "43d884a862010000"],
        start: &[
            (Gpr(8), 0x1120_2e90), (Gpr(13), 0x26), (X87(0), 0x4003_f09c_16c4_8a15_fc75),
            (X87(1), 0xc03e_ffff_ffff_ffff_e000), (X87(2), 0xbff9_f35e_572b_a05e_8300),
            (X87(3), 0xc034_8000_0000_0020_0000), (X87(4), 0x400e_b689_0000_0000_0000),
            (X87(5), 0x3c08_ddab_b38d_58c5_6ebe), (X87(6), 0x3fe5_8200_0000_0000_0000),
            (X87(7), 0x8000_10c5_b41d_54a6_d65d), (Status, 0x2100), (Valid, 0xff),
            (Memory(0x280), 0x37bc_9cfb_5d4f_067f), (Memory(0x288), 0xffe9_9781_1ac5),
            (Memory(0x2d8), 0xffff_ffff_b1e0_e40e),
        ],
        after: &[
            (X87(4), 0x400f_b689_0000_0000_0000), (X87(7), 0xffff_c000_0000_0000_0000), (Status, 0x3841),
            (Valid, 0x80), (LastInstruction, 0x1120_0b2d), (Memory(0x280), 0x37bc_8cf3_5d4f_067f),
            (Memory(0x288), 0x9781_0000), (Memory(0x290), 0xc034_8000_0000_0020),
            (Memory(0x298), 0xb689_0000_0000_0000), (Memory(0x2a0), 0xb38d_58c5_6ebe_400f),
            (Memory(0x2a8), 0x3c08_ddab), (Memory(0x2b0), 0xd65d_3fe5_8200_0000),
            (Memory(0x2b8), 0x8000_10c5_b41d_54a6), (Memory(0x2c0), 0xf09c_16c4_8a15_fc75),
            (Memory(0x2c8), 0xffff_ffff_e000_4003), (Memory(0x2d0), 0xa05e_8300_c03e_ffff),
            (Memory(0x2d8), 0xffff_bff9_f35e_572b),
        ],
    }, 3, 0, [(Memory(0x288), 0xffe9_9781_1ac5)];
    // fndisi; fadd st,st(6); fnstenv [rbp+rsi+4Fh]; fcomp st,dword ptr [rbp+rsi*2+9Bh]
    x87_control_fcomp_m32fp: Literal {
        place: 18,
        rip: 0x1120_0a53,
        code: &["dbe1", "d8c6", "d974354f", "d89c759b000000"],
        start: &[
            (Gpr(5), 0x1120_3070), (Gpr(6), 0xffff_ffff_ffff_ffc1), (X87(0), 0x3fff_2e55_c494_cc0f_03ed),
            (X87(1), 0x7ffe_ffff_ffff_ffff_fffe), (X87(2), 0xbffc_b3b0_6b85_1a48_f000),
            (X87(3), 0x8001_c60f_a4b1_a2be_d5a4), (X87(4), 0xc003_9605_71f1_a0e5_399f),
            (X87(5), 0x3bfb_e9c2_bc11_0bc2_fbb1), (X87(6), 0xffff_131e_5d4e_87cf_91cd),
            (X87(7), 0xffff_0b58_4d05_ef70_da59), (Control, 0xb7f), (Status, 0x1a00), (Valid, 0xff),
        ],
        after: &[
            (X87(3), 0x7ffe_ffff_ffff_ffff_fffe), (Status, 0x2022), (Valid, 0xf7), (LastInstruction, 0x1120_0a5b),
            (Memory(0x280), 0xffff_1a20_ffff_0b7f), (Memory(0x288), 0x1120_0a55_ffff_a002),
            (Memory(0x298), 0xffff_0000),
        ],
    }, 3, 0, [(Memory(0x290), 0xc6_0033)];
    // fwait; fadd st,dword ptr [r11-0E8h]; fnstsw [r11+r14*2-134h]; frstor [r11-310h]; fnstenv [r11-190h];
    // fdiv st,st(6); fnstenv [r11-110h]; fdiv st,dword ptr [r11+r14*4-198h]
    x87_control_fdiv_m32fp: Literal {
        place: 18,
        rip: 0x1120_0e66,
        code: &[
            "9b", "41d88318ffffff", "43ddbc73ccfeffff", "6641dda3f0fcffff", "6641d9b370feffff", "d8f6",
            "6641d9b3f0feffff", "43d8b4b368feffff",
        ],
        start: &[
            (Gpr(11), 0x1120_3190), (Gpr(14), 0x5), (Status, 0x1600), (Memory(0x80), 0xe9d6_0c7f),
            (Memory(0x88), 0x179f_138c_f87d_14d5), (Memory(0x90), 0x8f8f_8f8f_8f8f_8f8f), (Memory(0x98), 0x52ac),
            (Memory(0xa0), 0xffff_ffff_ffff_ffff), (Memory(0xa8), 0x1295_5262_5428_0609), (Memory(0xb0), 0x29),
            (Memory(0xb8), 0x1000), (Memory(0xc0), 0x7fff), (Memory(0xc8), 0x15), (Memory(0xd0), 0x1645),
            (Memory(0xd8), 0x1cb7_7cde_0a93_f4a9), (Memory(0x208), 0x3e92_e874_0000_006a), (Memory(0x260), 0x1),
        ],
        after: &[
            (X87(0), 0x29_1295_5262), (X87(1), 0x1000_0000), (X87(2), 0x15_0000_0000_0000_7fff),
            (X87(3), 0x1645_0000_0000_0000), (X87(4), 0x7cde_0a93_f4a9_0000_0000),
            (X87(5), 0xcf91_b4db_0500_0000_0000), (X87(6), 0xffff_0000_0000_0000_52ac),
            (X87(7), 0x5428_0609_ffff_ffff_ffff), (Control, 0xc7f), (Status, 0x6976), (Valid, 0xff),
            (LastInstruction, 0x1120_0e90), (LastOperand, 0xf87d), (Memory(0x200), 0xa2aa_6956_0c7f),
            (Memory(0x208), 0x3e92_0000_f87d_0000), (Memory(0x260), 0x1441_0000_0000_0001),
            (Memory(0x280), 0xe86_a2aa_6976_0c7f), (Memory(0x288), 0xf87d_0000),
        ],
    }, 5, 0, [(Memory(0x208), 0x3e92_138c_f87d_14d5)];
    // fcomp st,st(6); fld st,qword ptr [r15+1B5h]; fcomp st,qword ptr [r15+rbp*8-38h]; fnstcw [r15+59h];
    // fcomp st,qword ptr [r15+180h]; fld st,qword ptr [r15d+78h]; fnsave [r15+20h]; fld st,dword ptr [11202E85h]
    x87_control_fld_m32fp: Literal {
        place: 18,
        rip: 0x1120_0003,
        code: &[
            "ded6", "41dd87b5010000", "41dc5cefc8", "41d97f59", "41dc9f80010000", "6741dd4778", "6641dd7720",
            "d905592e0000",
        ],
        start: &[
            (Gpr(15), 0x1120_2e60), (X87(2), 0x4005_8815_10fc_24d1_543e), (X87(3), 0x400c_8000_0004_0000_0000),
            (X87(4), 0x1), (X87(5), 0xeaa4_afea_7292_e6c4_3851), (X87(6), 0x4006_da47_cb91_aefa_6061),
            (X87(7), 0x3ffc_a817_55ce_d2dc_fd12), (Control, 0x77f), (Status, 0x4037), (Valid, 0xff),
            (Memory(0xd8), 0x6a6e_0000_0000_0000), (Memory(0x1e0), 0x41ca_2d4a_7680_0000),
            (Memory(0x210), 0x700_7fff_ffff),
        ],
        after: &[
            (X87(0), 0x3bcf_e000_0000_0000_0000), (X87(1), 0x42a6_f000_0000_0000_0000),
            (X87(7), 0x3f76_e010_0000_0000_0000), (Control, 0x37f), (Status, 0x3802), (Valid, 0x80),
            (LastInstruction, 0x1120_0026), (Memory(0x80), 0x1c_0203_0937_077f),
            (Memory(0x90), 0x42a6_f000_0000_0000), (Memory(0x98), 0x8815_10fc_24d1_543e),
            (Memory(0xa0), 0x4_0000_0000_4005), (Memory(0xa8), 0x1_400c_8000), (Memory(0xb0), 0x3851_0000_0000_0000),
            (Memory(0xb8), 0xeaa4_afea_7292_e6c4), (Memory(0xc0), 0xda47_cb91_aefa_6061),
            (Memory(0xc8), 0x55ce_d2dc_fd12_4006), (Memory(0xd0), 0x3ffc_a817), (Memory(0xd8), 0x6a6e_3bcf_e000_0000),
        ],
    }, 7, 0, [(Memory(0x88), 0x2ed8_0033)];
    // fdiv st(4),st; fnstenv [r11+1C0h]; fstp st(6),st; fldenv [r11+rbp*8+1C8h]
    x87_control_fldenv_m28byte: Literal {
        place: 18,
        rip: 0x1120_06b3,
        code: &["dcfc", "6641d9b3c0010000", "ddde", "41d9a4ebc8010000"],
        start: &[
            (Gpr(5), 0xffff_ffff_ffff_ffff), (Gpr(11), 0x1120_2f40), (X87(0), 0xc00d_c0b5_0000_0000_0000),
            (X87(1), 0xc01e_ffff_ffff_ffff_ffff), (X87(2), 0xbffd_bab9_e197_16d4_5cc3),
            (X87(3), 0x4002_882a_e8c9_dbdc_4bdf), (X87(4), 0xc002_f2ae_05c5_c25c_2fe1),
            (X87(5), 0x3fff_8000_0000_0000_0000), (X87(6), 0xbff7_9915_df24_7f64_3ccc),
            (X87(7), 0xc00d_d5c9_0000_0000_0000), (Control, 0xf7f), (Status, 0x720d), (Valid, 0xff),
            (Memory(0x308), 0xffff_ffff_ffff_ffe9), (Memory(0x310), 0xffff_ffff_ffff_ffff),
        ],
        after: &[
            (X87(2), 0x4005_9c20_cc28_1abc_f8ef), (X87(4), 0xbff7_9915_df24_7f64_3ccc), (Status, 0x0),
            (LastOpcode, 0x7ff), (LastInstruction, 0xffff_0000), (LastOperand, 0xffff_ffff),
            (Memory(0x300), 0x6b3_0000_702d_0f7f), (Memory(0x308), 0xffff_0000_0000_0000),
        ],
    }, 2, 0, [(Memory(0x308), 0xffff_0000_0000_0033)];
    // fwait; fstp st(3),st; fwait; fdiv st(1),st; fnsave [11203080h]; fldcw [rdi-88h]
    x87_control_fldcw_m2byte: Literal {
        place: 18,
        rip: 0x1120_0c6d,
        code: &["9b", "dddb", "9b", "dcf9", "66dd342580302011", "d9af78ffffff"],
        start: &[
            (Gpr(7), 0x1120_3110), (X87(0), 0x3be5_c079_d7f2_405a_c181), (X87(1), 0x7fff_8a66_3cab_82b6_a74b),
            (X87(4), 0xc000_da87_adc3_b751_45b4), (X87(5), 0x400e_aedb_0000_0000_0000),
            (X87(6), 0xc009_f5f0_0000_0000_0000), (X87(7), 0xc001_9c7f_3f5d_8cd6_d236), (Control, 0xa7f),
            (Status, 0x414), (Valid, 0x16),
        ],
        after: &[
            (X87(2), 0x7fff_ca66_3cab_82b6_a74b), (X87(3), 0xffff_c000_0000_0000_0000), (Control, 0x40),
            (Status, 0x0), (Valid, 0x0), (Memory(0x280), 0xc71_fcab_0c55_0a7f),
            (Memory(0x288), 0xa74b_0000_0000_0000), (Memory(0x290), 0x7fff_8a66_3cab_82b6),
            (Memory(0x298), 0xca66_3cab_82b6_a74b), (Memory(0x2a0), 0x7fff), (Memory(0x2a8), 0xb751_45b4_ffff_c000),
            (Memory(0x2b0), 0xc000_da87_adc3), (Memory(0x2b8), 0x400e_aedb_0000_0000),
            (Memory(0x2c0), 0xf5f0_0000_0000_0000), (Memory(0x2c8), 0x3f5d_8cd6_d236_c009),
            (Memory(0x2d0), 0x405a_c181_c001_9c7f), (Memory(0x2d8), 0x3be5_c079_d7f2),
        ],
    }, 5, 0, [(Memory(0x288), 0xa74b_0000_0000_0033)];
    // fadd st,qword ptr [r9+203h]; fnclex; fstp tbyte ptr [r9+rsi*8+2F8h],st; fnsetpm; fnsave [r9+20h];
    // fld st,tbyte ptr [r9+20h]
    x87_control_fld_m80fp: Literal {
        place: 18,
        rip: 0x1120_01da,
        code: &["41dc8103020000", "dbe2", "41dbbcf1f8020000", "dbe4", "6641dd7120", "41db6920"],
        start: &[
            (Gpr(6), 0xffff_ffff_ffff_ffd5), (Gpr(9), 0x1120_2f60), (X87(0), 0xffff_5b8e_9085_6509_ce83),
            (X87(1), 0x3fff_8000_0000_0000_0000), (X87(2), 0xbbf3_d6da_727b_e185_3974),
            (X87(3), 0x3ff8_8f01_5dc1_2749_2000), (X87(4), 0xc00c_b21a_0000_0000_0000),
            (X87(5), 0x8000_0000_0000_0000_0000), (X87(6), 0x3ffa_c349_d6b8_10d0_9fd9),
            (X87(7), 0xc00d_f61e_0000_0000_0000), (Status, 0x1b59), (Valid, 0xff),
            (Memory(0x308), 0x1900_452c_c856_7fff), (Memory(0x360), 0x8747_508b_3d00_005b),
            (Memory(0x368), 0xffff_ffff_ffc0_5dc9),
        ],
        after: &[
            (X87(3), 0xc005_ee47_c22f_9650_adb7), (X87(7), 0x1e3_04c2_2100_037f), (Status, 0x3800), (Valid, 0x80),
            (LastInstruction, 0x1120_01f2), (Memory(0x180), 0x1e3_04c2_2100_037f),
            (Memory(0x190), 0xc00c_b21a_0000_0000), (Memory(0x1a0), 0xd6b8_10d0_9fd9_8000),
            (Memory(0x1a8), 0x3ffa_c349), (Memory(0x1b0), 0xce83_c00d_f61e_0000),
            (Memory(0x1b8), 0xffff_5b8e_9085_6509), (Memory(0x1c0), 0x8000_0000_0000_0000),
            (Memory(0x1c8), 0x727b_e185_3974_3fff), (Memory(0x1d0), 0x9650_adb7_bbf3_d6da),
            (Memory(0x1d8), 0xc005_ee47_c22f), (Memory(0x300), 0xee47_c22f_9650_adb7),
            (Memory(0x308), 0x1900_452c_c856_c005),
        ],
    }, 5, 0, [(Memory(0x188), 0x3100_0033)];
    // fincstp; fnstcw [r15+rbp*2-2AAh]; fld st,st(7); fnstenv [r15+rbp*4-130h]; fstp st(0),st;
    // fadd st,qword ptr [r15-16Ah]
    x87_control_fadd_m64fp: Literal {
        place: 18,
        rip: 0x1120_0d25,
        code: &["d9f7", "41d9bc6f56fdffff", "d9c7", "6641d9b4afd0feffff", "dfd8", "41dc8796feffff"],
        start: &[
            (Gpr(5), 0xffff_ffff_ffff_fff0), (Gpr(15), 0x1120_30f0), (X87(0), 0xbffa_cabb_8e70_333a_89ad),
            (X87(3), 0x3fca_8f2c_07bb_3f4d_0004), (X87(4), 0xc005_b171_9e00_0000_0000),
            (X87(5), 0x400b_b2b8_0000_0000_0000), (X87(6), 0xc01e_8000_0000_0000_0040),
            (X87(7), 0x400d_e432_0000_0000_0000), (Control, 0x47f), (Status, 0x4f00), (Valid, 0xff),
            (Memory(0x20), 0x38),
        ],
        after: &[
            (X87(1), 0xffff_c000_0000_0000_0000), (X87(2), 0x3bd8_d2f0_0000_0000_0000), (Status, 0x5543),
            (Valid, 0xfd), (LastInstruction, 0x1120_0d3c), (Memory(0x20), 0x47f_0000_0000_0038),
            (Memory(0x180), 0xd2f_0018_4f41_047f),
        ],
    }, 4, 0, [(Memory(0x188), 0x33)];
    // fnstsw [r14-170h]; fdiv st,qword ptr [r14+r8*8-0F8h]; fnstenv [r14+r8*8-118h]; fnsetpm; fndisi;
    // fstp qword ptr [r14-68h],st; fnstenv [r14-160h]; fcomp st,qword ptr [r14d-5Ch]
    x87_control_fcomp_m64fp: Literal {
        place: 18,
        rip: 0x1120_04f2,
        code: &[
            "41ddbe90feffff", "43dcb4c608ffffff", "6643d9b4c6e8feffff", "dbe4", "dbe1", "41dd5e98",
            "6641d9b6a0feffff", "6741dc9ea4ffffff",
        ],
        start: &[
            (Gpr(8), 0x17), (Gpr(14), 0x1120_2fe0), (X87(0), 0x43ff_d079_8d0d_9831_7c60),
            (X87(1), 0x3bee_c500_f63b_6dbc_899e), (X87(2), 0xbffd_f9a2_c900_0000_0000),
            (X87(3), 0x383a_a3d9_66dc_0b7b_6f5a), (X87(4), 0xbff7_8000_0000_0000_1000),
            (X87(5), 0xffff_c000_0000_0000_0000), (X87(6), 0x4003_8bb0_cf55_44eb_ca86),
            (X87(7), 0x4003_c06d_a534_bc79_51d6), (Control, 0x77f), (Status, 0x5600), (Valid, 0xff),
            (Memory(0x70), 0xff_ffff_ffff), (Memory(0x88), 0x20f3_8cdb_0635_cbb3),
            (Memory(0x188), 0xffff_ffff_0010_0000), (Memory(0x1a0), 0xc03e_8d49_ba1a_0891),
        ],
        after: &[
            (X87(2), 0x3ff9_82bb_e9eb_0050_35da), (Status, 0x2122), (Valid, 0xf3), (LastInstruction, 0x1120_051a),
            (Memory(0x70), 0xff_ffff_5600), (Memory(0x80), 0x50e_0830_5c20_077f),
            (Memory(0x88), 0x20f3_0000_0000_0000), (Memory(0x178), 0x3f90_577d_3d60_0a06),
            (Memory(0x180), 0x4f9_0800_5420_077f), (Memory(0x188), 0xffff_0000_0000_0000),
        ],
    }, 3, 0, [(Memory(0x188), 0xffff_0000_2fa0_0033)];
    // fldenv [r14+rbp*2-240h]; fnstsw [r14+rbp-2CEh]; fnstenv [r14+rbp*4-110h]; fadd st(6),st;
    // fdiv st,qword ptr [r14-168h]
    x87_control_fdiv_m64fp: Literal {
        place: 18,
        rip: 0x1120_0595,
        code: &["41d9a46ec0fdffff", "41ddbc2e32fdffff", "6641d9b4aef0feffff", "dcc6", "41dcb698feffff"],
        start: &[
            (Gpr(5), 0xffff_ffff_ffff_ffe8), (Gpr(14), 0x1120_31f0), (X87(1), 0xc00d_b046_0000_0000_0000),
            (X87(2), 0xc00b_ab88_0000_0000_0000), (X87(3), 0x7ffe_ffff_ffff_ffff_ffff),
            (X87(5), 0x400e_f211_0000_0000_0000), (X87(6), 0xbffe_f2e7_c1a0_9b67_a783),
            (X87(7), 0xfffe_ffff_ffff_ffff_fffe), (Memory(0x108), 0x2d1c), (Memory(0x180), 0xafc3_0000_0c3f),
            (Memory(0x188), 0x38fb_8276_49f2_ab03), (Memory(0x190), 0x17), (Memory(0x198), 0xffff_ffff_ffff_fffe),
            (Memory(0x288), 0x3ff0_02ef_b770_970e),
        ],
        after: &[
            (X87(3), 0x7ffe_ffff_ff00_0000_0000), (Control, 0xc7f), (Status, 0x2d63), (Valid, 0xee),
            (LastInstruction, 0x1120_05b0), (Memory(0x108), 0x2f43_2d1c), (Memory(0x280), 0x8276_0303_2f43_0c7f),
            (Memory(0x288), 0x3ff0_0000_0000_0000),
        ],
    }, 3, 0, [(Memory(0x288), 0x3ff0_fffe_0000_0017)];
    // fldcw [r14-2B2h]; fdiv st,qword ptr [11203170h]; fcomp st,qword ptr [r14-10h]; fndisi; fnclex;
    // fnsave [r14+r11-250h]; fld st,qword ptr [r14+r11*4-240h]
    x87_control_fld_m64fp: Literal {
        place: 18,
        rip: 0x1120_0c31,
        code: &["41d9ae4efdffff", "dc3532250000", "41dc5ef0", "dbe1", "dbe2", "43ddb41eb0fdffff", "43dd849ec0fdffff"],
        start: &[
            (Gpr(14), 0x1120_31d0), (X87(0), 0xbfff_a752_4dab_bde1_6357), (X87(1), 0x3ffb_ff1f_d012_74b5_52e0),
            (X87(2), 0x3ffd_b0a8_1d11_6772_aee5), (X87(3), 0xffff_c000_0000_0000_0000),
            (X87(4), 0xd49e_bcf1_fdc1_a6df_9bf8), (X87(5), 0xbff9_af90_d433_4daf_1800),
            (X87(6), 0x3ff7_be02_a782_6b49_ba8d), (X87(7), 0xc004_87b7_eef0_a822_8636), (Status, 0x3000),
            (Valid, 0xff), (Memory(0x118), 0xd37f_d07b_d1dc_ddd1), (Memory(0x370), 0x4327_0a3f_20a0_89b0),
            (Memory(0x3c0), 0x4062_253c_e81f_c6c3),
        ],
        after: &[
            (X87(6), 0x3fc4_83f3_9554_1b90_3b4a), (X87(7), 0x0), (Status, 0x3800), (Valid, 0x80),
            (LastInstruction, 0x1120_0c4e), (Memory(0x180), 0xffff_3900_ffff_137f),
            (Memory(0x188), 0x1120_0c3e_ffff_3080), (Memory(0x198), 0xa822_8636_ffff_0000),
            (Memory(0x1a0), 0x6357_c004_87b7_eef0), (Memory(0x1a8), 0xbfff_a752_4dab_bde1),
            (Memory(0x1b0), 0xff1f_d012_74b5_52e0), (Memory(0x1b8), 0x1d11_6772_aee5_3ffb),
            (Memory(0x1c0), 0x3ffd_b0a8), (Memory(0x1c8), 0x9bf8_ffff_c000_0000),
            (Memory(0x1d0), 0xd49e_bcf1_fdc1_a6df), (Memory(0x1d8), 0xaf90_d433_4daf_1800),
            (Memory(0x1e0), 0x9554_1b90_3b4a_bff9), (Memory(0x1e8), 0x3fc4_83f3),
        ],
    }, 6, 0, [(Memory(0x190), 0x1120_31c0_045e_0033)];
    // fcomp st,st(6); fnstcw [r15+r13*4-108h]; fnstsw [r15-9Ah]; fstp qword ptr [r15-80h],st; fwait;
    // fnsave [r15-0F0h]; frstor [11202E80h]
    x87_control_frstor_m94byte: Literal {
        place: 18,
        rip: 0x1120_039a,
        code: &[
            "dcde", "43d9bcaff8feffff", "41ddbf66ffffff", "41dd9f80ffffff", "9b", "41ddb710ffffff", "66dd25bf2a0000",
        ],
        start: &[
            (Gpr(13), 0xc), (Gpr(15), 0x1120_2f70), (X87(0), 0xc000_a949_3916_c2a4_ad92),
            (X87(1), 0xbfc2_b227_512b_bb4a_d883), (X87(2), 0x4000_f11b_9584_e287_2e95),
            (X87(3), 0x3f86_dac4_3699_48d6_2cb9), (X87(4), 0x3ff9_fff8_9198_e19d_e9ea),
            (X87(5), 0xc003_c8c1_df00_0000_0000), (X87(6), 0xffff_c000_0000_0000_0000),
            (X87(7), 0x8002_94f8_10a5_f316_4a2f), (Control, 0x7f), (Status, 0x6f3d), (Valid, 0x2b),
            (Memory(0xe8), 0x1000_0000_0000_0000),
        ],
        after: &[
            (X87(0), 0x10a5_f316_4a2f_ffff_0000), (X87(1), 0x3916_c2a4_ad92_8002_94f8),
            (X87(2), 0x512b_bb4a_d883_c000_a949), (X87(3), 0x9584_e287_2e95_bfc2_b227),
            (X87(4), 0x3699_48d6_2cb9_4000_f11b), (X87(5), 0x9198_e19d_e9ea_3f86_dac4),
            (X87(6), 0xdf00_0000_0000_3ff9_fff8), (X87(7), 0x1120), (Status, 0x7f7f), (Valid, 0xb9),
            (LastInstruction, 0xffff), (LastOperand, 0xffff), (Memory(0x80), 0xffff_397d_ffff_007f),
            (Memory(0x88), 0x1120_03ab_ffff_ff30), (Memory(0x98), 0xf316_4a2f_ffff_0000),
            (Memory(0xa0), 0xad92_8002_94f8_10a5), (Memory(0xa8), 0xc000_a949_3916_c2a4),
            (Memory(0xb0), 0xb227_512b_bb4a_d883), (Memory(0xb8), 0x9584_e287_2e95_bfc2),
            (Memory(0xc0), 0x48d6_2cb9_4000_f11b), (Memory(0xc8), 0xe9ea_3f86_dac4_3699),
            (Memory(0xd0), 0x3ff9_fff8_9198_e19d), (Memory(0xd8), 0xc8c1_df00_0000_0000), (Memory(0xe0), 0xc003),
            (Memory(0xe8), 0x1000_0000_ffff_c000), (Memory(0xf0), 0xfff8_0000_0000_0000),
        ],
    }, 6, 0, [(Memory(0x90), 0x1120_2ef0_059f_0033)];
    // fnsetpm; fnstcw [r10+r14*2-198h]; fcomp st,st(5); fnsave [r10+r14-2FAh]; frstor [r10-2C0h]
    x87_control_frstor_m108byte: Literal {
        place: 18,
        rip: 0x1120_0b9f,
        code: &["dbe4", "43d9bc7268feffff", "dcdd", "6643ddb43206fdffff", "41dda240fdffff"],
        start: &[
            (Gpr(10), 0x1120_3140), (Gpr(14), 0x3a), (X87(0), 0x4400_f8af_b843_d798_32f5),
            (X87(1), 0xc00b_d7d8_0000_0000_0000), (X87(2), 0xffff_e45d_5135_63ad_fa28),
            (X87(3), 0xbbd2_d935_e680_9f43_deae), (X87(4), 0xbff9_fa54_0eeb_fd12_0615),
            (X87(5), 0xa553_9e0f_9c4c_ab7c_4038), (X87(6), 0xffff_8000_0000_0000_0000),
            (X87(7), 0xbff7_cd8b_4030_8ae5_e3ec), (Control, 0xf7f), (Status, 0x940), (Valid, 0x3f),
            (Memory(0xe0), 0x24b9_007d_635b_ef38), (Memory(0xe8), 0x74f2_2abc), (Memory(0x218), 0x2f65_e1fe),
        ],
        after: &[
            (X87(0), 0xa553_9e0f_9c4c), (X87(1), 0x8ae5_e3ec_ffff_8000_0000), (X87(2), 0xd798_32f5_bff7_cd8b_4030),
            (X87(3), 0x4400_f8af_b843), (X87(4), 0xef38_0000_c00b_d7d8_0000), (X87(5), 0x74f2_2abc_24b9_007d_635b),
            (X87(6), 0xfd12_0615_bbd2_d935_e680), (X87(7), 0xab7c_4038_bff9_fa54_0eeb), (Status, 0x702c),
            (Valid, 0xff), (LastOpcode, 0x135), (LastInstruction, 0xfa28_0000), (LastOperand, 0xffff_e45d),
            (Memory(0x80), 0xba9_f02c_5541_0f7f), (Memory(0x88), 0xfa28_0000_0000_0000),
            (Memory(0x90), 0xffff_e45d_5135_63ad), (Memory(0x98), 0xd935_e680_9f43_deae),
            (Memory(0xa0), 0xeeb_fd12_0615_bbd2), (Memory(0xa8), 0xab7c_4038_bff9_fa54),
            (Memory(0xb0), 0xa553_9e0f_9c4c), (Memory(0xb8), 0xffff_8000_0000_0000),
            (Memory(0xc0), 0xcd8b_4030_8ae5_e3ec), (Memory(0xc8), 0xb843_d798_32f5_bff7), (Memory(0xd0), 0x4400_f8af),
            (Memory(0xd8), 0xc00b_d7d8_0000), (Memory(0x218), 0xf7f_2f65_e1fe),
        ],
    }, 4, 0, [(Memory(0x88), 0xfa28_0000_0000_0033)];
}
