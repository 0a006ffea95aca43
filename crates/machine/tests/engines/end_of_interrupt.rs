//! Ends of interrupts that the guest is spared to tell, over pauses and moves between engines.

use iced_x86::code_asm::*;
use spec::EngineKind::Kvm;

use crate::clock::{HANDLER, IDT, VECTOR, boot, load, run_until};
use crate::engines;
use crate::guest::{Console, DATA, PROGRAM, restore};

/// What the guest leaves in memory: interrupts taken, and those of which it did not have to tell the end.
const INTERRUPTS: u64 = DATA + 8;
const SPARED: u64 = DATA + 16;
/// Bit 0 of this word is set by a hypervisor that need not be told.
const OFFER: u64 = DATA + 32;
const MSR_PV_EOI: u32 = 0x4b56_4d04;
/// A periodic timer, of 2 ms.
const TIMER_ENTRY: i32 = VECTOR as i32 | 1 << 17;
const TIMER_COUNT: i32 = 2_000_000;

fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.mov(rdi, DATA).unwrap();
    // The table's limit and base, as LIDT reads them.
    a.mov(word_ptr(rdi + 64), 0x0fffi32).unwrap();
    a.mov(rax, IDT).unwrap();
    a.mov(qword_ptr(rdi + 66), rax).unwrap();
    a.lidt(ptr(rdi + 64)).unwrap();
    a.mov(ecx, MSR_PV_EOI).unwrap();
    a.mov(eax, OFFER as u32 | 1).unwrap();
    a.xor(edx, edx).unwrap();
    a.wrmsr().unwrap();
    // The APIC: software-enabled, timer undivided.
    a.mov(r8d, 0xfee0_0000u32).unwrap();
    a.mov(dword_ptr(r8 + 0xf0), 0x1ff).unwrap();
    a.mov(dword_ptr(r8 + 0x3e0), 0xb).unwrap();
    a.mov(dword_ptr(r8 + 0x320), TIMER_ENTRY).unwrap();
    a.mov(dword_ptr(r8 + 0x380), TIMER_COUNT).unwrap();
    a.sti().unwrap();
    a.set_label(&mut again).unwrap();
    a.inc(r9).unwrap();
    a.jmp(again).unwrap();
    a.assemble(PROGRAM).unwrap()
}

fn handler() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut spared = a.create_label();
    a.inc(qword_ptr(rdi + 8)).unwrap();
    a.btr(dword_ptr(rdi + 32), 0).unwrap();
    a.jc(spared).unwrap();
    a.mov(dword_ptr(r8 + 0xb0), 0).unwrap();
    a.iretq().unwrap();
    a.set_label(&mut spared).unwrap();
    a.inc(qword_ptr(rdi + 16)).unwrap();
    a.iretq().unwrap();
    a.assemble(HANDLER).unwrap()
}

/// An interrupt whose end got lost would be the last one.
#[test]
fn interrupts_go_on_where_their_end_was_not_told() {
    for first in engines() {
        for second in engines() {
            let mut vm = boot(first, &program(), &handler());
            let ram = vm.platform().ram().clone();
            for engine in [second, first, second, first] {
                let next = load(&ram, INTERRUPTS) + 5;
                run_until(&mut vm, move |ram| load(ram, INTERRUPTS) >= next);
                let state = vm.save().unwrap();
                assert_eq!(load(&ram, OFFER) & 1, 0, "{first}: the offer stands in a pause");
                drop(vm);
                vm = restore(&ram, state, engine, 1, &Console::default());
            }
            let spared = load(&ram, SPARED);
            // Hardware that has an APIC for guests does without it.
            assert!(spared == 0 || first == Kvm || second == Kvm, "{first}, {second}: {spared}");
            eprintln!("{first}, {second}: {spared} of {} ends were not told", load(&ram, INTERRUPTS));
        }
    }
}
