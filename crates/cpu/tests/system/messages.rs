//! The local APIC: interrupts between processors and from outside, timers, start-up.

use cpu::state::RunState;
use cpu::{ApicMessage, DeliveryMode, Exit};
use iced_x86::code_asm::*;

use crate::machine::{GDT, KERNEL_CODE, KERNEL_CS, KERNEL_SS, Machine, PML4, SPARE, Setup};

const VECTOR: u8 = 0x51;
/// The register page in xAPIC mode.
const APIC: u64 = 0xfee0_0000;

fn message(destination: u32) -> ApicMessage {
    ApicMessage { destination, logical: false, mode: DeliveryMode::Fixed, vector: VECTOR, level: false }
}

/// Processors with enabled APICs that wait in HLT with interrupts on; a handler counts in R15 and ends the interrupt.
fn waiting(vcpus: u32) -> Setup {
    let mut setup = Setup::new(vcpus);
    // The APIC's page by a 1 GiB page.
    setup.write64(0x2000 + 3 * 8, 0xc000_0083);
    for number in 0..vcpus {
        let mut vcpu = setup.kernel_vcpu(number);
        vcpu.run_state = RunState::Running;
        vcpu.rflags |= 1 << 9;
        vcpu.gpr[4] -= u64::from(number) * 0x400;
        vcpu.apic.registers[0xf1] = 1;
        setup.state.vcpus[number as usize] = vcpu;
    }
    setup.code(KERNEL_CODE, |code| {
        code.hlt().unwrap();
        code.jmp(KERNEL_CODE).unwrap();
    });
    let handler = KERNEL_CODE + 0x800;
    setup.gate(VECTOR.into(), handler, 0, 0);
    setup.code(handler, |code| {
        code.inc(r15).unwrap();
        code.mov(r14d, APIC as u32).unwrap();
        code.mov(dword_ptr(r14 + 0xb0), 0).unwrap();
        code.iretq().unwrap();
    });
    setup
}

fn taken(machine: &Machine) -> Vec<u64> {
    machine.processors.save().vcpus.iter().map(|vcpu| vcpu.gpr[15]).collect()
}

#[test]
fn messages_reach_whom_they_name() {
    let mut setup = waiting(3);
    for (number, vcpu) in setup.state.vcpus.iter_mut().enumerate() {
        // Flat logical identities: one bit each.
        vcpu.apic.registers[0xd3] = 1 << number;
    }
    let mut machine = setup.start();
    machine.run_to_halt();
    let cases = [
        (message(1), vec![0, 1, 0]),
        (message(0xff), vec![1, 2, 1]),
        (ApicMessage { logical: true, ..message(5) }, vec![2, 2, 2]),
        (ApicMessage { logical: true, mode: DeliveryMode::LowestPriority, ..message(6) }, vec![2, 3, 2]),
        (message(7), vec![2, 3, 2]),
    ];
    for (message, expected) in cases {
        machine.processors.interrupt(&message);
        machine.run_to_halt();
        assert_eq!(taken(&machine), expected, "{message:?}");
    }
}

#[test]
fn the_end_of_a_level_triggered_interrupt_is_reported() {
    let mut machine = waiting(1).start();
    machine.processors.interrupt(&message(0));
    machine.run_to_halt();
    assert!(machine.bus.ended.is_empty());
    machine.processors.interrupt(&ApicMessage { level: true, ..message(0) });
    machine.run_to_halt();
    assert_eq!(machine.bus.ended, [VECTOR]);
}

