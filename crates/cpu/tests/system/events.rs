//! Exceptions, interrupts, traps.

use cpu::Exit;
use iced_x86::code_asm::*;

use crate::machine::{
    INTERRUPT_STACK, KERNEL_CODE, KERNEL_CS, KERNEL_STACK, SPARE, SPECIAL_STACK, Setup, USER_CODE, USER_CS, USER_SS,
    USER_STACK,
};

const IF: u64 = 1 << 9;
const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;

#[test]
fn an_exception_in_user_mode_switches_to_the_stack_of_the_task() {
    let mut setup = Setup::new(1);
    setup.start_in_user_mode();
    setup.state.vcpus[0].rflags |= IF;
    setup.code(USER_CODE, |code| {
        code.xor(ecx, ecx).unwrap();
        code.div(ecx).unwrap();
    });
    let mut machine = setup.start();
    let report = machine.report();
    assert_eq!((report.vector, report.rip, report.cs), (0, USER_CODE + 2, u64::from(USER_CS)));
    assert_eq!(report.rsp, USER_STACK);
    assert_eq!(report.rflags & (IF | RF), IF | RF);
    let vcpu = machine.vcpu(0);
    assert_eq!(vcpu.rflags & IF, 0);
    assert_eq!((vcpu.segments[1].selector, vcpu.segments[2].selector), (KERNEL_CS, 0));
    assert_eq!(machine.read64(INTERRUPT_STACK - 8), u64::from(USER_SS));
}

#[test]
fn a_gate_can_name_a_stack_of_its_own() {
    let setup = Setup::new(1);
    setup.gate(6, 0x30000 + 6 * 16, 0, 1);
    setup.ram.write_bytes(KERNEL_CODE, &[0x0f, 0x0b]).unwrap();
    let mut machine = setup.start();
    let report = machine.report();
    assert_eq!((report.vector, report.rsp), (6, KERNEL_STACK));
    assert_eq!(machine.read64(SPECIAL_STACK - 16), KERNEL_STACK);
}

#[test]
fn a_fault_in_the_delivery_of_a_page_fault_is_a_double_fault() {
    let setup = Setup::new(1);
    setup.gate(8, 0x30000 + 8 * 16, 0, 1);
    setup.map(SPARE, 0);
    setup.code(KERNEL_CODE, |code| {
        code.mov(rsp, SPARE + 0x800).unwrap();
        code.mov(rax, qword_ptr(SPARE)).unwrap();
    });
    let mut machine = setup.start();
    let report = machine.report();
    assert_eq!((report.vector, report.error_code), (8, 0));
    assert_eq!(machine.vcpu(0).cr2, SPARE + 0x800 - 48);
}

#[test]
fn a_fault_in_the_delivery_of_a_double_fault_shuts_down() {
    let mut setup = Setup::new(1);
    setup.state.vcpus[0].idtr.limit = 0;
    setup.ram.write_bytes(KERNEL_CODE, &[0x0f, 0x0b]).unwrap();
    assert_eq!(setup.start().run(1000), Exit::Shutdown { vcpu: 0 });
}

#[test]
fn a_missing_gate_names_itself_in_the_error_code() {
    for (present, vector) in [(false, 11), (true, 13)] {
        let setup = Setup::new(1);
        // Not present; or a type that no gate has.
        setup.write64(0x7000 + 6 * 16, if present { 0x8000 << 32 } else { 0x0e00 << 32 });
        setup.ram.write_bytes(KERNEL_CODE, &[0x0f, 0x0b]).unwrap();
        let report = setup.start().report();
        assert_eq!((report.vector, report.error_code), (vector, 6 << 3 | 2 | 1));
    }
}

#[test]
fn software_interrupts_obey_the_privilege_of_their_gate() {
    for (dpl, vector, error_code, rip) in [(0, 13, 0x80 << 3 | 2, USER_CODE), (3, 0x80, 0, USER_CODE + 2)] {
        let mut setup = Setup::new(1);
        setup.start_in_user_mode();
        setup.gate(0x80, 0x30000 + 0x80 * 16, dpl, 0);
        setup.code(USER_CODE, |code| code.int(0x80).unwrap());
        let report = setup.start().report();
        assert_eq!((report.vector, report.error_code, report.rip), (vector, error_code, rip));
    }
}

