//! What CPUID says: the *portable* processor, which every engine can be.
//!
//! It is x86-64-v2 plus what makes kernels fast and safe without asking for more: FSGSBASE, SMEP, SMAP, UMIP, PCID, INVPCID, 1 GiB
//! pages, x2APIC, TSC deadline timer, invariant TSC at 1 GHz, fast REP MOVS and STOS, XSAVE of x87 and SSE state, and KVM's
//! paravirtual clock. Sources: Intel SDM volume 2 (CPUID), Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use serde::{Deserialize, Serialize};

use crate::TSC_HZ;

/// CPUID.1:ECX bit that mirrors CR4.OSXSAVE. Tables leave it clear.
pub const OSXSAVE: u32 = 1 << 27;

/// Which model the processor claims to be: kernels derive from it which attacks by speculation to defend against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuModel {
    /// Family 6, model 36h: an in-order processor, which kernels know not to speculate. True of the soft engine, whose
    /// guests so are spared retpolines, page-table isolation and the like.
    #[default]
    InOrder,
    /// Family 6, model 8Fh: a processor that speculates. For hardware that does.
    OutOfOrder,
}

/// A processor that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its number, which is also its APIC ID.
    pub number: u32,
    /// How many processors the machine has; each is a core of one package.
    pub count: u32,
    /// The model it claims to be.
    pub model: CpuModel,
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
    (0x7, 2),
    (0xb, 3),
    (0xd, 2),
    (0x15, 0),
    (0x16, 0),
    (0x4000_0000, 0),
    (0x4000_0001, 0),
    (0x8000_0000, 0),
    (0x8000_0001, 0),
    (0x8000_0002, 0),
    (0x8000_0003, 0),
    (0x8000_0004, 0),
    (0x8000_0006, 0),
    (0x8000_0007, 0),
    (0x8000_0008, 0),
];

/// Everything CPUID says, in ascending order.
pub fn table(processor: Processor) -> Vec<TableEntry> {
    let mut table = Vec::new();
    for &(leaf, subleaves) in LEAVES {
        let questions = (0..subleaves).map(Some).chain((subleaves == 0).then_some(None));
        table.extend(questions.map(|subleaf| TableEntry {
            leaf,
            subleaf,
            registers: query(leaf, subleaf.unwrap_or(0), processor),
        }));
    }
    table
}

/// What CPUID answers. Leaves that do not exist are zero.
pub fn query(leaf: u32, subleaf: u32, processor: Processor) -> Leaf {
    match leaf {
        0x0 => text(0x16, b"Genu", b"ntel", b"ineI"),
        0x1 => features(processor),
        // No descriptors: ask leaf 4.
        0x2 => Leaf { eax: 0x00ff_ff01, ..Leaf::default() },
        0x4 => cache(subleaf, processor),
        // The APIC timer runs in every power state.
        0x6 => Leaf { eax: 1 << 2, ..Leaf::default() },
        0x7 => structured_features(subleaf),
        0xb => topology(subleaf, processor),
        0xd if subleaf == 0 => Leaf { eax: 3, ebx: XSAVE_BYTES, ecx: XSAVE_BYTES, edx: 0 },
        // TSC ticks at the rate of the crystal.
        0x15 => Leaf { eax: 1, ebx: 1, ecx: TSC_HZ as u32, edx: 0 },
        0x16 => Leaf { eax: TSC_MHZ, ebx: TSC_MHZ, ecx: 100, edx: 0 },
        0x4000_0000 => text(0x4000_0001, b"KVMK", b"VMKV", b"M\0\0\0"),
        // No delays after port I/O, paravirtual clock by its second pair of MSRs, which runs evenly on all processors.
        0x4000_0001 => Leaf { eax: 1 << 1 | 1 << 3 | 1 << 24, ..Leaf::default() },
        0x8000_0000 => Leaf { eax: 0x8000_0008, ..Leaf::default() },
        0x8000_0001 => Leaf {
            // LAHF in 64-bit mode.
            ecx: 1 << 0,
            // SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
            edx: 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29,
            ..Leaf::default()
        },
        0x8000_0002..=0x8000_0004 => brand((leaf & 7) as usize - 2),
        // L2: 1 MiB, 16-way, 64-byte lines.
        0x8000_0006 => Leaf { ecx: 1024 << 16 | 8 << 12 | 64, ..Leaf::default() },
        // Invariant TSC.
        0x8000_0007 => Leaf { edx: 1 << 8, ..Leaf::default() },
        0x8000_0008 => Leaf { eax: 48 << 8 | crate::mmu::PHYSICAL_BITS, ..Leaf::default() },
        _ => Leaf::default(),
    }
}

