//! Both engines on a bare-metal guest: the same results, alone and when the guest moves from one to the other.

mod checkpoint_cost;
mod clock;
mod guest;
mod queueing;
mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guest::{Console, expected, finish, start};
use machine::engine::RunEnd;
use machine::vm::{Snapshot, SnapshotHead, Vm, VmConfig};
use memory::PAGE_BYTES;
use spec::{
    CpuLevel,
    EngineKind::{self, Kvm, Soft},
};

/// Enough for some tenths of a second on the slowest KVM, and for several pauses.
const ROUNDS: u64 = 20_000;

/// KVM is tested wherever it may be used.
fn engines() -> Vec<EngineKind> {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => vec![Soft, Kvm],
        Err(error) => {
            eprintln!("the KVM engine is not tested: /dev/kvm: {error}");
            vec![Soft]
        }
    }
}

/// Runs a part of what is left: the soft engine for some instructions, KVM until the guest printed more.
fn run_a_part(vm: &mut Vm, console: &Console) -> RunEnd {
    if let Some(instructions) = vm.instructions() {
        return vm.run(Some(instructions + 50_000)).unwrap();
    }
    let (control, console, seen) = (vm.control(), console.clone(), console.len());
    let done = Arc::new(AtomicBool::new(false));
    let ended = done.clone();
    let watcher = std::thread::spawn(move || {
        while console.len() == seen && !ended.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_micros(200));
        }
        control.pause();
    });
    let end = vm.run(None).unwrap();
    done.store(true, Ordering::Release);
    watcher.join().unwrap();
    end
}

fn is_pause(end: RunEnd) -> bool {
    matches!(end, RunEnd::Paused | RunEnd::LimitReached)
}

#[test]
fn a_guest_computes_the_same_on_every_engine() {
    for engine in engines() {
        let console = Console::default();
        let mut vm = start(engine, ROUNDS, 1, &console);
        finish(&mut vm);
        assert_eq!(guest::result(&vm), expected(ROUNDS), "{engine}");
        assert_eq!(console.text(), guest::expected_output(ROUNDS), "{engine}");
    }
}

/// An undefined instruction, and no handlers. The place is lost where KVM runs on an AMD processor.
#[test]
fn a_triple_fault_ends_the_run_and_tells_where() {
    for engine in engines() {
        let mut vm = guest::start_flat(engine, &[0x90, 0x0f, 0x0b]);
        assert_eq!(vm.run(None).unwrap(), RunEnd::Shutdown { vcpu: 0 }, "{engine}");
        let fault = vm.triple_fault(0);
        assert_eq!(fault.vcpu, 0);
        match fault.place {
            Some(place) => assert_eq!((place.rip, place.idt.base), (guest::PROGRAM + 1, 0), "{engine}: {fault}"),
            None => assert_eq!(engine, Kvm, "{fault}"),
        }
    }
}

#[test]
fn the_first_vcpu_starts_the_others() {
    for engine in engines() {
        for cpus in [2, 4] {
            let mut vm = guest::start_all(engine, cpus);
            finish(&mut vm);
            let started: u16 = vm.platform().ram().load(guest::STARTED).unwrap();
            assert_eq!(u32::from(started), cpus - 1, "{engine}");
        }
    }
}

#[test]
fn a_snapshot_taken_on_one_engine_continues_on_another() {
    for first in engines() {
        for second in engines() {
            let console = Console::default();
            let mut vm = start(first, ROUNDS, 1, &console);
            assert!(is_pause(run_a_part(&mut vm, &console)), "{first}");
            let head = SnapshotHead {
                config: vm.config().clone(),
                spec: String::new(),
                disks: Vec::new(),
                has_memory: true,
                taken_unix_ns: 1,
                heeds_generation: false,
            };
            let file = guest::snapshot(&mut vm, &head);
            drop(vm);
            let snapshot = Snapshot::open(&file[..]).unwrap();
            let taken_unix_ns = snapshot.head().taken_unix_ns;
            assert_eq!(snapshot.head(), &SnapshotHead { taken_unix_ns, ..head });
            let content = snapshot.read(|_| unreachable!()).unwrap();
            let mut vm = guest::restore(&content.ram, content.state, second, 1, &console);
            finish(&mut vm);
            assert!(guest::result(&vm) == expected(ROUNDS), "{first} to {second}");
            assert_eq!(console.text(), guest::expected_output(ROUNDS), "{first} to {second}");
        }
    }
}

#[test]
fn a_saved_vm_saves_the_same_again() {
    for first in engines() {
        for second in engines() {
            let console = Console::default();
            let mut vm = start(first, ROUNDS, 2, &console);
            assert!(is_pause(run_a_part(&mut vm, &console)), "{first}");
            let state = vm.save().unwrap();
            let mut again = guest::restore(vm.platform().ram(), state.clone(), second, 2, &console);
            let mut saved = again.save().unwrap();
            // The host's time-stamp counter goes on by itself under KVM.
            for (before, after) in state.engine.processors.vcpus.iter().zip(&mut saved.engine.processors.vcpus) {
                if second == Kvm {
                    assert!(after.tsc >= before.tsc, "{first} to {second}");
                    after.tsc = before.tsc;
                }
                after.instructions = before.instructions;
                guest::compare(before, after, &format!("{first} to {second}"));
            }
            assert_eq!(saved.engine.ioapic, state.engine.ioapic, "{first} to {second}");
            assert_eq!(saved.platform, state.platform, "{first} to {second}");
            if second == Soft {
                assert_eq!(saved.engine.processors.tsc(), state.engine.processors.tsc(), "{first}: the clock jumps");
            }
            if first == Kvm || second == Kvm {
                assert_eq!(saved.engine.processors.tsc(), saved.platform.clock_ns, "{first} to {second}");
            }
        }
    }
}

