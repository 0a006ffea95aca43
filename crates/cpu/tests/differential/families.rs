//! The families of instructions and how their cases are drawn.

use iced_x86::{Code, CpuidFeature as Feature, Mnemonic, Mnemonic::*};

use crate::builder::{Builder, Flavor, Form, forms};
use crate::case::INSTRUCTIONS_MAX;
use crate::{special, state};

/// A generator of cases: everything about a case follows from its seed.
pub type Generator = Box<dyn FnMut(&mut Builder, u64)>;

const INTEGER: &[Feature] = &[
    Feature::INTEL8086,
    Feature::INTEL186,
    Feature::INTEL286,
    Feature::INTEL386,
    Feature::INTEL486,
    Feature::X64,
    Feature::CMOV,
    Feature::CX8,
    Feature::CMPXCHG16B,
    Feature::POPCNT,
    Feature::MULTIBYTENOP,
    Feature::SSE2,
    Feature::SSE4_2,
];
const VECTOR: &[Feature] =
    &[Feature::MMX, Feature::SSE, Feature::SSE2, Feature::SSE3, Feature::SSSE3, Feature::SSE4_1, Feature::SSE4_2];
const FLOAT80: &[Feature] = &[Feature::FPU, Feature::FPU287, Feature::FPU387, Feature::CMOV, Feature::SSE3];

/// Cases made of up to eight instructions of these forms.
fn mixed(forms: Vec<Form>, flavor: Flavor, reserved: &'static [usize]) -> Generator {
    assert!(!forms.is_empty());
    Box::new(move |builder, seed| {
        builder.start(seed, flavor, reserved);
        builder.push_forms(&forms, INSTRUCTIONS_MAX as u64);
    })
}

fn integer(mnemonics: &'static [Mnemonic]) -> Generator {
    mixed(integer_forms(mnemonics), Flavor::Integer, &[])
}

pub fn integer_forms(mnemonics: &'static [Mnemonic]) -> Vec<Form> {
    forms(INTEGER, |form| mnemonics.contains(&form.mnemonic()) && !is_vector(form))
}

fn is_vector(form: &Form) -> bool {
    form.code.op_code().op_kinds().iter().any(|kind| format!("{kind:?}").starts_with("xmm"))
}

const ALU: &[Mnemonic] = &[
    Add, Or, Adc, Sbb, And, Sub, Xor, Cmp, Test, Inc, Dec, Neg, Not, Cbw, Cwde, Cdqe, Cwd, Cdq, Cqo, Lahf, Sahf, Clc,
    Stc, Cmc, Cld, Std, Nop,
];
const CONDITIONAL: &[Mnemonic] = &[
    Seto, Setno, Setb, Setae, Sete, Setne, Setbe, Seta, Sets, Setns, Setp, Setnp, Setl, Setge, Setle, Setg, Cmovo,
    Cmovno, Cmovb, Cmovae, Cmove, Cmovne, Cmovbe, Cmova, Cmovs, Cmovns, Cmovp, Cmovnp, Cmovl, Cmovge, Cmovle, Cmovg,
];

pub fn alu() -> Generator {
    integer(ALU)
}

pub fn shift() -> Generator {
    integer(&[Rol, Ror, Rcl, Rcr, Shl, Sal, Shr, Sar, Shld, Shrd])
}

pub fn multiply_divide() -> Generator {
    let forms = integer_forms(&[Mul, Imul, Div, Idiv, Cdq, Cqo, Cwd, Neg, Mov]);
    Box::new(move |builder, seed| {
        builder.start(seed, Flavor::Integer, &[]);
        // Quotients overflow for most random dividends: make the upper half small.
        if builder.random.percent(70) {
            let small = builder.random.below(16);
            builder.case.registers.gpr[2] = if builder.random.percent(70) { small } else { small.wrapping_neg() };
        }
        builder.push_forms(&forms, 4);
    })
}

pub fn bit() -> Generator {
    integer(&[Bt, Bts, Btr, Btc, Bsf, Bsr, Bswap, Popcnt, Crc32, Xor])
}

pub fn move_extend() -> Generator {
    static MOVES: std::sync::LazyLock<Vec<Mnemonic>> = std::sync::LazyLock::new(|| {
        let mut all = vec![Mov, Movsx, Movzx, Movsxd, Xchg, Lea, Movnti, Bswap, Cmp, Add];
        all.extend(CONDITIONAL);
        all
    });
    integer(&MOVES)
}

pub fn atomic() -> Generator {
    let mnemonics: &[Mnemonic] = &[
        Add, Or, Adc, Sbb, And, Sub, Xor, Inc, Dec, Neg, Not, Bts, Btr, Btc, Xadd, Cmpxchg, Cmpxchg8b, Cmpxchg16b, Xchg,
    ];
    special::atomic(integer_forms(mnemonics))
}