#[test]
fn the_task_priority_holds_interrupts_off() {
    let setup = waiting(1);
    setup.code(KERNEL_CODE, |code| {
        code.mov(eax, 5).unwrap();
        code.mov(cr8, rax).unwrap();
        code.out(0x80, al).unwrap();
        code.inc(rbx).unwrap();
        code.xor(eax, eax).unwrap();
        code.mov(cr8, rax).unwrap();
        code.inc(rbx).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.bus.attention_port = Some(0x80);
    assert_eq!(machine.run(100), Exit::Attention);
    machine.processors.interrupt(&message(0));
    assert_eq!(machine.run(2), Exit::BudgetSpent);
    assert_eq!(taken(&machine), [0]);
    machine.run(2);
    assert_eq!((taken(&machine), machine.vcpu(0).gpr[3]), (vec![1], 1));
}

#[test]
fn more_urgent_interrupts_go_first() {
    let setup = waiting(1);
    let mut machine = setup.start();
    machine.run_to_halt();
    machine.processors.interrupt(&message(0));
    machine.processors.interrupt(&ApicMessage { vector: 0xe0, ..message(0) });
    let report = machine.report();
    assert_eq!((report.vector, taken(&machine)), (0xe0, vec![0]));
}

/// Arms the timer by `arm` and returns the instruction counts at which its interrupts were taken.
fn timer_counts(arm: impl FnOnce(&mut CodeAssembler), pieces: u64) -> Vec<u64> {
    let setup = waiting(1);
    let handler = KERNEL_CODE + 0x800;
    setup.code(handler, |code| {
        code.out(0x81, al).unwrap();
        code.inc(r15).unwrap();
        code.mov(dword_ptr(r14 + 0xb0), 0).unwrap();
        code.iretq().unwrap();
    });
    setup.code(KERNEL_CODE, |code| {
        code.mov(r14d, APIC as u32).unwrap();
        arm(code);
        let mut wait = code.create_label();
        code.set_label(&mut wait).unwrap();
        code.inc(rbx).unwrap();
        code.jmp(wait).unwrap();
    });
    let mut machine = setup.start();
    machine.bus.attention_port = Some(0x81);
    let mut counts = Vec::new();
    while machine.processors.instructions() < 20_000 {
        if machine.run(pieces) == Exit::Attention {
            counts.push(machine.processors.instructions() - 1);
        }
    }
    counts.retain(|&count| count < 20_000);
    counts
}

#[test]
fn the_timer_fires_at_exact_counts() {
    for pieces in [1, 13, 20_000] {
        let one_shot = timer_counts(
            |code| {
                code.mov(dword_ptr(r14 + 0x320), i32::from(VECTOR)).unwrap();
                code.mov(dword_ptr(r14 + 0x3e0), 0xb).unwrap();
                code.mov(dword_ptr(r14 + 0x380), 1000).unwrap();
            },
            pieces,
        );
        // Armed by the fourth instruction, when no tick had passed: 1000 ticks are 4000 instructions.
        assert_eq!(one_shot, [4000], "pieces of {pieces}");
        let periodic = timer_counts(
            |code| {
                code.mov(dword_ptr(r14 + 0x320), i32::from(VECTOR) | 1 << 17).unwrap();
                code.mov(dword_ptr(r14 + 0x3e0), 0).unwrap();
                code.mov(dword_ptr(r14 + 0x380), 800).unwrap();
            },
            pieces,
        );
        assert_eq!(periodic, [6400, 12800, 19200], "pieces of {pieces}");
        let deadline = timer_counts(
            |code| {
                code.mov(dword_ptr(r14 + 0x320), i32::from(VECTOR) | 2 << 17).unwrap();
                code.mov(ecx, 0x6e0).unwrap();
                code.mov(eax, 2000).unwrap();
                code.xor(edx, edx).unwrap();
                code.wrmsr().unwrap();
            },
            pieces,
        );
        assert_eq!(deadline, [8000], "pieces of {pieces}");
    }
}

#[test]
fn a_halted_machine_says_when_its_timer_fires() {
    let mut setup = waiting(1);
    setup.state.clock_steps = 5000;
    setup.state.vcpus[0].tsc = 5000 + 100;
    setup.code(KERNEL_CODE, |code| {
        code.mov(r14d, APIC as u32).unwrap();
        code.mov(dword_ptr(r14 + 0x320), i32::from(VECTOR) | 2 << 17).unwrap();
        code.mov(ecx, 0x6e0).unwrap();
        code.mov(eax, 9000).unwrap();
        code.xor(edx, edx).unwrap();
        code.wrmsr().unwrap();
        let mut again = code.create_label();
        code.set_label(&mut again).unwrap();
        code.hlt().unwrap();
        code.jmp(again).unwrap();
    });
    let mut machine = setup.start();
    // The processor's counter is 100 ahead of the machine's.
    assert_eq!(machine.run(1000), Exit::Halted { deadline_tsc: Some(8900) });
    machine.processors.step_clock(8900 - machine.processors.tsc() - 1);
    assert_eq!(machine.run(1000), Exit::Halted { deadline_tsc: Some(8900) });
    machine.processors.step_clock(1);
    assert_eq!(machine.run(1000), Exit::Halted { deadline_tsc: None });
    assert_eq!(taken(&machine), [1]);
}

#[test]
fn start_up_messages_lead_from_real_to_long_mode() {
    let mut setup = Setup::new(2);
    setup.write64(0x2000 + 3 * 8, 0xc000_0083);
    setup.state.vcpus[0].apic.registers[0xf1] = 1;
    const TRAMPOLINE: u64 = 0x5000;
    // Real mode: load the GDT pointer that lies at the end of the page, enter protected mode.
    setup.code_of(16, TRAMPOLINE, |code| {
        code.mov(ax, cs).unwrap();
        code.mov(ds, ax).unwrap();
        code.lgdt(fword_ptr(bx + 0xf00).ds()).unwrap();
        code.mov(eax, cr0).unwrap();
        code.or(eax, 1).unwrap();
        code.mov(cr0, eax).unwrap();
        // Far jump to 32-bit code through descriptor 7.
        code.db(&[0x66, 0xea, 0x00, 0x54, 0x00, 0x00, 0x38, 0x00]).unwrap();
    });
    setup.write64(TRAMPOLINE + 0xf00, 63 | GDT << 16);
    setup.write64(GDT + 56, 0x00cf_9b00_0000_ffff);
    setup.code_of(32, 0x5400, |code| {
        code.mov(eax, u32::from(KERNEL_SS)).unwrap();
        code.mov(ds, eax).unwrap();
        code.mov(ss, eax).unwrap();
        code.mov(eax, 0xa0).unwrap();
        code.mov(cr4, eax).unwrap();
        code.mov(eax, PML4 as u32).unwrap();
        code.mov(cr3, eax).unwrap();
        code.mov(ecx, 0xc000_0080u32).unwrap();
        code.rdmsr().unwrap();
        code.or(eax, 0x100).unwrap();
        code.wrmsr().unwrap();
        code.mov(eax, 0x8001_0011u32).unwrap();
        code.mov(cr0, eax).unwrap();
        code.db(&[0xea, 0x00, 0x58, 0x00, 0x00, KERNEL_CS as u8, 0x00]).unwrap();
    });
    setup.code(0x5800, |code| {
        code.mov(rax, 0x1234_5678_9abc_def0u64).unwrap();
        code.mov(qword_ptr(SPARE), rax).unwrap();
        code.hlt().unwrap();
    });
    setup.code(KERNEL_CODE, |code| {
        code.mov(r14d, APIC as u32).unwrap();
        code.mov(dword_ptr(r14 + 0x310), 1 << 24).unwrap();
        code.mov(dword_ptr(r14 + 0x300), 0x4500).unwrap();
        code.mov(dword_ptr(r14 + 0x300), 0x4600 | (TRAMPOLINE >> 12) as i32).unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    assert_eq!(machine.read64(SPARE), 0x1234_5678_9abc_def0);
    let second = machine.vcpu(1);
    assert_eq!((second.efer, second.segments[1].selector), (0x500, KERNEL_CS));
    assert_eq!(second.run_state, RunState::Halted);
}
