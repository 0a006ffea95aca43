//! What CPUID says: a [`CpuProfile`], as one of its processors sees it.
//!
//! Sources: Intel SDM volume 2 (CPUID), AMD APM volume 3 appendix E, Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use spec::processor::{CpuProfile, SOFT_PHYSICAL_BITS, SOFT_TSC_HZ, bit, word};

use crate::msr::index;

/// Ticks of the time-stamp counter a second.
pub const TSC_HZ: u64 = SOFT_TSC_HZ;

/// Physical address bits of the soft engine's processor.
pub(crate) const PHYSICAL_BITS: u32 = SOFT_PHYSICAL_BITS as u32;

/// CPUID.1:ECX bit that mirrors CR4.OSXSAVE. Tables leave it clear.
pub const OSXSAVE: u32 = 1 << 27;

/// A processor that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its number, which is also its APIC ID.
    pub number: u32,
    /// How many processors the machine has; each is a core of one package.
    pub count: u32,
}

/// The four result registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// One entry of the table that a hypervisor interface such as KVM_SET_CPUID2 takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question, for leaves that look at it.
    pub subleaf: Option<u32>,
    /// The answer.
    pub registers: Leaf,
}

/// Leaves that exist, each with its number of subleaves (0: ECX does not matter).
const LEAVES: &[(u32, u32)] = &[
    (0x0, 0),
    (0x1, 0),
    (0x2, 0),
    (0x4, 4),
    (0x6, 0),
    (0x7, 3),
    (0xb, 3),
    (0xd, 63),
    (0x4000_0000, 0),
    (0x4000_0001, 0),
    (LEAF_FREQUENCIES, 0),
    (0x8000_0000, 0),
    (0x8000_0001, 0),
    (0x8000_0002, 0),
    (0x8000_0003, 0),
    (0x8000_0004, 0),
    (0x8000_0005, 0),
    (0x8000_0006, 0),
    (0x8000_0007, 0),
    (0x8000_0008, 0),
    (0x8000_0021, 0),
];
/// Rates of the time-stamp counter and of the APIC timer, in kHz, for guests of a hypervisor.
const LEAF_FREQUENCIES: u32 = 0x4000_0010;

/// Everything CPUID says, in ascending order. Answers that are all zero are left out, as leaves that do not exist are zero.
pub fn table(processor: Processor, profile: &CpuProfile) -> Vec<TableEntry> {
    let mut table = Vec::new();
    for &(leaf, subleaves) in LEAVES {
        let questions = (0..subleaves).map(Some).chain((subleaves == 0).then_some(None));
        let entries = questions.map(|subleaf| TableEntry {
            leaf,
            subleaf,
            registers: query(leaf, subleaf.unwrap_or(0), processor, profile),
        });
        table.extend(entries.filter(|entry| entry.registers != Leaf::default()));
    }
    table
}

/// What CPUID answers. Leaves that do not exist are zero.
pub fn query(leaf: u32, subleaf: u32, processor: Processor, profile: &CpuProfile) -> Leaf {
    let feature = |number: usize| profile.features.word(number);
    match leaf {
        0x0 => leaf_of_text(0xd, &profile.vendor),
        0x1 => basic_features(processor, profile),
        // No descriptors: ask leaf 4, or on AMD's the extended leaves.
        0x2 if !profile.is_amd() => Leaf { eax: 0x00ff_ff01, ..Leaf::default() },
        0x4 if !profile.is_amd() => cache(subleaf, processor),
        // The APIC timer runs in every power state.
        0x6 => Leaf { eax: 1 << 2, ..Leaf::default() },
        0x7 => match subleaf {
            0 => Leaf {
                eax: if feature(word::STRUCTURED_2_EDX) != 0 { 2 } else { 1 },
                ebx: feature(word::STRUCTURED_EBX),
                ecx: feature(word::STRUCTURED_ECX),
                edx: feature(word::STRUCTURED_EDX),
            },
            1 => Leaf { eax: feature(word::STRUCTURED_1_EAX), ..Leaf::default() },
            2 => Leaf { edx: feature(word::STRUCTURED_2_EDX), ..Leaf::default() },
            _ => Leaf::default(),
        },
        0xb => topology(subleaf, processor),
        0xd if profile.features.has(bit::XSAVE) => xsave(subleaf, profile),
        0x4000_0000 => {
            leaf_of_text(if profile.tsc_hz.is_some() { LEAF_FREQUENCIES } else { 0x4000_0001 }, b"KVMKVMKVM\0\0\0")
        }
        0x4000_0001 => Leaf { eax: feature(word::KVM_EAX), ..Leaf::default() },
        LEAF_FREQUENCIES => match profile.tsc_hz {
            Some(hz) => Leaf { eax: (hz / 1000) as u32, ebx: APIC_TIMER_KHZ, ..Leaf::default() },
            None => Leaf::default(),
        },
        0x8000_0000..=0x8000_0021 => extended(leaf, processor, profile),
        _ => Leaf::default(),
    }
}

