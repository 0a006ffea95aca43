//! The guest's clocks over pauses and over the loss of a host, with a guest that reads them all the time.

use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use machine::boot::BootState;
use machine::devices::power::EVENT_GENERATION;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::generation::GenerationId;
use machine::vm::{Boot, Vm};
use memory::GuestRam;
use spec::EngineKind::{self, Soft};

use crate::engines;
use crate::guest::{Console, DATA, PROGRAM, config, parts, restore};

const HANDLER: u64 = 0x11_0000;
const IDT: u64 = 0x11_1000;
/// The page that the guest gives to the paravirtual clock.
const PARAVIRTUAL_CLOCK: u64 = 0x11_2000;
const VECTOR: u64 = 0x40;
/// What the guest leaves at [`DATA`]: the time-stamp counter, interrupts taken, rounds done. Then what it finds there: the APIC
/// timer's entry, its initial count, and ticks to its deadline.
const TSC: u64 = DATA;
const INTERRUPTS: u64 = DATA + 8;
const ROUNDS: u64 = DATA + 16;
const TIMER_ENTRY: u64 = DATA + 24;
const TIMER_COUNT: u64 = DATA + 32;
const TIMER_DEADLINE: u64 = DATA + 40;

const MSR_PARAVIRTUAL_CLOCK: u32 = 0x4b56_4d01;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const HUNG: Duration = Duration::from_secs(60);
const SECOND_NS: u64 = 1_000_000_000;

/// A mode of the APIC timer.
#[derive(Clone, Copy, Debug)]
enum Timer {
    OneShot = 0,
    Periodic = 1,
    Deadline = 2,
}

fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.mov(rdi, DATA).unwrap();
    // The table's limit and base, as LIDT reads them.
    a.mov(word_ptr(rdi + 64), 0x0fffi32).unwrap();
    a.mov(rax, IDT).unwrap();
    a.mov(qword_ptr(rdi + 66), rax).unwrap();
    a.lidt(ptr(rdi + 64)).unwrap();
    a.mov(ecx, MSR_PARAVIRTUAL_CLOCK).unwrap();
    a.mov(eax, PARAVIRTUAL_CLOCK as u32 | 1).unwrap();
    a.xor(edx, edx).unwrap();
    a.wrmsr().unwrap();
    // The APIC: software-enabled, timer undivided.
    a.mov(r8d, 0xfee0_0000u32).unwrap();
    a.mov(dword_ptr(r8 + 0xf0), 0x1ff).unwrap();
    a.mov(dword_ptr(r8 + 0x3e0), 0xb).unwrap();
    a.mov(eax, dword_ptr(rdi + 24)).unwrap();
    a.mov(dword_ptr(r8 + 0x320), eax).unwrap();
    a.mov(eax, dword_ptr(rdi + 32)).unwrap();
    a.mov(dword_ptr(r8 + 0x380), eax).unwrap();
    a.rdtsc().unwrap();
    a.shl(rdx, 32).unwrap();
    a.or(rax, rdx).unwrap();
    a.add(rax, qword_ptr(rdi + 40)).unwrap();
    a.mov(rdx, rax).unwrap();
    a.shr(rdx, 32).unwrap();
    a.mov(ecx, MSR_TSC_DEADLINE).unwrap();
    a.wrmsr().unwrap();
    a.sti().unwrap();
    a.set_label(&mut again).unwrap();
    a.rdtsc().unwrap();
    a.shl(rdx, 32).unwrap();
    a.or(rax, rdx).unwrap();
    a.mov(qword_ptr(rdi), rax).unwrap();
    a.inc(qword_ptr(rdi + 16)).unwrap();
    a.jmp(again).unwrap();
    a.assemble(PROGRAM).unwrap()
}

fn handler() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    a.inc(qword_ptr(rdi + 8)).unwrap();
    a.mov(dword_ptr(r8 + 0xb0), 0).unwrap();
    a.iretq().unwrap();
    a.assemble(HANDLER).unwrap()
}

