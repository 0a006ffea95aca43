//! Code that is overwritten, crosses pages, or is not there.

use cpu::Exit;
use iced_x86::code_asm::*;

use crate::machine::{KERNEL_CODE, SPARE, Setup, TABLE, page};

/// The encoding of `mov eax, value`.
fn mov_eax(value: u32) -> [u8; 5] {
    let [a, b, c, d] = value.to_le_bytes();
    [0xb8, a, b, c, d]
}

#[test]
fn a_store_over_the_next_instruction_takes_effect_at_once() {
    let setup = Setup::new(1);
    setup.code(KERNEL_CODE, |code| {
        let mut patched = code.create_label();
        // The first pass decodes the block, the second overwrites part of it while it runs.
        code.mov(ecx, 2).unwrap();
        let mut again = code.create_label();
        code.set_label(&mut again).unwrap();
        code.lea(rdi, byte_ptr(patched)).unwrap();
        code.mov(byte_ptr(rdi + 1), 7).unwrap();
        code.set_label(&mut patched).unwrap();
        code.mov(eax, 1).unwrap();
        code.dec(ecx).unwrap();
        code.mov(byte_ptr(rdi + 1), 9).unwrap();
        code.jne(again).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    assert_eq!(machine.vcpu(0).gpr[0], 7);
    // mov, twice (lea, mov, mov, dec, mov, jne), hlt.
    assert_eq!(machine.processors.instructions(), 14);
}

#[test]
fn code_written_by_a_device_is_decoded_anew() {
    let setup = Setup::new(1);
    setup.code(KERNEL_CODE, |code| {
        let mut again = code.create_label();
        code.set_label(&mut again).unwrap();
        code.mov(rax, SPARE).unwrap();
        code.call(rax).unwrap();
        code.out(0x80, al).unwrap();
        code.jmp(again).unwrap();
    });
    let write = |value: u32| setup.ram.write_bytes(SPARE, &[&mov_eax(value)[..], &[0xc3]].concat()).unwrap();
    write(1);
    let mut machine = setup.start();
    machine.bus.attention_port = Some(0x80);
    for value in [1, 2, 2, 3] {
        write(value);
        assert_eq!(machine.run(1000), Exit::Attention);
        assert_eq!(machine.bus.written.pop().unwrap().1, u64::from(value));
    }
}

#[test]
fn code_is_followed_through_its_physical_page() {
    // Two pages are mapped to one after the other; both hold code.
    let setup = Setup::new(1);
    for (page, value) in [(SPARE + 0x5000, 5), (SPARE + 0x6000, 6)] {
        setup.ram.write_bytes(page, &[&mov_eax(value)[..], &[0xc3]].concat()).unwrap();
    }
    setup.map(SPARE, (SPARE + 0x5000) | page::PRESENT | page::WRITABLE);
    let entry = TABLE + (SPARE >> 12) * 8;
    setup.code(KERNEL_CODE, |code| {
        code.mov(rdi, SPARE).unwrap();
        code.call(rdi).unwrap();
        code.mov(ebx, eax).unwrap();
        code.mov(rax, (SPARE + 0x6000) | page::PRESENT).unwrap();
        code.mov(qword_ptr(entry), rax).unwrap();
        code.invlpg(byte_ptr(rdi)).unwrap();
        code.call(rdi).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    assert_eq!([machine.vcpu(0).gpr[3], machine.vcpu(0).gpr[0]], [5, 6]);
}

#[test]
fn an_instruction_across_two_pages_is_fetched_from_both() {
    let setup = Setup::new(1);
    setup.map(SPARE + 0x1000, (SPARE + 0x7000) | page::PRESENT);
    let instruction = mov_eax(0x1234_5678);
    for split in 1..5 {
        let start = SPARE + 0x1000 - split as u64;
        setup.ram.write_bytes(start, &instruction[..split]).unwrap();
        setup.ram.write_bytes(SPARE + 0x7000, &[&instruction[split..], &[0xf4]].concat()).unwrap();
        setup.code(KERNEL_CODE, |code| code.jmp(start).unwrap());
        let mut machine = setup.start();
        machine.run_to_halt();
        assert_eq!(machine.vcpu(0).gpr[0], 0x1234_5678, "split {split}");
        assert_eq!(machine.processors.instructions(), 3);
    }
}

#[test]
fn an_instruction_across_two_pages_is_decoded_anew_when_either_changes() {
    for changed in [SPARE + 0xfff, SPARE + 0x1001] {
        let setup = Setup::new(1);
        // add eax, imm32 and ret, two bytes before the end of the page.
        setup.ram.write_bytes(SPARE + 0xffe, &[0x05, 1, 1, 1, 1, 0xc3]).unwrap();
        setup.code(KERNEL_CODE, |code| {
            code.xor(eax, eax).unwrap();
            code.mov(rdi, SPARE + 0xffe).unwrap();
            code.call(rdi).unwrap();
            code.call(rdi).unwrap();
            code.mov(byte_ptr(changed), 0).unwrap();
            code.call(rdi).unwrap();
            code.hlt().unwrap();
        });
        let mut machine = setup.start();
        machine.run_to_halt();
        let last = if changed == SPARE + 0xfff { 0x0101_0100 } else { 0x0100_0101 };
        assert_eq!(machine.vcpu(0).gpr[0], 2 * 0x0101_0101 + last, "{changed:#x}");
    }
}

#[test]
fn a_fetch_that_faults_on_the_second_page_names_it() {
    let setup = Setup::new(1);
    setup.map(SPARE + 0x1000, 0);
    setup.ram.write_bytes(SPARE + 0xffe, &mov_eax(1)[..2]).unwrap();
    setup.code(KERNEL_CODE, |code| code.jmp(SPARE + 0xffe).unwrap());
    let mut machine = setup.start();
    let report = machine.report();
    assert_eq!((report.vector, report.error_code, report.rip), (14, 16, SPARE + 0xffe));
    assert_eq!(machine.vcpu(0).cr2, SPARE + 0x1000);
}

#[test]
fn bytes_that_are_no_instruction_raise_undefined_opcode() {
    for bytes in [&[0x0f, 0xff][..], &[0x0f, 0x0b], &[0xf0, 0x90], &[0x66; 16], &[0x06]] {
        let setup = Setup::new(1);
        setup.ram.write_bytes(KERNEL_CODE, bytes).unwrap();
        let report = setup.start().report();
        let expected = if bytes.len() == 16 { 13 } else { 6 };
        assert_eq!((report.vector, report.rip), (expected, KERNEL_CODE), "{bytes:x?}");
    }
}

#[test]
fn another_processor_sees_code_that_one_has_overwritten() {
    let mut setup = Setup::new(2);
    setup.config.turn_instructions = 10;
    let mut second = setup.kernel_vcpu(1);
    second.run_state = cpu::state::RunState::Running;
    second.rip = KERNEL_CODE + 0x800;
    second.gpr[4] -= 0x800;
    setup.state.vcpus[1] = second;
    setup.ram.write_bytes(SPARE, &[&mov_eax(1)[..], &[0xc3]].concat()).unwrap();
    // The first waits for a while and patches; the second calls until it sees the patch.
    setup.code(KERNEL_CODE, |code| {
        let mut wait = code.create_label();
        code.mov(ecx, 1000).unwrap();
        code.set_label(&mut wait).unwrap();
        code.dec(ecx).unwrap();
        code.jne(wait).unwrap();
        code.mov(byte_ptr(SPARE + 1), 2).unwrap();
        code.hlt().unwrap();
    });
    setup.code(KERNEL_CODE + 0x800, |code| {
        let mut again = code.create_label();
        code.mov(rdi, SPARE).unwrap();
        code.set_label(&mut again).unwrap();
        code.call(rdi).unwrap();
        code.cmp(eax, 2).unwrap();
        code.jne(again).unwrap();
        code.hlt().unwrap();
    });
    setup.start().run_to_halt();
}