const TSC_MHZ: u32 = (TSC_HZ / 1_000_000) as u32;
/// Bytes of the XSAVE area: legacy region and header.
const XSAVE_BYTES: u32 = 576;
const BRAND: &[u8; 48] = b"twinvm virtual processor (x86-64-v2)\0\0\0\0\0\0\0\0\0\0\0\0";

fn text(eax: u32, ebx: &[u8; 4], ecx: &[u8; 4], edx: &[u8; 4]) -> Leaf {
    let [ebx, ecx, edx] = [ebx, ecx, edx].map(|bytes| u32::from_le_bytes(*bytes));
    Leaf { eax, ebx, ecx, edx }
}

fn brand(part: usize) -> Leaf {
    let word = |index: usize| {
        let at = part * 16 + index * 4;
        BRAND.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
    };
    Leaf { eax: word(0), ebx: word(1), ecx: word(2), edx: word(3) }
}

fn features(processor: Processor) -> Leaf {
    const SSE3: u32 = 1 << 0;
    const SSSE3: u32 = 1 << 9;
    const CX16: u32 = 1 << 13;
    const PCID: u32 = 1 << 17;
    const SSE4_1: u32 = 1 << 19;
    const SSE4_2: u32 = 1 << 20;
    const X2APIC: u32 = 1 << 21;
    const POPCNT: u32 = 1 << 23;
    const TSC_DEADLINE: u32 = 1 << 24;
    const XSAVE: u32 = 1 << 26;
    const HYPERVISOR: u32 = 1 << 31;
    // FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2.
    const BASE: u32 = 1 << 0
        | 1 << 2
        | 1 << 3
        | 1 << 4
        | 1 << 5
        | 1 << 6
        | 1 << 7
        | 1 << 8
        | 1 << 9
        | 1 << 11
        | 1 << 12
        | 1 << 13
        | 1 << 14
        | 1 << 15
        | 1 << 16
        | 1 << 17
        | 1 << 19
        | 1 << 23
        | 1 << 24
        | 1 << 25
        | 1 << 26;
    const HTT: u32 = 1 << 28;
    let eax = match processor.model {
        CpuModel::InOrder => 0x0003_0661,
        CpuModel::OutOfOrder => 0x0008_06f8,
    };
    let several = processor.count > 1;
    Leaf {
        eax,
        ebx: processor.number << 24 | (processor.count.next_power_of_two() & 0xff) << 16 | 8 << 8,
        ecx: SSE3 | SSSE3 | CX16 | PCID | SSE4_1 | SSE4_2 | X2APIC | POPCNT | TSC_DEADLINE | XSAVE | HYPERVISOR,
        edx: BASE | if several { HTT } else { 0 },
    }
}

fn structured_features(subleaf: u32) -> Leaf {
    match subleaf {
        0 => Leaf {
            eax: 1,
            // FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, SMAP.
            ebx: 1 << 0 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 20,
            // UMIP.
            ecx: 1 << 2,
            // Fast short REP MOVSB.
            edx: 1 << 4,
        },
        // Fast zero-length REP MOVSB, fast short REP STOSB.
        1 => Leaf { eax: 1 << 10 | 1 << 11, ..Leaf::default() },
        _ => Leaf::default(),
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
    use super::*;

    const FIRST_OF_TWO: Processor = Processor { number: 0, count: 2, model: CpuModel::InOrder };

    #[test]
    fn the_level_is_x86_64_v2_and_no_more() {
        let leaf = query(1, 0, FIRST_OF_TWO);
        for bit in [0, 9, 13, 19, 20, 23] {
            assert!(leaf.ecx >> bit & 1 == 1, "bit {bit}");
        }
        // FMA, MOVBE, AES, AVX, F16C, RDRAND.
        for bit in [12, 22, 25, 28, 29, 30] {
            assert!(leaf.ecx >> bit & 1 == 0, "bit {bit}");
        }
        // BMI1, HLE, AVX2, BMI2, RTM, RDSEED, ADX, SHA.
        for bit in [3, 4, 5, 8, 11, 18, 19, 29] {
            assert!(query(7, 0, FIRST_OF_TWO).ebx >> bit & 1 == 0, "bit {bit}");
        }
        assert_eq!(query(0x8000_0001, 0, FIRST_OF_TWO).ecx & 1, 1);
    }

    #[test]
    fn the_table_has_every_leaf_in_order() {
        let table = table(FIRST_OF_TWO);
        assert!(table.is_sorted_by_key(|entry| (entry.leaf, entry.subleaf)));
        for entry in &table {
            assert_eq!(entry.registers, query(entry.leaf, entry.subleaf.unwrap_or(0), FIRST_OF_TWO));
        }
    }
}
