//! First copies of guests that go on changing what is copied, over links that carry little.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use machine::engine::soft::InputMode;
use machine::vm::{Boot, Vm};
use protocol::{DropReason, Protection, Reason};
use replication::disk::DiskSet;
use replication::driver::{Phase, PrimaryStatus, SecondaryEnd};
use spec::DiskFormat;
use spec::EngineKind::Soft;
use storage::disk::{DiskImage, DiskOptions, create_raw};

use crate::guest::{self, Console, DATA, PROGRAM};
use crate::{Follower, HUNG, Leader, World, wait};

/// Counts what the guest writes.
const COUNTER: u64 = DATA - 16;
const DISK_BYTES: u64 = 32 << 20;

/// Writes what nothing can compress through RSI bytes of memory, again and again.
fn writer() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut through, mut next) = (a.create_label(), a.create_label());
    a.mov(rdi, DATA).unwrap();
    a.mov(r8, 0x5851_f42d_4c95_7f2du64).unwrap();
    a.mov(rax, r8).unwrap();
    a.set_label(&mut through).unwrap();
    a.xor(ecx, ecx).unwrap();
    a.set_label(&mut next).unwrap();
    a.imul_2(rax, r8).unwrap();
    a.inc(rax).unwrap();
    a.mov(qword_ptr(rdi + rcx), rax).unwrap();
    a.inc(qword_ptr(rdi - 16)).unwrap();
    a.add(rcx, 8).unwrap();
    a.cmp(rcx, rsi).unwrap();
    a.jne(next).unwrap();
    a.jmp(through).unwrap();
    a.assemble(PROGRAM).unwrap()
}

fn idler() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.set_label(&mut again).unwrap();
    a.pause().unwrap();
    a.jmp(again).unwrap();
    a.assemble(PROGRAM).unwrap()
}

fn start(program: &[u8], argument: u64) -> Vm {
    let boot = Boot::Flat { program, address: PROGRAM, rsi: argument };
    Vm::boot(guest::config(1), &boot, guest::parts(&Console::default()), Soft, InputMode::Live).unwrap()
}

/// An idle guest whose memory holds so many bytes that nothing can compress.
fn start_full(bytes: u64) -> Vm {
    let vm = start(&idler(), 0);
    let mut word = 1u64;
    let noise: Vec<u8> = (0..bytes / 8)
        .flat_map(|_| {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            word.rotate_left(32).to_le_bytes()
        })
        .collect();
    assert!(vm.platform().ram().write_offset(DATA, &noise));
    vm
}

fn disk(world: &World, name: &str) -> DiskSet {
    let path = world.folder.path().join(name);
    create_raw(&path, DISK_BYTES).unwrap();
    let options = DiskOptions { format: Some(DiskFormat::Raw), ..DiskOptions::default() };
    DiskSet::new(vec![DiskImage::open(&path, options).unwrap()])
}

fn end(leader: Leader, follower: Follower) {
    follower.cable.us_per_kib.store(0, Ordering::Release);
    leader.primary.pull_the_plug();
    leader.thread.join().unwrap();
    follower.thread.join().unwrap();
}

fn phase(status: &PrimaryStatus) -> Option<Phase> {
    status.progress.map(|progress| progress.phase)
}

/// The round takes ten seconds and more, and the write is there after some.
#[test]
fn disk_writes_do_not_wait_for_the_end_of_a_round() {
    let world = World::new(Soft);
    let (own, copy) = (disk(&world, "own"), disk(&world, "copy"));
    let leader = world.boot_with(start_full(5 << 20), own.clone());
    let follower = world.begin_to_protect(&leader, "b", copy.clone(), 2000);
    wait("memory to be copied", || {
        let progress = leader.primary.status().progress;
        progress.is_some_and(|progress| progress.phase == Phase::CopyingMemory && progress.done_bytes > 0)
    });
    own.backends()[0].write_at(4096, &[7; 4096]).unwrap();
    let mut found = [0; 4096];
    wait("the write", || copy.backends()[0].read_at(4096, &mut found).is_ok() && found == [7; 4096]);
    assert_eq!(phase(&leader.primary.status()), Some(Phase::CopyingMemory), "the round is over");
    follower.cable.us_per_kib.store(0, Ordering::Release);
    wait("protection", || leader.primary.status().protocol.is_protected());
    end(leader, follower);
}

