//! Paging: faults with their error codes, accessed and dirty bits, forgetting translations.

use iced_x86::code_asm::*;

use crate::machine::{KERNEL_CODE, SPARE, Setup, TABLE, USER_CODE, page};

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const RESERVED: u64 = 8;
const FETCH: u64 = 16;
const PAGE_FAULT: u64 = 14;
/// CR4.SMEP and CR4.SMAP.
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;

/// What an access does that is expected to fault.
#[derive(Clone, Copy, Debug)]
enum Access {
    Load,
    Store,
    Fetch,
}

/// The error code of an access to [`SPARE`], mapped with `entry`.
fn error_code(entry: u64, user: bool, access: Access, features: u64) -> u64 {
    let mut setup = Setup::new(1);
    if user {
        setup.start_in_user_mode();
    }
    setup.state.vcpus[0].cr4 |= features;
    setup.map(SPARE, entry);
    let at = if user { USER_CODE } else { KERNEL_CODE };
    setup.code(at, |code| {
        code.mov(rax, SPARE + 8).unwrap();
        match access {
            Access::Load => code.mov(rbx, qword_ptr(rax)).unwrap(),
            Access::Store => code.mov(qword_ptr(rax), rbx).unwrap(),
            Access::Fetch => code.jmp(rax).unwrap(),
        }
    });
    let mut machine = setup.start();
    let report = machine.report();
    assert_eq!(report.vector, PAGE_FAULT, "{access:?}");
    assert_eq!(machine.vcpu(0).cr2, SPARE + 8);
    let faulting = if matches!(access, Access::Fetch) { SPARE + 8 } else { at + 10 };
    assert_eq!(report.rip, faulting);
    report.error_code
}

#[test]
fn error_codes_say_what_was_wrong() {
    let all = SPARE | page::PRESENT | page::WRITABLE | page::USER;
    let cases = [
        (0, false, Access::Load, 0, 0),
        (0, false, Access::Store, 0, WRITE),
        (0, false, Access::Fetch, 0, FETCH),
        (0, true, Access::Load, 0, USER),
        (0, true, Access::Store, 0, USER | WRITE),
        (all & !page::USER, true, Access::Load, 0, PRESENT | USER),
        (all & !page::USER, true, Access::Store, 0, PRESENT | USER | WRITE),
        (all & !page::USER, true, Access::Fetch, 0, PRESENT | USER | FETCH),
        (all & !page::WRITABLE, true, Access::Store, 0, PRESENT | USER | WRITE),
        (all & !page::WRITABLE, false, Access::Store, 0, PRESENT | WRITE),
        (all | page::NO_EXECUTE, true, Access::Fetch, 0, PRESENT | USER | FETCH),
        (all | page::NO_EXECUTE, false, Access::Fetch, 0, PRESENT | FETCH),
        (all | 1 << 51, false, Access::Load, 0, PRESENT | RESERVED),
        (all | 1 << 40, true, Access::Store, 0, PRESENT | RESERVED | USER | WRITE),
        (all, false, Access::Fetch, SMEP, PRESENT | FETCH),
        (all, false, Access::Load, SMAP, PRESENT),
        (all, false, Access::Store, SMAP, PRESENT | WRITE),
    ];
    for (entry, user, access, features, expected) in cases {
        assert_eq!(
            error_code(entry, user, access, features),
            expected,
            "{entry:#x} user {user} {access:?} {features:#x}"
        );
    }
}

#[test]
fn access_to_user_pages_is_open_between_stac_and_clac() {
    let mut setup = Setup::new(1);
    setup.state.vcpus[0].cr4 |= SMAP;
    setup.code(KERNEL_CODE, |code| {
        code.mov(rax, SPARE).unwrap();
        code.stac().unwrap();
        code.mov(qword_ptr(rax), 5).unwrap();
        code.add(qword_ptr(rax), 1).unwrap();
        code.clac().unwrap();
        code.add(qword_ptr(rax), 1).unwrap();
    });
    let mut machine = setup.start();
    assert_eq!(machine.report().vector, PAGE_FAULT);
    assert_eq!(machine.read64(SPARE), 6);
}