/// Whether the processors of a VM have a model-specific register that comes with a feature; all others are there.
pub fn has_msr(profile: &CpuProfile, index: u32) -> bool {
    let has = |bits| profile.features.has(bits);
    match index {
        index::SPEC_CTRL => has(bit::SPEC_CTRL) || has(bit::AMD_SPEC_CTRL),
        index::PRED_CMD => has(bit::SPEC_CTRL) || has(bit::IBPB),
        index::FLUSH_CMD => has(bit::FLUSH_CMD),
        index::ARCH_CAPABILITIES => has(bit::ARCH_CAPABILITIES),
        index::VIRT_SPEC_CTRL => has(bit::VIRT_SSBD),
        index::TSC_ADJUST => has(bit::TSC_ADJUST),
        _ => true,
    }
}

fn extended(leaf: u32, processor: Processor, profile: &CpuProfile) -> Leaf {
    let feature = |number: usize| profile.features.word(number);
    let [eax_21, ecx_21] = [word::EXTENDED_21_EAX, word::EXTENDED_21_ECX].map(feature);
    match leaf {
        0x8000_0000 => Leaf { eax: if eax_21 | ecx_21 != 0 { 0x8000_0021 } else { 0x8000_0008 }, ..Leaf::default() },
        0x8000_0001 => {
            let legacy_cores = u32::from(profile.is_amd() && processor.count > 1) << 1;
            Leaf {
                ecx: feature(word::EXTENDED_ECX) | legacy_cores,
                edx: feature(word::EXTENDED_EDX),
                ..Leaf::default()
            }
        }
        0x8000_0002..=0x8000_0004 => brand((leaf & 7) as usize - 2),
        // L1, data and instructions: 32 KiB, 8-way, 64-byte lines.
        0x8000_0005 if profile.is_amd() => Leaf { ecx: 0x2008_0140, edx: 0x2008_0140, ..Leaf::default() },
        // L2: 1 MiB, 16-way, 64-byte lines.
        0x8000_0006 => Leaf { ecx: 1024 << 16 | 8 << 12 | 64, ..Leaf::default() },
        // Invariant TSC.
        0x8000_0007 => Leaf { edx: u32::from(profile.tsc_hz.is_some()) << 8, ..Leaf::default() },
        0x8000_0008 => {
            let cores = (processor.count - 1) & 0xff | processor.count.next_power_of_two().trailing_zeros() << 12;
            Leaf {
                eax: 48 << 8 | u32::from(profile.physical_bits),
                ebx: feature(word::EXTENDED_8_EBX),
                ecx: if profile.is_amd() { cores } else { 0 },
                edx: 0,
            }
        }
        0x8000_0021 => Leaf { eax: eax_21, ecx: ecx_21, ..Leaf::default() },
        _ => Leaf::default(),
    }
}

/// Rate of the APIC timer on both engines, in kHz.
const APIC_TIMER_KHZ: u32 = (TSC_HZ / 1000) as u32;
/// Bytes of the legacy region and the header of an XSAVE area.
const XSAVE_BYTES: u32 = 576;
const BRAND: &[u8; 48] = b"twinvm virtual processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn leaf_of_text(eax: u32, text: &[u8; 12]) -> Leaf {
    let word = |at: usize| text.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes));
    // As leaf 0 shows it: EBX, EDX, ECX. Hypervisors' leaves have EBX, ECX, EDX.
    let (ecx, edx) = if eax >> 30 == 1 { (word(4), word(8)) } else { (word(8), word(4)) };
    Leaf { eax, ebx: word(0), ecx, edx }
}

fn brand(part: usize) -> Leaf {
    let word = |index: usize| {
        let at = part * 16 + index * 4;
        BRAND.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
    };
    Leaf { eax: word(0), ebx: word(1), ecx: word(2), edx: word(3) }
}

fn basic_features(processor: Processor, profile: &CpuProfile) -> Leaf {
    const HTT: u32 = 1 << 28;
    let several = processor.count > 1;
    Leaf {
        eax: profile.signature,
        ebx: processor.number << 24 | (processor.count.next_power_of_two() & 0xff) << 16 | 8 << 8,
        ecx: profile.features.word(word::BASIC_ECX),
        edx: profile.features.word(word::BASIC_EDX) | if several { HTT } else { 0 },
    }
}

/// The sizes of XSAVE areas in the standard format. What XCR0 has just now does not change the answer of EBX on the soft engine, which
/// has nothing beyond x87 and SSE state; KVM brings it up to date itself.
fn xsave(subleaf: u32, profile: &CpuProfile) -> Leaf {
    let xcr0 = profile.xcr0();
    match subleaf {
        0 => {
            let ends = profile.xsave.iter().map(|component| component.offset.saturating_add(component.bytes));
            let bytes = ends.fold(XSAVE_BYTES, u32::max);
            Leaf { eax: xcr0 as u32, ebx: XSAVE_BYTES, ecx: bytes, edx: (xcr0 >> 32) as u32 }
        }
        1 => Leaf { eax: profile.features.word(word::XSAVE_EAX), ..Leaf::default() },
        _ => match profile.xsave.iter().find(|component| u32::from(component.number) == subleaf) {
            Some(component) => Leaf { eax: component.bytes, ebx: component.offset, ..Leaf::default() },
            None => Leaf::default(),
        },
    }
}