fn start(engine: EngineKind, timer: Timer, ticks: u64) -> Vm {
    let boot = Boot::Flat { program: &program(), address: PROGRAM, rsi: 0 };
    let vm = Vm::boot(config(1), &boot, parts(&Console::default()), engine, InputMode::Live).unwrap();
    let ram = vm.platform().ram();
    ram.write_bytes(HANDLER, &handler()).unwrap();
    // An interrupt gate to the boot code segment (Intel SDM volume 3, figure 6-8).
    let code = u64::from(BootState::CODE_SELECTOR);
    let gate = HANDLER & 0xffff | code << 16 | 0x8e00 << 32 | (HANDLER & 0xffff_0000) << 32;
    ram.write_bytes(IDT + VECTOR * 16, &gate.to_le_bytes()).unwrap();
    let (count, deadline) = if matches!(timer, Timer::Deadline) { (0, ticks) } else { (ticks, 0) };
    for (address, value) in
        [(TIMER_ENTRY, VECTOR | (timer as u64) << 17), (TIMER_COUNT, count), (TIMER_DEADLINE, deadline)]
    {
        ram.write_bytes(address, &value.to_le_bytes()).unwrap();
    }
    vm
}

/// Runs until `done` says so of the memory.
fn run_until(vm: &mut Vm, done: impl Fn(&GuestRam) -> bool + Send + 'static) {
    let (control, ram) = (vm.control(), vm.platform().ram().clone());
    let watcher = std::thread::spawn(move || {
        let start = Instant::now();
        while !done(&ram) {
            assert!(start.elapsed() < HUNG, "the guest does not get there");
            std::thread::sleep(Duration::from_micros(200));
        }
        control.pause();
    });
    assert_eq!(vm.run(None).unwrap(), RunEnd::Paused);
    watcher.join().unwrap();
}

fn run_rounds(vm: &mut Vm, rounds: u64) {
    let end = load(vm.platform().ram(), ROUNDS) + rounds;
    run_until(vm, move |ram| load(ram, ROUNDS) >= end);
}

fn load(ram: &GuestRam, address: u64) -> u64 {
    ram.load(address).unwrap()
}

/// The paravirtual clock as the guest computes it from its page (Documentation/virt/kvm/x86/msr.rst) and a time-stamp counter.
fn paravirtual_ns(ram: &GuestRam, tsc: u64) -> u64 {
    let (stamp, base_ns) = (load(ram, PARAVIRTUAL_CLOCK + 8), load(ram, PARAVIRTUAL_CLOCK + 16));
    let multiplier: u32 = ram.load(PARAVIRTUAL_CLOCK + 24).unwrap();
    let shift: u8 = ram.load(PARAVIRTUAL_CLOCK + 28).unwrap();
    let ticks = u128::from(tsc.saturating_sub(stamp));
    let shifted = if (shift as i8) < 0 { ticks >> (shift as i8).unsigned_abs() } else { ticks << shift };
    base_ns + ((shifted * u128::from(multiplier)) >> 32) as u64
}