#[test]
fn stores_to_read_only_pages_pass_in_kernel_mode_without_write_protection() {
    let mut setup = Setup::new(1);
    setup.state.vcpus[0].cr0 &= !(1 << 16);
    setup.map(SPARE, SPARE | page::PRESENT);
    setup.code(KERNEL_CODE, |code| {
        code.mov(qword_ptr(SPARE), 5).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    assert_eq!(machine.read64(SPARE), 5);
}

#[test]
fn loads_set_the_accessed_bit_and_stores_the_dirty_bit() {
    let setup = Setup::new(1);
    setup.code(KERNEL_CODE, |code| {
        code.mov(rax, qword_ptr(SPARE)).unwrap();
        code.mov(rax, qword_ptr(SPARE + 0x1000)).unwrap();
        code.mov(qword_ptr(SPARE + 0x1000), rax).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    let bits = |number: u64| machine.read64(TABLE + ((SPARE >> 12) + number) * 8) & (page::ACCESSED | page::DIRTY);
    assert_eq!([bits(0), bits(1), bits(2)], [page::ACCESSED, page::ACCESSED | page::DIRTY, 0]);
}

#[test]
fn a_store_that_faults_on_its_second_page_stores_nothing() {
    let setup = Setup::new(1);
    setup.map(SPARE + 0x1000, 0);
    setup.code(KERNEL_CODE, |code| {
        code.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        code.mov(qword_ptr(SPARE + 0xffc), rax).unwrap();
    });
    let mut machine = setup.start();
    let report = machine.report();
    assert_eq!((report.vector, report.error_code), (PAGE_FAULT, WRITE));
    assert_eq!(machine.vcpu(0).cr2, SPARE + 0x1000);
    assert_eq!(machine.read64(SPARE + 0xff8), 0);
}

#[test]
fn accesses_cross_from_one_page_to_a_distant_other() {
    let setup = Setup::new(1);
    setup.map(SPARE + 0x1000, (SPARE + 0x8000) | page::PRESENT | page::WRITABLE);
    setup.code(KERNEL_CODE, |code| {
        code.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        code.mov(qword_ptr(SPARE + 0xffc), rax).unwrap();
        code.mov(rbx, qword_ptr(SPARE + 0xffc)).unwrap();
        code.add(qword_ptr(SPARE + 0xffc), rax).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    assert_eq!(machine.vcpu(0).gpr[3], 0x1122_3344_5566_7788);
    let sum: u64 = 0x1122_3344_5566_7788 * 2;
    assert_eq!(machine.read64(SPARE + 0xffc) as u32, sum as u32);
    assert_eq!(machine.read64(SPARE + 0x8000) as u32, (sum >> 32) as u32);
}

#[test]
fn invlpg_and_cr3_writes_make_new_tables_count() {
    for whole in [false, true] {
        let setup = Setup::new(1);
        let entry = TABLE + (SPARE >> 12) * 8;
        setup.write64(SPARE + 0x5000, 77);
        setup.code(KERNEL_CODE, |code| {
            code.mov(rbx, qword_ptr(SPARE)).unwrap();
            code.mov(rax, (SPARE + 0x5000) | page::PRESENT).unwrap();
            code.mov(qword_ptr(entry), rax).unwrap();
            if whole {
                code.mov(rax, cr3).unwrap();
                code.mov(cr3, rax).unwrap();
            } else {
                code.invlpg(byte_ptr(SPARE + 0x123)).unwrap();
            }
            code.mov(rbx, qword_ptr(SPARE)).unwrap();
            code.hlt().unwrap();
        });
        let mut machine = setup.start();
        machine.run_to_halt();
        assert_eq!(machine.vcpu(0).gpr[3], 77, "whole {whole}");
    }
}

#[test]
fn process_contexts_keep_their_translations_apart() {
    let mut setup = Setup::new(1);
    // A second address space, in context 2, that maps SPARE elsewhere.
    let tables = 0x200000;
    for (from, to) in [(0x1000, 0), (0x2000, 0x1000), (0x3000, 0x2000), (0x4000, 0x3000)] {
        let mut bytes = vec![0; 4096];
        setup.ram.read_bytes(from, &mut bytes).unwrap();
        setup.ram.write_bytes(tables + to, &bytes).unwrap();
    }
    setup.write64(tables, (tables + 0x1000) | 7);
    setup.write64(tables + 0x1000, (tables + 0x2000) | 7);
    setup.write64(tables + 0x2000, (tables + 0x3000) | 7);
    setup.write64(tables + 0x3000 + (SPARE >> 12) * 8, (SPARE + 0x5000) | page::PRESENT | page::WRITABLE);
    setup.write64(SPARE, 1);
    setup.write64(SPARE + 0x5000, 2);
    setup.state.vcpus[0].cr4 |= 1 << 17;
    const KEEP: u64 = 1 << 63;
    setup.code(KERNEL_CODE, |code| {
        code.mov(rbx, qword_ptr(SPARE)).unwrap();
        code.mov(rax, tables | 2).unwrap();
        code.mov(cr3, rax).unwrap();
        code.mov(rcx, qword_ptr(SPARE)).unwrap();
        code.mov(rax, 0x1000 | KEEP).unwrap();
        code.mov(cr3, rax).unwrap();
        code.mov(rdx, qword_ptr(SPARE)).unwrap();
        code.mov(rax, tables | 2 | KEEP).unwrap();
        code.mov(cr3, rax).unwrap();
        code.mov(rsi, qword_ptr(SPARE)).unwrap();
        code.mov(rdi, cr3).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    let gpr = machine.vcpu(0).gpr;
    assert_eq!([gpr[3], gpr[1], gpr[2], gpr[6]], [1, 2, 1, 2]);
    assert_eq!(gpr[7], tables | 2);
}

#[test]
fn addresses_that_are_not_canonical_raise_general_protection_or_stack_faults() {
    for (stack, vector) in [(false, 13), (true, 12)] {
        let setup = Setup::new(1);
        setup.code(KERNEL_CODE, |code| {
            code.mov(rbp, 0x8000_0000_0000u64).unwrap();
            code.mov(rax, rbp).unwrap();
            if stack {
                code.mov(rbx, qword_ptr(rbp + 8)).unwrap();
            } else {
                code.mov(rbx, qword_ptr(rax + 8)).unwrap();
            }
        });
        let report = setup.start().report();
        assert_eq!((report.vector, report.error_code), (vector, 0));
    }
}

#[test]
fn thirty_two_bit_paging_translates_by_two_levels_and_large_pages() {
    let mut setup = Setup::new(1);
    // One 4 MiB page at 0 and a table that maps 4 MiB to SPARE.
    let (directory, table) = (0x200000, 0x201000);
    let write32 = |address, value: u32| setup.ram.write_bytes(address, &value.to_le_bytes()).unwrap();
    write32(directory, 0x83);
    write32(directory + 4, table as u32 | 3);
    write32(table, SPARE as u32 | 3);
    setup.write64(SPARE + 8, 42);
    let vcpu = &mut setup.state.vcpus[0];
    vcpu.efer = 0;
    vcpu.cr4 = 0x10;
    vcpu.cr3 = directory;
    vcpu.segments[1].attributes = 0xc09b;
    setup.code_of(32, KERNEL_CODE, |code| {
        code.mov(ebx, dword_ptr(0x400008)).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    assert_eq!(machine.vcpu(0).gpr[3], 42);
}
