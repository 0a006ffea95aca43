//! Instruction counts are exact, and how a run is divided shows nowhere.

use cpu::state::RunState;
use cpu::{Exit, ProcessorsState};
use iced_x86::code_asm::*;

use crate::machine::{KERNEL_CODE, Machine, SPARE, Setup, USER_CODE};

/// x2APIC registers.
const X2APIC_SPURIOUS: u32 = 0x80f;
const X2APIC_END_OF_INTERRUPT: u32 = 0x80b;
const X2APIC_LVT_TIMER: u32 = 0x832;
const TSC_DEADLINE: u32 = 0x6e0;
const APIC_BASE: u32 = 0x1b;

fn write_msr(code: &mut CodeAssembler, index: u32, value: u64) {
    code.mov(ecx, index).unwrap();
    code.mov(eax, value as u32).unwrap();
    code.mov(edx, (value >> 32) as u32).unwrap();
    code.wrmsr().unwrap();
}

/// Two processors that compute, patch code, take timer interrupts every few hundred ticks and write to a port; for ever.
fn busy() -> Setup {
    let mut setup = Setup::new(2);
    setup.config.turn_instructions = 777;
    let handler = KERNEL_CODE + 0xc00;
    setup.gate(0x40, handler, 0, 0);
    for number in 0..2u64 {
        let mut vcpu = setup.kernel_vcpu(number as u32);
        vcpu.run_state = RunState::Running;
        vcpu.rip = KERNEL_CODE + number * 0x400;
        vcpu.gpr[4] -= number * 0x800;
        setup.state.vcpus[number as usize] = vcpu;
        setup.code(KERNEL_CODE + number * 0x400, |code| {
            let mut again = code.create_label();
            let mut patched = code.create_label();
            write_msr(code, APIC_BASE, 0xfee0_0c00 | u64::from(number == 0) << 8);
            write_msr(code, X2APIC_SPURIOUS, 0x1ff);
            write_msr(code, X2APIC_LVT_TIMER, 0x40 | 2 << 17);
            write_msr(code, TSC_DEADLINE, 1);
            code.mov(r15, SPARE + number * 0x2000).unwrap();
            code.xor(ebx, ebx).unwrap();
            code.sti().unwrap();
            code.set_label(&mut again).unwrap();
            code.inc(rbx).unwrap();
            code.imul_3(rsi, rbx, 77).unwrap();
            code.lea(rdi, byte_ptr(patched)).unwrap();
            code.mov(byte_ptr(rdi + 2), bl).unwrap();
            code.set_label(&mut patched).unwrap();
            code.add(esi, 5).unwrap();
            code.mov(ecx, esi).unwrap();
            code.and(ecx, 0xff8).unwrap();
            code.add(qword_ptr(r15 + rcx), rsi).unwrap();
            code.mov(rdi, r15).unwrap();
            code.add(rdi, 0xf80).unwrap();
            code.mov(ecx, 0x20).unwrap();
            code.mov(eax, ebx).unwrap();
            code.rep().stosq().unwrap();
            code.out(0x80, al).unwrap();
            code.test(ebx, 31).unwrap();
            code.jne(again).unwrap();
            code.hlt().unwrap();
            code.jmp(again).unwrap();
        });
    }
    // Counts in memory and arms the timer again.
    setup.code(handler, |code| {
        code.push(rax).unwrap();
        code.push(rcx).unwrap();
        code.push(rdx).unwrap();
        code.inc(qword_ptr(r15 + 0x1000)).unwrap();
        code.rdtsc().unwrap();
        code.add(eax, 301).unwrap();
        code.mov(ecx, TSC_DEADLINE).unwrap();
        code.wrmsr().unwrap();
        code.mov(ecx, X2APIC_END_OF_INTERRUPT).unwrap();
        code.xor(eax, eax).unwrap();
        code.xor(edx, edx).unwrap();
        code.wrmsr().unwrap();
        code.pop(rdx).unwrap();
        code.pop(rcx).unwrap();
        code.pop(rax).unwrap();
        code.iretq().unwrap();
    });
    setup
}

/// Runs to an exact count; where all processors wait, time steps on to the next deadline.
fn run_to(machine: &mut Machine, count: u64) {
    while machine.processors.instructions() < count {
        match machine.run(count - machine.processors.instructions()) {
            Exit::BudgetSpent => {}
            Exit::Halted { deadline_tsc: Some(deadline) } => {
                machine.processors.step_clock(deadline.saturating_sub(machine.processors.tsc()));
            }
            other => panic!("{other:?}"),
        }
    }
}

const TOTAL: u64 = 300_000;

/// What can be told of a run: state, memory, port writes.
type Outcome = (ProcessorsState, Vec<u8>, Vec<(u16, u64, u64)>);

/// The outcome after [`TOTAL`] instructions, with something done between stretches of the given lengths.
fn outcome(lengths: &mut dyn Iterator<Item = u64>, between: &dyn Fn(&mut Machine)) -> Outcome {
    let mut machine = busy().start();
    while machine.processors.instructions() < TOTAL {
        let target = machine.processors.instructions() + lengths.next().unwrap();
        run_to(&mut machine, target.min(TOTAL));
        between(&mut machine);
    }
    assert_eq!(machine.processors.instructions(), TOTAL);
    assert!(machine.read64(SPARE + 0x1000) > 50, "the timer interrupts");
    assert!(machine.read64(SPARE + 0x3000) > 50, "the timer interrupts");
    let (state, memory) = machine.digest();
    (state, memory, machine.bus.written)
}

