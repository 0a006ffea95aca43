use std::collections::BTreeMap;

use iced_x86::{Code, Decoder, DecoderOptions};

use super::{FAMILIES, LEN_MAX, lower};
use crate::op::{Op, Site};
use crate::unit::Mode;

/// Prefixes that make another instruction of an opcode.
const PREFIXES: &[&[u8]] =
    &[&[], &[0x66], &[0xf2], &[0xf3], &[0x48], &[0x66, 0x48], &[0xf2, 0x48], &[0xf3, 0x48], &[0x66, 0xf2], &[0x67]];
/// What leads to each map of opcodes.
const MAPS: &[&[u8]] = &[&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];

/// Every instruction that can be encoded without VEX and its like, with registers and with a memory operand, and the families that claim it.
fn claims() -> BTreeMap<(String, bool), Vec<usize>> {
    let mut claims = BTreeMap::new();
    for code_bits in [16, 32, 64] {
        for (prefix, map) in PREFIXES.iter().flat_map(|prefix| MAPS.iter().map(move |map| (prefix, map))) {
            for (opcode, modrm) in (0..=255_u8).flat_map(|opcode| (0..=255_u8).map(move |modrm| (opcode, modrm))) {
                let bytes = [prefix, *map, &[opcode, modrm], &[0; LEN_MAX]].concat();
                let instruction = Decoder::new(code_bits, &bytes, DecoderOptions::NONE).decode();
                let has_memory = instruction.op_kinds().any(|kind| kind == iced_x86::OpKind::Memory);
                if instruction.code() == Code::INVALID {
                    continue;
                }
                claims.entry((format!("{:?}", instruction.code()), has_memory)).or_insert_with(|| {
                    let site = Site { block_rip: 0, offset: 0, code_bits: code_bits as u8 };
                    let is_claimed = |family: &usize| {
                        let mut op = Op::new(&instruction, 0);
                        site.set_memory_operand(&instruction, &mut op);
                        FAMILIES[*family](&instruction, site, &mut op).is_some()
                    };
                    (0..FAMILIES.len()).filter(is_claimed).collect::<Vec<_>>()
                });
            }
        }
    }
    claims
}

#[test]
fn no_two_families_claim_one_instruction() {
    let claims = claims();
    let twice: Vec<_> = claims.iter().filter(|(_, families)| families.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    for family in 0..FAMILIES.len() {
        let count = claims.values().filter(|families| families.contains(&family)).count();
        assert!(count >= 50, "family {family} claims {count} instructions only");
    }
}

#[test]
fn an_op_says_which_instruction_it_is() {
    let instruction = Decoder::new(64, &[0x48, 0x89, 0xd8], DecoderOptions::NONE).decode();
    let site = Site { block_rip: 0x1000, offset: 7, code_bits: 64 };
    assert_eq!(format!("{:?}", lower(&instruction, site, Mode::default())), "Mov_rm64_r64 at 0x7");
}