/// Deterministic cache parameters. Nothing is cached by this layout; programs size their buffers by it.
fn cache(subleaf: u32, processor: Processor) -> Leaf {
    const DATA: u32 = 1;
    const INSTRUCTION: u32 = 2;
    const UNIFIED: u32 = 3;
    let (kind, level, ways, sets, sharing) = match subleaf {
        0 => (DATA, 1, 8, 64, 1),
        1 => (INSTRUCTION, 1, 8, 64, 1),
        2 => (UNIFIED, 2, 16, 1024, 1),
        _ => return Leaf::default(),
    };
    let cores = processor.count.next_power_of_two();
    const SELF_INITIALIZING: u32 = 1 << 8;
    Leaf {
        eax: kind | level << 5 | SELF_INITIALIZING | (sharing - 1) << 14 | ((cores - 1) & 0x3f) << 26,
        ebx: 63 | (ways - 1) << 22,
        ecx: sets - 1,
        edx: 0,
    }
}

/// Extended topology: one thread a core, all cores in one package.
fn topology(subleaf: u32, processor: Processor) -> Leaf {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let edx = processor.number;
    match subleaf {
        0 => Leaf { eax: 0, ebx: 1, ecx: THREAD << 8, edx },
        1 => Leaf {
            eax: processor.count.next_power_of_two().trailing_zeros(),
            ebx: processor.count,
            ecx: CORE << 8 | 1,
            edx,
        },
        _ => Leaf { ecx: subleaf & 0xff, edx, ..Leaf::default() },
    }
}

#[cfg(test)]
mod tests {
    use spec::processor::{XsaveComponent, vendor};

    use super::*;

    const FIRST_OF_TWO: Processor = Processor { number: 0, count: 2 };

    #[test]
    fn the_portable_level_is_x86_64_v2_and_no_more() {
        let profile = CpuProfile::in_order();
        let leaf = query(1, 0, FIRST_OF_TWO, &profile);
        for bit in [0, 9, 13, 19, 20, 23] {
            assert!(leaf.ecx >> bit & 1 == 1, "bit {bit}");
        }
        // FMA, MOVBE, AES, AVX, F16C, RDRAND.
        for bit in [12, 22, 25, 28, 29, 30] {
            assert!(leaf.ecx >> bit & 1 == 0, "bit {bit}");
        }
        // BMI1, HLE, AVX2, BMI2, RTM, RDSEED, ADX, SHA.
        for bit in [3, 4, 5, 8, 11, 18, 19, 29] {
            assert!(query(7, 0, FIRST_OF_TWO, &profile).ebx >> bit & 1 == 0, "bit {bit}");
        }
        assert_eq!(query(0x8000_0001, 0, FIRST_OF_TWO, &profile).ecx & 1, 1);
    }

    #[test]
    fn a_guest_hears_of_an_invariant_counter_only_where_its_rate_is_promised() {
        let mut profile = CpuProfile::in_order();
        assert_eq!(query(0x8000_0007, 0, FIRST_OF_TWO, &profile), Leaf::default());
        assert_eq!(query(1, 0, FIRST_OF_TWO, &profile).ecx & bit::TSC_DEADLINE.1, 0);
        profile.tsc_hz = Some(2_600_000_000);
        assert_eq!(query(0x8000_0007, 0, FIRST_OF_TWO, &profile).edx, 1 << 8);
        assert_eq!(query(LEAF_FREQUENCIES, 0, FIRST_OF_TWO, &profile).eax, 2_600_000);
    }

    #[test]
    fn the_table_has_every_answer_in_order() {
        let avx = XsaveComponent { number: 2, offset: 576, bytes: 256 };
        let profile = CpuProfile { xsave: vec![avx], ..CpuProfile::in_order() };
        let table = table(FIRST_OF_TWO, &profile);
        assert!(table.is_sorted_by_key(|entry| (entry.leaf, entry.subleaf)));
        for entry in &table {
            assert_eq!(entry.registers, query(entry.leaf, entry.subleaf.unwrap_or(0), FIRST_OF_TWO, &profile));
        }
        assert_eq!(query(0xd, 0, FIRST_OF_TWO, &profile), Leaf { eax: 7, ebx: 576, ecx: 832, edx: 0 });
        assert!(table.iter().any(|entry| (entry.leaf, entry.subleaf) == (0xd, Some(2))));
    }

    #[test]
    fn a_maker_s_name_reads_as_manuals_spell_it() {
        let profile = CpuProfile { vendor: vendor::AMD, ..CpuProfile::in_order() };
        let leaf = query(0, 0, FIRST_OF_TWO, &profile);
        assert_eq!((leaf.ebx, leaf.edx, leaf.ecx), (0x6874_7541, 0x6974_6e65, 0x444d_4163));
        let leaf = query(0x4000_0000, 0, FIRST_OF_TWO, &profile);
        assert_eq!((leaf.ebx, leaf.ecx, leaf.edx), (0x4b4d_564b, 0x564b_4d56, 0x4d));
    }
}