fn pseudo_random(seed: u64, below: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(1 + (state >> 33) % below)
    })
}

#[test]
fn one_long_run_and_many_short_ones_end_in_the_same_state() {
    let whole = outcome(&mut std::iter::repeat(TOTAL), &|_| {});
    for below in [3, 100, 5000] {
        assert!(whole == outcome(&mut pseudo_random(below, below), &|_| {}), "pieces up to {below}");
    }
}

#[test]
fn saving_and_starting_from_the_saved_state_changes_nothing() {
    let whole = outcome(&mut std::iter::repeat(TOTAL), &|_| {});
    assert!(whole == outcome(&mut pseudo_random(7, 3000), &Machine::restore));
}

#[test]
fn harvesting_dirty_pages_changes_nothing() {
    let whole = outcome(&mut std::iter::repeat(TOTAL), &|_| {});
    let harvest = |machine: &mut Machine| {
        machine.ram.harvest().acknowledge();
        machine.processors.after_harvest();
    };
    assert!(whole == outcome(&mut pseudo_random(8, 3000), &harvest));
}

#[test]
fn every_page_written_after_a_harvest_is_dirty_again() {
    let mut machine = busy().start();
    run_to(&mut machine, 50_000);
    machine.ram.harvest().acknowledge();
    machine.processors.after_harvest();
    let (_, before) = machine.digest();
    run_to(&mut machine, 100_000);
    let (_, after) = machine.digest();
    let pages = before.chunks(4096).zip(after.chunks(4096)).enumerate();
    for (number, _) in pages.filter(|(_, (before, after))| before != after) {
        assert!(machine.ram.is_dirty(number as u64), "page {number:#x}");
    }
}

#[test]
fn a_budget_ends_within_a_block() {
    let setup = Setup::new(1);
    setup.code(KERNEL_CODE, |code| {
        for _ in 0..100 {
            code.inc(rax).unwrap();
        }
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    for (budget, sum) in [(1, 1), (0, 1), (6, 7), (64, 71), (5, 76)] {
        assert_eq!(machine.run(budget), Exit::BudgetSpent);
        assert_eq!((machine.vcpu(0).gpr[0], machine.processors.instructions()), (sum, sum));
    }
    assert_eq!(machine.processors.tsc(), 76 / 4);
}

#[test]
fn devices_and_rdtsc_see_the_time_of_their_instruction() {
    let mut setup = Setup::new(1);
    // Device memory at 3.25 GiB by a 1 GiB page.
    setup.write64(0x2000 + 3 * 8, 0xc000_0083);
    setup.state.vcpus[0].gpr[0] = 0xd000_0000;
    setup.code(KERNEL_CODE, |code| {
        for _ in 0..7 {
            code.nop().unwrap();
        }
        code.out(0x80, al).unwrap();
        for _ in 0..8 {
            code.nop().unwrap();
        }
        code.mov(dword_ptr(rax), ebx).unwrap();
        code.rdtsc().unwrap();
        code.hlt().unwrap();
    });
    let mut machine = setup.start();
    machine.run_to_halt();
    assert_eq!(machine.bus.written, [(0x80, 0, 7 / 4)]);
    assert_eq!(machine.bus.stored, [(0xd000_0000, 0, 16 / 4)]);
    assert_eq!(machine.vcpu(0).gpr[0], 17 / 4);
}

#[test]
fn turns_end_at_their_length_and_at_pause() {
    for (pause, expected) in [(false, [100, 0]), (true, [2, 98])] {
        let mut setup = Setup::new(2);
        setup.config.turn_instructions = if pause { 98 } else { 100 };
        for number in 0..2 {
            let mut vcpu = setup.kernel_vcpu(number);
            vcpu.run_state = RunState::Running;
            vcpu.rip = if number == 0 { KERNEL_CODE } else { USER_CODE };
            setup.state.vcpus[number as usize] = vcpu;
        }
        setup.state.turn_left = setup.config.turn_instructions;
        setup.code(KERNEL_CODE, |code| {
            code.nop().unwrap();
            if pause {
                code.pause().unwrap();
            }
            code.jmp(KERNEL_CODE).unwrap();
        });
        setup.code(USER_CODE, |code| code.jmp(USER_CODE).unwrap());
        let mut machine = setup.start();
        assert_eq!(machine.run(100), Exit::BudgetSpent);
        assert_eq!([machine.vcpu(0).instructions, machine.vcpu(1).instructions], expected);
    }
}

#[test]
fn a_guest_whose_handlers_fault_at_once_spends_its_budget() {
    let setup = Setup::new(1);
    // The handler of #UD is an undefined instruction, on a stack of its own that never overflows.
    setup.gate(6, KERNEL_CODE, 0, 1);
    setup.ram.write_bytes(KERNEL_CODE, &[0x0f, 0x0b]).unwrap();
    let mut machine = setup.start();
    assert_eq!(machine.run(10_000), Exit::BudgetSpent);
}

#[test]
fn states_that_cannot_be_are_refused() {
    let setup = Setup::new(1);
    let refused = |change: fn(&mut ProcessorsState)| {
        let mut state = setup.state.clone();
        change(&mut state);
        cpu::Processors::new(setup.ram.clone(), setup.config.clone(), &state).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|state| state.vcpus.clear()));
    assert!(refused(|state| state.turn_vcpu = 1));
    assert!(refused(|state| state.timers.clear()));
    assert!(refused(|state| state.instructions = u64::MAX));
    assert!(refused(|state| state.vcpus[0].cr4 |= 1 << 22));
    assert!(refused(|state| state.vcpus[0].apic.registers.truncate(512)));
}