fn vector_forms(keep: impl Fn(&Form, &str) -> bool) -> Vec<Form> {
    forms(VECTOR, |form| {
        let name = format!("{:?}", form.mnemonic()).to_lowercase();
        let special = ["maskmov", "prefetch", "fisttp", "sfence", "lfence", "mfence", "clflush", "monitor", "mwait"];
        let integer = ["crc32", "movnti", "ldmxcsr", "stmxcsr", "pause", "popcnt"];
        // Approximations differ between processors; the crate's own tests see to their errors.
        let approximate = ["rcp", "rsqrt"];
        !special.iter().chain(&integer).chain(&approximate).any(|prefix| name.starts_with(prefix)) && keep(form, &name)
    })
}

fn is_float(name: &str) -> bool {
    name.starts_with("cvt") || ["ps", "pd", "ss", "sd"].iter().any(|suffix| name.ends_with(suffix))
}

pub fn mmx() -> Generator {
    mixed(
        vector_forms(|form, name| form.uses_mmx() && !name.starts_with("cvt") || name == "emms"),
        Flavor::Integer,
        &[],
    )
}

fn vector(features: &'static [Feature]) -> Generator {
    let keep = |form: &Form, name: &str| {
        !form.uses_mmx()
            && !is_float(name)
            && form.code.cpuid_features().iter().any(|feature| features.contains(feature))
    };
    mixed(vector_forms(keep), Flavor::Integer, &[])
}

pub fn sse2_integer() -> Generator {
    vector(&[Feature::SSE, Feature::SSE2, Feature::SSE3])
}

pub fn sse4_integer() -> Generator {
    vector(&[Feature::SSSE3, Feature::SSE4_1, Feature::SSE4_2])
}

pub fn sse_float() -> Generator {
    state::sse_float(vector_forms(|form, name| !form.uses_mmx() && is_float(name) && !name.starts_with("cvt")))
}

pub fn sse_convert() -> Generator {
    state::sse_float(vector_forms(|_, name| name.starts_with("cvt") || name.starts_with("round")))
}

/// FSTCW and the like are two instructions: WAIT and FNSTCW.
const WITH_WAIT: &[Mnemonic] = &[Fstenv, Fsave, Fstcw, Fstsw, Fclex, Finit, Feni, Fdisi, Fsetpm];

fn float80_forms(keep: impl Fn(Mnemonic) -> bool) -> Vec<Form> {
    forms(FLOAT80, |form| {
        let name = format!("{:?}", form.mnemonic());
        name.starts_with('F') && !WITH_WAIT.contains(&form.mnemonic()) && keep(form.mnemonic())
    })
}

const TRANSCENDENTAL: &[Mnemonic] = &[F2xm1, Fyl2x, Fyl2xp1, Fptan, Fpatan, Fsin, Fcos, Fsincos];
const CONTROL: &[Mnemonic] = &[Fnstcw, Fldcw, Fnstsw, Fnclex, Fninit, Fneni, Fndisi, Fnsetpm];
const ENVIRONMENT: &[Mnemonic] = &[Fldenv, Fnstenv, Fnsave, Frstor];

pub fn x87_arithmetic() -> Generator {
    mixed(float80_forms(|m| ![TRANSCENDENTAL, CONTROL, ENVIRONMENT].concat().contains(&m)), Flavor::Float80, &[])
}

pub fn x87_transcendental() -> Generator {
    let forms =
        float80_forms(|m| TRANSCENDENTAL.contains(&m) || matches!(m, Fscale | Fprem | Fprem1 | Fxtract | Fsqrt));
    mixed(forms, Flavor::Float80, &[])
}

pub fn x87_control() -> Generator {
    let control = float80_forms(|m| CONTROL.contains(&m));
    let arithmetic = float80_forms(|m| matches!(m, Fadd | Fld | Fstp | Fdiv | Fld1 | Fcomp | Fincstp | Ffree));
    state::x87_control(control, arithmetic)
}

/// Instructions of all families together: what one leaves, another one of its own kind seldom reads.
pub fn mixture() -> Generator {
    let mut forms = integer_forms(ALU);
    forms.extend(integer_forms(CONDITIONAL));
    forms.extend(integer_forms(&[
        Rol, Rcr, Shl, Sar, Shld, Mul, Imul, Bt, Bts, Bsf, Popcnt, Mov, Movzx, Lea, Xadd, Cmpxchg,
    ]));
    forms.extend(vector_forms(|_, name| !is_float(name)));
    forms.extend(vector_forms(|form, name| is_float(name) && !form.uses_mmx()));
    forms.extend(float80_forms(|m| matches!(m, Fld | Fst | Fstp | Fild | Fistp | Fadd | Faddp | Fmul | Fucomi | Fxch)));
    state::sse_float(forms)
}

/// A form by its code, where one is known to exist.
pub fn form(code: Code) -> Form {
    Form::new(code).expect("a drawable form")
}

/// ALU instructions for use between others, and those that read flags.
pub fn filler() -> Vec<Form> {
    static MNEMONICS: &[Mnemonic] = &[Add, Sub, Xor, And, Or, Cmp, Test, Inc, Dec, Mov, Lea, Sete, Setb, Adc, Cmovl];
    integer_forms(MNEMONICS)
}
