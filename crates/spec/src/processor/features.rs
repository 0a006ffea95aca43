//! [`Features`]: the feature bits of CPUID, word by word.

use serde::{Deserialize, Serialize};

/// A word of feature bits: in which register of which leaf and subleaf CPUID shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureWord {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question.
    pub subleaf: u32,
    /// Register of the answer: EAX 0, EBX 1, ECX 2, EDX 3.
    pub register: usize,
}

const fn word_at(leaf: u32, subleaf: u32, register: usize) -> FeatureWord {
    FeatureWord { leaf, subleaf, register }
}

const WORD_COUNT: usize = 14;

/// Every word that a profile holds, by its number (see [`word`]).
pub const WORDS: [FeatureWord; WORD_COUNT] = [
    word_at(1, 0, 2),
    word_at(1, 0, 3),
    word_at(7, 0, 1),
    word_at(7, 0, 2),
    word_at(7, 0, 3),
    word_at(7, 1, 0),
    word_at(7, 2, 3),
    word_at(0xd, 1, 0),
    word_at(0x4000_0001, 0, 0),
    word_at(0x8000_0001, 0, 2),
    word_at(0x8000_0001, 0, 3),
    word_at(0x8000_0008, 0, 1),
    word_at(0x8000_0021, 0, 0),
    word_at(0x8000_0021, 0, 2),
];

/// Numbers of words, which are places in [`WORDS`].
pub mod word {
    /// Leaf 1, ECX.
    pub const BASIC_ECX: usize = 0;
    /// Leaf 1, EDX.
    pub const BASIC_EDX: usize = 1;
    /// Leaf 7, EBX.
    pub const STRUCTURED_EBX: usize = 2;
    /// Leaf 7, ECX.
    pub const STRUCTURED_ECX: usize = 3;
    /// Leaf 7, EDX.
    pub const STRUCTURED_EDX: usize = 4;
    /// Leaf 7, subleaf 1, EAX.
    pub const STRUCTURED_1_EAX: usize = 5;
    /// Leaf 7, subleaf 2, EDX.
    pub const STRUCTURED_2_EDX: usize = 6;
    /// Leaf 0xD, subleaf 1, EAX.
    pub const XSAVE_EAX: usize = 7;
    /// Leaf 0x4000_0001, EAX.
    pub const KVM_EAX: usize = 8;
    /// Leaf 0x8000_0001, ECX.
    pub const EXTENDED_ECX: usize = 9;
    /// Leaf 0x8000_0001, EDX.
    pub const EXTENDED_EDX: usize = 10;
    /// Leaf 0x8000_0008, EBX.
    pub const EXTENDED_8_EBX: usize = 11;
    /// Leaf 0x8000_0021, EAX.
    pub const EXTENDED_21_EAX: usize = 12;
    /// Leaf 0x8000_0021, ECX.
    pub const EXTENDED_21_ECX: usize = 13;
}

/// Single bits that code asks for.
pub mod bit {
    use super::word;

