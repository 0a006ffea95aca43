//! The vCPU threads of the KVM engine: pauses at any moment, and ends that come from within them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use machine::devices::serial::ConsoleSink;
use machine::engine::EngineError;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::events::GuestEvent;
use machine::map;
use machine::vm::{Boot, Vm, VmError};
use spec::EngineKind::{Kvm, Soft};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_SEL};

use crate::engines;
use crate::guest::{self, Console, DATA, PROGRAM, config, parts};

const HUNG: Duration = Duration::from_secs(60);

/// Copies 4 bytes from an address that nobody claims, which are all ones, to the register of the first virtio device that selects a queue,
/// RSI times, counting at [`DATA`] how often that did not select one that there is not. The processor needs two accesses for each, both of which leave
/// the guest: what registers read as is memory.
fn mover() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut again, mut wrong, mut right) = (a.create_label(), a.create_label(), a.create_label());
    let select = map::VIRTIO_MMIO + u64::from(VIRTIO_MMIO_QUEUE_SEL);
    a.mov(r9, rsi).unwrap();
    a.mov(rbx, DATA).unwrap();
    a.mov(r8, map::VIRTIO_MMIO + u64::from(VIRTIO_MMIO_QUEUE_NUM_MAX)).unwrap();
    a.mov(r10, select).unwrap();
    a.set_label(&mut again).unwrap();
    a.mov(rsi, map::VIRTIO_MMIO - 4).unwrap();
    a.mov(rdi, select).unwrap();
    a.movsd().unwrap();
    a.cmp(dword_ptr(r8), 0).unwrap();
    a.jne(wrong).unwrap();
    a.mov(dword_ptr(r10), 0).unwrap();
    a.cmp(dword_ptr(r8), 0).unwrap();
    a.jne(right).unwrap();
    a.set_label(&mut wrong).unwrap();
    a.inc(qword_ptr(rbx)).unwrap();
    a.set_label(&mut right).unwrap();
    a.dec(r9).unwrap();
    a.jnz(again).unwrap();
    a.mov(dx, 0xcf9u32).unwrap();
    a.mov(al, 6u32).unwrap();
    a.out(dx, al).unwrap();
    a.hlt().unwrap();
    a.assemble(PROGRAM).unwrap()
}

/// Pauses the VM again and again until it ends; how, and after how many pauses.
fn run_under_pauses(vm: &mut Vm) -> (RunEnd, u64) {
    let (control, over) = (vm.control(), Arc::new(AtomicBool::new(false)));
    let ended = over.clone();
    let pauser = std::thread::spawn(move || {
        let since = Instant::now();
        while !ended.load(Ordering::Acquire) && since.elapsed() < HUNG {
            control.pause();
            std::thread::yield_now();
        }
    });
    let (since, mut pauses) = (Instant::now(), 0);
    let end = loop {
        match vm.run(None).unwrap() {
            RunEnd::Paused if since.elapsed() < HUNG => pauses += 1,
            end => break end,
        }
    };
    over.store(true, Ordering::Release);
    pauser.join().unwrap();
    (end, pauses)
}

#[test]
fn a_pause_between_the_two_accesses_of_an_instruction_loses_neither() {
    for engine in engines() {
        let boot = Boot::Flat { program: &mover(), address: PROGRAM, rsi: 2_000 };
        let mut vm = Vm::boot(config(1), &boot, parts(&Console::default()), engine, InputMode::Live).unwrap();
        let (end, pauses) = run_under_pauses(&mut vm);
        assert_eq!(end, RunEnd::Guest(GuestEvent::Reset), "{engine}");
        assert!(pauses > 10 || engine == Soft, "{engine}: only {pauses} pauses");
        assert_eq!(vm.platform().ram().load::<u64>(DATA), Some(0), "{engine}: accesses were lost");
    }
}

#[test]
fn a_reset_is_not_lost_in_a_pause() {
    for engine in engines() {
        for _ in 0..20 {
            let console = Console::default();
            let mut vm = guest::start(engine, 2_100, 1, &console);
            assert_eq!(run_under_pauses(&mut vm).0, RunEnd::Guest(GuestEvent::Reset), "{engine}");
            assert_eq!(console.text(), guest::expected_output(2_100), "{engine}");
        }
    }
}

#[test]
fn several_vcpus_are_paused_again_and_again() {
    for engine in engines() {
        let mut vm = guest::start_all(engine, 4);
        assert_eq!(run_under_pauses(&mut vm).0, RunEnd::Guest(GuestEvent::Reset), "{engine}");
        assert_eq!(vm.platform().ram().load::<u16>(guest::STARTED), Some(3), "{engine}");
    }
}

#[test]
fn a_vm_that_never_ran_and_one_that_is_paused_end_when_dropped() {
    for engine in engines() {
        drop(guest::start_all(engine, 2));
        let mut vm = guest::start(engine, u64::MAX, 2, &Console::default());
        vm.control().pause();
        assert_eq!(vm.run(None).unwrap(), RunEnd::Paused, "{engine}");
        drop(vm);
    }
}

/// Panics as soon as the guest prints.
struct PanickingConsole;

impl ConsoleSink for PanickingConsole {
    fn write(&mut self, _: &[u8]) {
        panic!("no paper");
    }
}

#[test]
fn a_panic_in_a_vcpu_thread_ends_the_run_with_its_reason() {
    if !engines().contains(&Kvm) {
        return;
    }
    let mut ends = parts(&Console::default());
    ends.console = Box::new(PanickingConsole);
    let program = guest::program();
    let boot = Boot::Flat { program: &program, address: PROGRAM, rsi: 5_000 };
    let mut vm = Vm::boot(config(2), &boot, ends, Kvm, InputMode::Live).unwrap();
    match vm.run(None) {
        Err(VmError::Engine(EngineError::VcpuPanicked { vcpu: 0, message })) => assert_eq!(message, "no paper"),
        other => panic!("it ended with {other:?}"),
    }
}