#[test]
fn every_clock_is_ahead_by_the_step_after_a_takeover_and_none_goes_back() {
    for engine in engines() {
        for step_ns in [0, 5_000_000, 7 * SECOND_NS] {
            let mut vm = start(engine, Timer::OneShot, 0);
            run_rounds(&mut vm, 1000);
            let ram = vm.platform().ram().clone();
            let before_tsc = load(&ram, TSC);
            let before_ns = paravirtual_ns(&ram, before_tsc);
            let mut state = vm.save().unwrap();
            drop(vm);
            let (saved_ns, tsc_hz) = (state.platform.clock_ns, state.engine.processors.tsc_hz);
            assert!(before_ns <= saved_ns, "{engine}: the guest saw {before_ns} ns, the state says {saved_ns}");
            let step_ticks = (u128::from(step_ns) * u128::from(tsc_hz) / u128::from(SECOND_NS)) as u64;
            let advanced_tsc = state.engine.processors.vcpus[0].tsc + step_ticks;
            state.advance_clock(step_ns);
            assert_eq!(state.platform.clock_ns, saved_ns + step_ns);
            assert_eq!(state.engine.processors.vcpus[0].tsc, advanced_tsc, "{engine}");
            let start = Instant::now();
            let mut vm = restore(&ram, state, engine, 1, &Console::default());
            run_rounds(&mut vm, 1000);
            let passed_ns = start.elapsed().as_nanos() as u64;
            let tsc = load(&ram, TSC);
            let ns = paravirtual_ns(&ram, tsc);
            let mut again = vm.save().unwrap();
            let (clock_ns, saved) = (again.platform.clock_ns, again.engine.processors.vcpus.remove(0));
            // Some KVMs that emulate processors leave the host's time-stamp counter to the guest and take no other value.
            if saved.tsc >= advanced_tsc {
                assert!(tsc >= before_tsc + step_ticks, "{engine}, {step_ns}: {before_tsc} to {tsc}");
            } else {
                assert_ne!(engine, Soft);
                assert!(tsc >= before_tsc, "{engine}, {step_ns}: {before_tsc} to {tsc}");
            }
            assert!(ns >= before_ns + step_ns, "{engine}, {step_ns}: {before_ns} to {ns}");
            assert!(clock_ns >= saved_ns + step_ns && clock_ns >= ns, "{engine}, {step_ns}: {clock_ns}");
            // Nor do they run ahead of real time.
            assert!(ns <= saved_ns + step_ns + passed_ns, "{engine}, {step_ns}: {ns} after {saved_ns}, {passed_ns}");
        }
    }
}

#[test]
fn a_timer_that_became_due_meanwhile_fires_once() {
    for engine in engines() {
        for (timer, ticks) in [(Timer::OneShot, 4), (Timer::Periodic, 4), (Timer::Deadline, 20)] {
            let mut vm = start(engine, timer, ticks * SECOND_NS);
            if engine != Soft && matches!(timer, Timer::Deadline) && vm.profile().tsc_hz.is_none() {
                // A guest that was promised no rate has no such timer.
                continue;
            }
            run_rounds(&mut vm, 1000);
            let ram = vm.platform().ram().clone();
            assert_eq!(load(&ram, INTERRUPTS), 0, "{engine}, {timer:?}");
            let mut state = vm.save().unwrap();
            drop(vm);
            state.advance_clock(30 * SECOND_NS);
            let start = Instant::now();
            let mut vm = restore(&ram, state, engine, 1, &Console::default());
            run_until(&mut vm, |ram| load(ram, INTERRUPTS) > 0);
            run_rounds(&mut vm, 3000);
            // The periodic timer is next due 2 or 4 seconds after it was restored.
            if start.elapsed() < Duration::from_millis(1900) || !matches!(timer, Timer::Periodic) {
                assert_eq!(load(&ram, INTERRUPTS), 1, "{engine}, {timer:?}");
            }
        }
    }
}

#[test]
fn pauses_do_not_slow_the_guests_clock_down() {
    for engine in engines() {
        let before = Instant::now();
        let mut vm = start(engine, Timer::OneShot, 0);
        let made = Instant::now();
        let pauses = if engine == Soft { 300 } else { 30 };
        for _ in 0..pauses {
            vm.control().pause();
            assert_eq!(vm.run(None).unwrap(), RunEnd::Paused);
            std::thread::sleep(Duration::from_micros(500));
        }
        let last = made.elapsed();
        run_rounds(&mut vm, 100);
        let clock_ns = u128::from(vm.save().unwrap().platform.clock_ns);
        assert!(clock_ns >= last.as_nanos(), "{engine}: {clock_ns} ns instead of {last:?}");
        assert!(clock_ns <= before.elapsed().as_nanos(), "{engine}: {clock_ns} ns");
    }
}