    /// CMPXCHG16B.
    pub const CMPXCHG16B: (usize, u32) = (word::BASIC_ECX, 1 << 13);
    /// XSAVE and XCR0.
    pub const XSAVE: (usize, u32) = (word::BASIC_ECX, 1 << 26);
    /// The APIC timer counts to a value of the time-stamp counter.
    pub const TSC_DEADLINE: (usize, u32) = (word::BASIC_ECX, 1 << 24);
    /// x2APIC.
    pub const X2APIC: (usize, u32) = (word::BASIC_ECX, 1 << 21);
    /// A hypervisor is there.
    pub const HYPERVISOR: (usize, u32) = (word::BASIC_ECX, 1 << 31);
    /// IA32_TSC_ADJUST.
    pub const TSC_ADJUST: (usize, u32) = (word::STRUCTURED_EBX, 1 << 1);
    /// IA32_SPEC_CTRL and IA32_PRED_CMD, as Intel shows them.
    pub const SPEC_CTRL: (usize, u32) = (word::STRUCTURED_EDX, 1 << 26);
    /// IA32_FLUSH_CMD.
    pub const FLUSH_CMD: (usize, u32) = (word::STRUCTURED_EDX, 1 << 28);
    /// IA32_ARCH_CAPABILITIES.
    pub const ARCH_CAPABILITIES: (usize, u32) = (word::STRUCTURED_EDX, 1 << 29);
    /// IA32_PRED_CMD, as AMD shows it.
    pub const IBPB: (usize, u32) = (word::EXTENDED_8_EBX, 1 << 12);
    /// VIRT_SPEC_CTRL.
    pub const VIRT_SSBD: (usize, u32) = (word::EXTENDED_8_EBX, 1 << 25);
    /// IA32_SPEC_CTRL, as AMD shows it: IBRS, STIBP or SSBD.
    pub const AMD_SPEC_CTRL: (usize, u32) = (word::EXTENDED_8_EBX, 1 << 14 | 1 << 15 | 1 << 24);
}

/// Bits that have a name in messages: word, bit, name.
const NAMES: &[(usize, u32, &str)] = &[
    (word::BASIC_ECX, 0, "SSE3"),
    (word::BASIC_ECX, 9, "SSSE3"),
    (word::BASIC_ECX, 12, "FMA"),
    (word::BASIC_ECX, 13, "CMPXCHG16B"),
    (word::BASIC_ECX, 17, "PCID"),
    (word::BASIC_ECX, 19, "SSE4.1"),
    (word::BASIC_ECX, 20, "SSE4.2"),
    (word::BASIC_ECX, 22, "MOVBE"),
    (word::BASIC_ECX, 23, "POPCNT"),
    (word::BASIC_ECX, 24, "TSC deadline timer"),
    (word::BASIC_ECX, 26, "XSAVE"),
    (word::BASIC_ECX, 28, "AVX"),
    (word::BASIC_ECX, 29, "F16C"),
    (word::STRUCTURED_EBX, 0, "FSGSBASE"),
    (word::STRUCTURED_EBX, 3, "BMI1"),
    (word::STRUCTURED_EBX, 5, "AVX2"),
    (word::STRUCTURED_EBX, 7, "SMEP"),
    (word::STRUCTURED_EBX, 8, "BMI2"),
    (word::STRUCTURED_EBX, 10, "INVPCID"),
    (word::STRUCTURED_EBX, 20, "SMAP"),
    (word::STRUCTURED_ECX, 2, "UMIP"),
    (word::STRUCTURED_EDX, 10, "MD_CLEAR"),
    (word::STRUCTURED_EDX, 26, "SPEC_CTRL"),
    (word::STRUCTURED_EDX, 27, "STIBP"),
    (word::STRUCTURED_EDX, 29, "ARCH_CAPABILITIES"),
    (word::STRUCTURED_EDX, 31, "SSBD"),
    (word::EXTENDED_ECX, 5, "LZCNT"),
    (word::EXTENDED_EDX, 26, "1 GiB pages"),
    (word::EXTENDED_EDX, 27, "RDTSCP"),
    (word::EXTENDED_8_EBX, 12, "IBPB"),
    (word::EXTENDED_8_EBX, 14, "IBRS"),
];

/// A set of CPUID's features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features([u32; WORD_COUNT]);