/// In one round the guest writes more to its disk than the log would hold, though the link could carry it.
#[test]
fn a_guest_that_writes_to_its_disk_all_through_a_long_round_is_protected() {
    let world = World::new(Soft);
    let (own, copy) = (disk(&world, "own"), disk(&world, "copy"));
    let leader = world.boot_with(start_full(5 << 20), own.clone());
    let follower = world.begin_to_protect(&leader, "b", copy, 1000);
    let (is_over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let backends = own.backends();
            for number in 0u64.. {
                if is_over.load(Ordering::Acquire) {
                    break;
                }
                let at = (number << 20) % DISK_BYTES;
                backends[0].write_at(at, &vec![number as u8; 1 << 20]).unwrap();
                written.fetch_add(1 << 20, Ordering::AcqRel);
                thread::sleep(Duration::from_millis(16));
            }
        });
        let before = wait_for_round(&leader, Phase::CopyingMemory, &written);
        let after = wait_for_round(&leader, Phase::CopyingChanges, &written);
        let deadline = Instant::now() + HUNG;
        let status = loop {
            let status = leader.primary.status();
            if status.protocol.is_protected() || status.failure.is_some() || Instant::now() > deadline {
                break status;
            }
            thread::sleep(Duration::from_millis(2));
        };
        is_over.store(true, Ordering::Release);
        assert!(status.protocol.is_protected(), "{status:?}");
        assert!(after - before > protocol::WRITES_KEPT_MAX, "{} bytes were written in the round", after - before);
    });
    let content = |name: &str| fs::read(world.folder.path().join(name)).unwrap();
    wait("the disks to be the same", || content("own") == content("copy"));
    end(leader, follower);
}

/// How much was written when the copy came to this phase, or a later one.
fn wait_for_round(leader: &Leader, wanted: Phase, written: &AtomicU64) -> u64 {
    let is_there =
        |now: Phase| now == wanted || matches!(now, Phase::CopyingChanges | Phase::FirstCheckpoint | Phase::Mirroring);
    wait("a round", || {
        let status = leader.primary.status();
        status.failure.is_some() || phase(&status).is_some_and(is_there)
    });
    written.load(Ordering::Acquire)
}

/// It writes through what the link needs two seconds for, many times in that time.
#[test]
fn a_guest_that_changes_more_than_the_link_carries_is_given_up_before_it_stands_still() {
    let world = World { too_slow_after: Duration::from_secs(20), ..World::new(Soft) };
    let vm = start(&writer(), 4 << 20);
    let ram = vm.platform().ram().clone();
    let leader = world.boot_with(vm, DiskSet::new(Vec::new()));
    let follower = world.begin_to_protect(&leader, "b", DiskSet::new(Vec::new()), 500);
    let (mut count, mut moved_at, mut stood_still) = (0, Instant::now(), Duration::ZERO);
    let (mut slowed_by, mut was_held, deadline) = (0, false, Instant::now() + HUNG);
    let status = loop {
        let status = leader.primary.status();
        let now = ram.load::<u64>(COUNTER).unwrap();
        if now != count {
            (count, moved_at) = (now, Instant::now());
        }
        stood_still = stood_still.max(moved_at.elapsed());
        if let Some(slowed) = status.progress.and_then(|progress| progress.slowed) {
            slowed_by = slowed_by.max(slowed.percent);
            assert!(slowed.pace.changed_bytes_per_s > slowed.pace.taken_in_bytes_per_s, "{slowed}");
        }
        was_held |= status.protocol.protection == Protection::Starting;
        if status.secondary.is_none() {
            break status;
        }
        assert!(Instant::now() < deadline, "it is still copied: {status:?}");
        thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(status.protocol.reason, Some(Reason::Dropped(DropReason::TooSlow)), "{status:?}");
    let why = status.failure.unwrap();
    assert!(
        why.contains("the guest changes") && why.contains("the secondary takes in") && why.contains("MB/s"),
        "{why}"
    );
    assert!(!was_held, "its output waited");
    assert!((1..=40).contains(&slowed_by), "it was slowed down by {slowed_by} %");
    assert!(status.figures.throttled > 0);
    assert!(stood_still < Duration::from_secs(2), "it stood still for {stood_still:?}");
    let count = ram.load::<u64>(COUNTER).unwrap();
    wait("the guest to go on", || ram.load::<u64>(COUNTER).unwrap() > count);
    leader.primary.pull_the_plug();
    leader.thread.join().unwrap();
    let SecondaryEnd::Stopped { .. } = follower.thread.join().unwrap() else { panic!("it took over") };
}