/// Row 30: a state is older than its capture, as the guest may have slept until then, and a VM is made of it after that.
#[test]
fn a_restored_vms_clock_goes_on_from_a_reading_however_long_making_it_took() {
    const AWAY: Duration = Duration::from_millis(60);
    for engine in engines() {
        let mut vm = start(engine, Timer::OneShot, 0);
        run_rounds(&mut vm, 1000);
        let ram = vm.platform().ram().clone();
        let mut state = vm.save().unwrap();
        let shown = vm.clock().unwrap().shows;
        std::thread::sleep(AWAY);
        let reading = vm.clock().unwrap();
        drop(vm);
        let saved_ns = state.platform.clock_ns;
        // It went on, if not by all of that: a guest may be ahead of its host by what it has executed last.
        assert!(reading.shows >= shown + AWAY / 2, "{engine}: {reading:?} after {shown:?}");
        std::thread::sleep(AWAY);
        state.advance_clock(reading.now_ns() - saved_ns);
        let mut vm = restore(&ram, state, engine, 1, &Console::default());
        std::thread::sleep(AWAY);
        vm.go_on_from(reading).unwrap();
        let due_ns = reading.now_ns();
        run_rounds(&mut vm, 1000);
        let ns = paravirtual_ns(&ram, load(&ram, TSC));
        assert!(ns >= due_ns && ns <= reading.now_ns(), "{engine}: {ns}, not {due_ns} to {}", reading.now_ns());
        // A reading that is behind takes nothing back.
        let late = machine::clock::ClockReading { shows: Duration::ZERO, at: Instant::now() };
        vm.go_on_from(late).unwrap();
        run_rounds(&mut vm, 1000);
        assert!(paravirtual_ns(&ram, load(&ram, TSC)) >= ns, "{engine}");
    }
}

/// The flag by which a guest learns from its paravirtual clock that it stood still.
fn was_told_stopped(ram: &GuestRam) -> bool {
    ram.load::<u8>(PARAVIRTUAL_CLOCK + 29).unwrap() & 2 != 0
}

/// Row 1 of the snapshots' cases: by the time of day at which the VM goes on, later or (as somebody has set the host's clock) earlier.
#[test]
fn row_1_a_vm_that_goes_on_later_shows_the_hosts_time_and_no_clock_goes_back() {
    for engine in engines() {
        for later in [true, false] {
            let mut vm = start(engine, Timer::OneShot, 0);
            run_rounds(&mut vm, 1000);
            let ram = vm.platform().ram().clone();
            assert!(!was_told_stopped(&ram));
            let before_ns = paravirtual_ns(&ram, load(&ram, TSC));
            let mut state = vm.save().unwrap();
            drop(vm);
            let saved_ns = state.platform.clock_ns;
            let saved_unix_ns = state.platform.power_on_unix_ns + saved_ns;
            let passed_ns = if later { 100_000 * SECOND_NS } else { 0 };
            let now_ns = if later { saved_unix_ns + passed_ns } else { saved_unix_ns - 3000 * SECOND_NS };
            state.catch_up(now_ns);
            assert_eq!(state.platform.clock_ns, saved_ns + passed_ns, "{engine}");
            assert_eq!(state.platform.power_on_unix_ns + state.platform.clock_ns, now_ns, "{engine}");
            let begun = Instant::now();
            let mut vm = restore(&ram, state, engine, 1, &Console::default());
            let (id, old) = (GenerationId::random().unwrap(), GenerationId::of(&ram));
            vm.begin_generation(id).unwrap();
            assert!(GenerationId::of(&ram) == Some(id) && old != Some(id));
            run_rounds(&mut vm, 3000);
            // It stays until the guest takes it back.
            assert!(was_told_stopped(&ram), "{engine}");
            let ns = paravirtual_ns(&ram, load(&ram, TSC));
            assert!(ns >= before_ns + passed_ns, "{engine}: {before_ns} to {ns}");
            let (clock, taken_ns) = (vm.platform().clock().clone(), begun.elapsed().as_nanos() as u64);
            assert!(
                (now_ns..=now_ns + taken_ns).contains(&clock.unix_ns()),
                "{engine}: {} of {now_ns}",
                clock.unix_ns()
            );
            // What it is now it stays, also where it goes on as the same VM.
            let state = vm.save().unwrap();
            assert_ne!(state.platform.power.events & EVENT_GENERATION, 0);
            let mut vm = restore(&ram, state, engine, 1, &Console::default());
            run_rounds(&mut vm, 1000);
            assert_eq!(GenerationId::of(&ram), Some(id));
        }
    }
}