impl Features {
    /// The portable processor: x86-64-v2, and what makes kernels fast and safe without asking for more: FSGSBASE, SMEP, SMAP, UMIP,
    /// PCID, INVPCID, 1 GiB pages, x2APIC, fast REP MOVS and STOS, XSAVE of x87 and SSE state, KVM's paravirtual clock.
    pub const PORTABLE: Self = Self::of(&[
        // SSE3, SSSE3, CMPXCHG16B, PCID, SSE4.1, SSE4.2, x2APIC, POPCNT, XSAVE, hypervisor.
        (word::BASIC_ECX, 1 | 1 << 9 | 1 << 13 | 1 << 17 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 23 | 1 << 26 | 1 << 31),
        // FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2.
        (word::BASIC_EDX, 0x078b_fbfd),
        // FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, SMAP.
        (word::STRUCTURED_EBX, 1 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 20),
        // UMIP.
        (word::STRUCTURED_ECX, 1 << 2),
        // Fast short REP MOVSB.
        (word::STRUCTURED_EDX, 1 << 4),
        // Fast zero-length REP MOVSB, fast short REP STOSB.
        (word::STRUCTURED_1_EAX, 1 << 10 | 1 << 11),
        // No delays after port I/O, paravirtual clock by its second pair of MSRs, which runs evenly on all processors.
        (word::KVM_EAX, 1 << 1 | 1 << 3 | 1 << 24),
        // LAHF in 64-bit mode.
        (word::EXTENDED_ECX, 1),
        // SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
        (word::EXTENDED_EDX, 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29),
    ]);

    /// What x86-64-v3 adds, and XGETBV and XSAVEOPT for its larger state.
    pub const V3: Self = Self::of(&[
        // FMA, MOVBE, AVX, F16C.
        (word::BASIC_ECX, 1 << 12 | 1 << 22 | 1 << 28 | 1 << 29),
        // BMI1, AVX2, BMI2.
        (word::STRUCTURED_EBX, 1 << 3 | 1 << 5 | 1 << 8),
        // LZCNT.
        (word::EXTENDED_ECX, 1 << 5),
    ]);

    /// What only tells how to be fast: a guest that was told of it runs right without it. Fast REP MOVS and STOS, also short and empty
    /// ones, and no delays after port I/O.
    pub const HINTS: Self = Self::of(&[
        (word::STRUCTURED_EBX, 1 << 9),
        (word::STRUCTURED_EDX, 1 << 4),
        (word::STRUCTURED_1_EAX, 7 << 10),
        (word::KVM_EAX, 1 << 1),
    ]);

    /// By which kernels protect themselves against speculation, and learn what they need not do.
    pub const MITIGATIONS: Self = Self::of(&[
        // MD_CLEAR, SPEC_CTRL, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
        (word::STRUCTURED_EDX, 1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31),
        // PSFD, IPRED_CTRL, RRSBA_CTRL, DDPD_U, BHI_CTRL, MCDT_NO.
        (word::STRUCTURED_2_EDX, 0x3f),
        // IBPB, IBRS, STIBP, both always on, IBRS preferred, IBRS of one mode, SSBD, VIRT_SSBD, SSB_NO, PSFD, BTC_NO, IBPB_RET.
        (word::EXTENDED_8_EBX, 1 << 12 | 0x1f << 14 | 1 << 19 | 0x7 << 24 | 0x7 << 28),
        // LFENCE serializes, VERW_CLEAR, null selectors clear bases, AUTOIBRS, SBPB, IBPB_BRTYPE, SRSO_NO.
        (word::EXTENDED_21_EAX, 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 0x7 << 27),
        // TSA_SQ_NO, TSA_L1_NO.
        (word::EXTENDED_21_ECX, 1 << 1 | 1 << 2),
    ]);