#[test]
fn every_page_that_a_vcpu_writes_is_harvested() {
    for engine in engines() {
        let console = Console::default();
        let mut vm = start(engine, ROUNDS, 1, &console);
        let ram = vm.platform().ram().clone();
        let copy = memory::GuestRam::new(ram.size_bytes()).unwrap();
        let mut rounds = 0;
        loop {
            let end = run_a_part(&mut vm, &console);
            let harvest = vm.harvest().unwrap();
            let mut page = [0; PAGE_BYTES as usize];
            for number in harvest.pages() {
                ram.read_offset(number * PAGE_BYTES, &mut page);
                copy.write_offset(number * PAGE_BYTES, &page);
            }
            harvest.acknowledge();
            rounds += 1;
            if !is_pause(end) {
                break;
            }
        }
        assert!(rounds > 1, "{engine}: the guest was too fast to be paused");
        for number in 0..ram.pages() {
            let (mut ours, mut theirs) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
            ram.read_offset(number * PAGE_BYTES, &mut ours);
            copy.read_offset(number * PAGE_BYTES, &mut theirs);
            assert!(ours == theirs, "{engine}: page {number} was written and not harvested");
        }
    }
}

#[test]
fn a_vm_goes_on_only_where_its_processor_can_be_had() {
    for engine in engines() {
        let console = Console::default();
        let mut vm = start(engine, 1, 1, &console);
        let profile = vm.profile().clone();
        let mut state = vm.save().unwrap();
        assert_eq!(state.engine.processors.profile, profile, "{engine}");
        let everything = (spec::processor::word::STRUCTURED_1_EAX, u32::MAX);
        state.engine.processors.profile.features = profile.features.with(everything);
        let (ram, parts) = (vm.platform().ram().clone(), guest::parts(&console));
        let mode = machine::engine::soft::InputMode::Live;
        let Err(error) = machine::vm::Vm::restore(guest::config(1), &ram, state, parts, engine, mode) else {
            panic!("{engine} takes a VM with features that nobody has");
        };
        assert!(error.to_string().contains("CPUID 0x7.1:EAX bit 31"), "{engine}: {error}");
    }
}

#[test]
fn more_than_the_portable_processor_needs_kvm_and_a_host_that_has_it() {
    for engine in engines() {
        for level in [CpuLevel::Portable, CpuLevel::V3, CpuLevel::Host] {
            let console = Console::default();
            let config = VmConfig { cpu: level, ..guest::config(1) };
            match (engine, level, guest::boot(config, engine, ROUNDS, &console)) {
                (_, CpuLevel::Portable, Err(error)) => panic!("{engine}: {error}"),
                (Soft, CpuLevel::V3 | CpuLevel::Host, Ok(_)) => panic!("the software processor is no {level}"),
                (Soft, _, Err(error)) => assert!(error.to_string().contains("kvm"), "{error}"),
                (Kvm, CpuLevel::Host, Err(error)) => panic!("{error}"),
                (Kvm, _, Err(error)) => assert!(error.to_string().contains("does not offer"), "{error}"),
                (_, _, Ok(mut vm)) => {
                    finish(&mut vm);
                    assert_eq!(guest::result(&vm), expected(ROUNDS), "{engine}, {level}");
                }
            }
        }
    }
}

/// A KVM that emulates supervisor mode knows none of these instructions there.
#[test]
#[ignore = "needs virtualization hardware, which the nested machine has"]
fn vector_registers_of_an_x86_64_v3_go_with_a_vm() {
    let console = Console::default();
    let config = VmConfig { cpu: CpuLevel::V3, ..guest::config(1) };
    let mut vm = guest::boot_program(&guest::wide_program(), config, Kvm, ROUNDS * 100, &console).unwrap();
    let mut moves = 0;
    while is_pause(run_a_part(&mut vm, &console)) {
        let head = SnapshotHead {
            config: vm.config().clone(),
            spec: String::new(),
            disks: Vec::new(),
            has_memory: true,
            taken_unix_ns: 0,
            heeds_generation: false,
        };
        let file = guest::snapshot(&mut vm, &head);
        drop(vm);
        let content = Snapshot::open(&file[..]).unwrap().read(|_| unreachable!()).unwrap();
        vm = guest::restore(&content.ram, content.state, Kvm, 1, &console);
        moves += 1;
    }
    assert!(moves > 0, "the guest was too fast to be paused");
    let ram = vm.platform().ram();
    let [loaded, stored] = guest::WIDE.map(|address| [0, 16].map(|at| ram.load::<u128>(address + at).unwrap()));
    assert_eq!(stored, loaded, "after {moves} moves");
    assert!(!loaded.contains(&0) && loaded[0] != loaded[1]);
}

#[test]
fn a_state_with_another_number_of_vcpus_is_refused() {
    let console = Console::default();
    let mut vm = start(Soft, 1, 2, &console);
    let state = vm.save().unwrap();
    let config = VmConfig {
        name: "x".into(),
        cpus: 1,
        memory_bytes: guest::MEMORY_BYTES,
        cpu: spec::CpuLevel::Portable,
        backing: spec::MemoryBacking::default(),
        translator: spec::Translator::default(),
    };
    let ram = vm.platform().ram().clone();
    let restored = machine::vm::Vm::restore(
        config,
        &ram,
        state,
        guest::parts(&console),
        Soft,
        machine::engine::soft::InputMode::Live,
    );
    assert!(restored.is_err());
}