#[test]
fn sti_holds_interrupts_off_for_one_instruction() {
    let setup = Setup::new(1);
    setup.code(KERNEL_CODE, |code| {
        code.mov(ecx, 0x80f).unwrap();
        code.mov(eax, 0x1ff).unwrap();
        code.xor(edx, edx).unwrap();
        code.wrmsr().unwrap();
        // An interrupt to this processor itself.
        code.mov(ecx, 0x83f).unwrap();
        code.mov(eax, 0x50).unwrap();
        code.wrmsr().unwrap();
        code.nop().unwrap();
        code.sti().unwrap();
        code.inc(rbx).unwrap();
        code.inc(rbx).unwrap();
    });
    let mut setup = setup;
    setup.state.vcpus[0].apic.base_msr |= 1 << 10;
    for pieces in [1, 1000] {
        let mut machine = setup.start();
        while machine.run(pieces) == Exit::BudgetSpent {}
        let vcpu = machine.vcpu(0);
        assert_eq!((vcpu.gpr[8], vcpu.gpr[3]), (0x50, 1));
    }
}

#[test]
fn single_steps_trap_after_each_instruction() {
    let mut setup = Setup::new(1);
    let handler = KERNEL_CODE + 0x800;
    setup.gate(1, handler, 0, 0);
    setup.code(handler, |code| {
        code.inc(r15).unwrap();
        code.mov(r14, qword_ptr(rsp)).unwrap();
        code.iretq().unwrap();
    });
    setup.state.vcpus[0].rflags |= TF;
    let mut end = 0;
    setup.code(KERNEL_CODE, |code| {
        code.nop().unwrap();
        code.xor(eax, eax).unwrap();
        code.mov(rbx, rax).unwrap();
        code.pushfq().unwrap();
        code.and(qword_ptr(rsp), !(TF as i32)).unwrap();
        code.popfq().unwrap();
        end = 1 + 2 + 3 + 1 + 8 + 1;
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    let vcpu = machine.vcpu(0);
    // The instruction that clears TF still traps.
    assert_eq!((vcpu.gpr[15], vcpu.gpr[14]), (6, KERNEL_CODE + end));
    assert_eq!(vcpu.debug[4] >> 14 & 1, 1);
}

#[test]
fn nmis_wait_for_the_handler_of_the_last() {
    let setup = Setup::new(1);
    let handler = KERNEL_CODE + 0x800;
    setup.gate(2, handler, 0, 0);
    setup.code(handler, |code| {
        code.inc(r15).unwrap();
        code.cmp(r15, 2).unwrap();
        let mut done = code.create_label();
        code.je(done).unwrap();
        code.out(0x80, al).unwrap();
        code.mov(r14, r15).unwrap();
        code.set_label(&mut done).unwrap();
        code.iretq().unwrap();
    });
    setup.code(KERNEL_CODE, |code| {
        code.hlt().unwrap();
        code.hlt().unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.bus.attention_port = Some(0x80);
    machine.run_to_halt();
    machine.processors.nmi(0);
    assert_eq!(machine.run(100), Exit::Attention);
    // Comes while the handler of the first runs.
    machine.processors.nmi(0);
    machine.run_to_halt();
    assert_eq!((machine.vcpu(0).gpr[15], machine.vcpu(0).gpr[14]), (2, 1));
}

#[test]
fn coprocessor_instructions_wait_for_lazy_switches() {
    const TS: u64 = 1 << 3;
    for (set, vector) in [(0, 0x20), (TS, 7)] {
        let mut setup = Setup::new(1);
        setup.state.vcpus[0].cr0 |= set;
        setup.code(KERNEL_CODE, |code| {
            code.fninit().unwrap();
            code.int(0x20).unwrap();
        });
        assert_eq!(setup.start().report().vector, vector);
    }
    // Without CR4.OSFXSR there is no SSE.
    let mut setup = Setup::new(1);
    setup.state.vcpus[0].cr4 &= !(1 << 9);
    setup.code(KERNEL_CODE, |code| code.xorps(xmm0, xmm0).unwrap());
    assert_eq!(setup.start().report().vector, 6);
}