    /// What no guest is given, as it needs state that is not saved or leaves that are not shown: MONITOR, debug store, performance
    /// monitoring, VMX, SMX, SVM and other extensions of guests with guests; TSX; SGX, processor trace, MPX, protection keys for
    /// supervisors, control-flow enforcement, user interrupts, AMX, key locker, XSAVES and user-mode waits.
    pub const NEVER: Self = Self::of(&[
        // DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA, OSXSAVE.
        (word::BASIC_ECX, 0xfc | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 15 | 1 << 18 | 1 << 27),
        // PSN, DS, ACPI, HTT, TM, PBE, VME.
        (word::BASIC_EDX, 1 << 1 | 1 << 18 | 1 << 21 | 1 << 22 | 7 << 28 | 1 << 31),
        // SGX, HLE, PQM, RTM, MPX, PQE, processor trace.
        (word::STRUCTURED_EBX, 1 << 2 | 1 << 4 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 25),
        // OSPKE, WAITPKG, shadow stacks, TME, MAWAU, key locker, bus lock detection, ENQCMD, SGX_LC, PKS.
        (word::STRUCTURED_ECX, 1 << 4 | 1 << 5 | 1 << 7 | 1 << 13 | 0x1f << 17 | 1 << 23 | 1 << 24 | 7 << 29),
        // UINTR, SRBDS_CTRL, RTM_ALWAYS_ABORT, TSX_FORCE_ABORT, HYBRID, TSXLDTRK, PCONFIG, LBR, IBT, AMX, CORE_CAPABILITIES.
        (
            word::STRUCTURED_EDX,
            1 << 5
                | 1 << 9
                | 1 << 11
                | 1 << 13
                | 1 << 15
                | 1 << 16
                | 1 << 18
                | 1 << 19
                | 1 << 20
                | 1 << 22
                | 1 << 24
                | 1 << 25
                | 1 << 30,
        ),
        // AMX-FP16, FRED, LKGS, LAM and others that come with state or modes of their own.
        (word::STRUCTURED_1_EAX, 1 << 17 | 1 << 18 | 1 << 21 | 1 << 22 | 1 << 26),
        // XSAVES, XFD.
        (word::XSAVE_EAX, 1 << 3 | 1 << 4),
        // SVM, extended APIC space, OSVW, IBS, SKINIT, WDT, LWP, TOPOEXT, performance counters, MONITORX, AVIC and the like.
        (
            word::EXTENDED_ECX,
            1 << 2 | 1 << 3 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 0x7f << 22 | 1 << 29 | 1 << 30,
        ),
    ]);

    /// Features from words and their bits.
    const fn of(words: &[(usize, u32)]) -> Self {
        let mut features = [0; WORD_COUNT];
        let mut at = 0;
        while at < words.len() {
            features[words[at].0] |= words[at].1;
            at += 1;
        }
        Self(features)
    }

    /// A word by its number.
    pub fn word(&self, number: usize) -> u32 {
        self.0.get(number).copied().unwrap_or(0)
    }

    /// Whether any of these bits of a word is there (see [`bit`]).
    pub fn has(&self, (number, bits): (usize, u32)) -> bool {
        self.word(number) & bits != 0
    }

    /// With these bits of a word too.
    #[must_use]
    pub fn with(mut self, (number, bits): (usize, u32)) -> Self {
        if let Some(word) = self.0.get_mut(number) {
            *word |= bits;
        }
        self
    }

    /// Without these bits of a word.
    #[must_use]
    pub fn without(mut self, (number, bits): (usize, u32)) -> Self {
        if let Some(word) = self.0.get_mut(number) {
            *word &= !bits;
        }
        self
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|number| self.word(number) & other.word(number)))
    }

    /// What is in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|number| self.word(number) | other.word(number)))
    }

    /// What is in this set and not in the other.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|number| self.word(number) & !other.word(number)))
    }

    /// The features by name, or by their place where they have none here.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (number, place) in WORDS.iter().enumerate() {
            for bit in (0..32).filter(|bit| self.word(number) >> bit & 1 == 1) {
                let known = NAMES.iter().find(|(word, named, _)| (*word, *named) == (number, bit));
                names.push(match known {
                    Some((_, _, name)) => (*name).to_owned(),
                    None => {
                        let register = ["EAX", "EBX", "ECX", "EDX"].get(place.register).copied().unwrap_or_default();
                        format!("CPUID {:#x}.{}:{register} bit {bit}", place.leaf, place.subleaf)
                    }
                });
            }
        }
        names
    }
}
