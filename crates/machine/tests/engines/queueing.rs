//! The KVM engine does not let a vCPU, or a pause, wait for a disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use machine::bus::BusDevice;
use machine::devices::virtio::rng::SeededEntropy;
use machine::devices::virtio::testing::{Buffer, GuestDriver, HeldDisk, Posted};
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::map;
use machine::platform::{Parts, Platform};
use machine::vm::{Boot, Vm};
use memory::GuestRam;
use spec::EngineKind::{self, Kvm, Soft};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_QUEUE_NOTIFY};

use super::guest::{Console, config};

const PROGRAM: u64 = 0x40_0000;
const COUNTER: u64 = 0x50_0000;
const DISK_BYTES: usize = 1 << 20;
/// How long anything may take before the test takes it for stuck.
const HUNG: Duration = Duration::from_secs(60);
/// How long a pause may take, on a machine that does other things as well. A disk that hangs would hold it up for ever.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The window of the first virtio device.
struct Window<'a>(&'a Platform);

impl BusDevice for Window<'_> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.mmio_read(map::VIRTIO_MMIO + offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.mmio_write(map::VIRTIO_MMIO + offset, data);
    }
}

/// Notifies the disk of its queue, and counts for ever.
fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    a.mov(rdi, map::VIRTIO_MMIO + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY)).unwrap();
    a.mov(dword_ptr(rdi), 0).unwrap();
    a.mov(rdi, COUNTER).unwrap();
    a.set_label(&mut again).unwrap();
    a.inc(qword_ptr(rdi)).unwrap();
    a.jmp(again).unwrap();
    a.assemble(PROGRAM).unwrap()
}

/// Reads the device's first register, notifies it, waits for its interrupt by looking at the status, acknowledges it and looks again; leaves
/// what it read behind [`COUNTER`], and counts for ever.
fn reader() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut wait, mut again) = (a.create_label(), a.create_label());
    let register = |register: u32| rdi + register as i32;
    a.mov(rdi, map::VIRTIO_MMIO).unwrap();
    a.mov(rsi, COUNTER).unwrap();
    a.mov(eax, dword_ptr(rdi)).unwrap();
    a.mov(dword_ptr(rsi + 8), eax).unwrap();
    a.mov(dword_ptr(register(VIRTIO_MMIO_QUEUE_NOTIFY)), 0).unwrap();
    a.set_label(&mut wait).unwrap();
    a.mov(eax, dword_ptr(register(VIRTIO_MMIO_INTERRUPT_STATUS))).unwrap();
    a.test(eax, eax).unwrap();
    a.jz(wait).unwrap();
    a.mov(dword_ptr(rsi + 12), eax).unwrap();
    a.mov(dword_ptr(register(VIRTIO_MMIO_INTERRUPT_ACK)), eax).unwrap();
    a.mov(eax, dword_ptr(register(VIRTIO_MMIO_INTERRUPT_STATUS))).unwrap();
    a.mov(dword_ptr(rsi + 16), eax).unwrap();
    a.set_label(&mut again).unwrap();
    a.inc(qword_ptr(rsi)).unwrap();
    a.jmp(again).unwrap();
    a.assemble(PROGRAM).unwrap()
}

fn parts(disk: &HeldDisk) -> Parts {
    Parts {
        disks: vec![Box::new(disk.clone())],
        cards: Vec::new(),
        console: Box::new(Console::default()),
        entropy: Box::new(SeededEntropy::new(1, 0)),
    }
}

/// A VM that is about to notify its disk of a write and a flush.
fn start(disk: &HeldDisk, program: &[u8]) -> (Vm, GuestDriver, [Posted; 2]) {
    let boot = Boot::Flat { program, address: PROGRAM, rsi: 0 };
    let vm = Vm::boot(config(1), &boot, parts(disk), Kvm, InputMode::Live).unwrap();
    let mut driver = GuestDriver::new(vm.platform().ram());
    driver.start(&mut Window(vm.platform()), 1 << VIRTIO_BLK_F_FLUSH, 16);
    let header = |kind: u32| [&kind.to_le_bytes()[..], &[0; 12]].concat();
    let write = [Buffer::Out(&header(VIRTIO_BLK_T_OUT)), Buffer::Out(&[7; 512]), Buffer::In(1)];
    let write = driver.post(0, &write);
    let flush = driver.post(0, &[Buffer::Out(&header(VIRTIO_BLK_T_FLUSH)), Buffer::In(1)]);
    for posted in [&write, &flush] {
        driver.write(*posted.addresses.last().unwrap(), &[0xee]);
    }
    (vm, driver, [write, flush])
}

fn status(ram: &GuestRam, posted: &Posted) -> u8 {
    ram.load(*posted.addresses.last().unwrap()).unwrap()
}

/// Runs until `is_reached`; returns how long the pause took then.
fn run_until(vm: &mut Vm, is_reached: impl Fn(&GuestRam) -> bool + Send + 'static) -> Duration {
    let (control, ram) = (vm.control(), vm.platform().ram().clone());
    let is_hung = Arc::new(AtomicBool::new(false));
    let seen = is_hung.clone();
    let watcher = thread::spawn(move || {
        let since = Instant::now();
        while !is_reached(&ram) && since.elapsed() < HUNG {
            thread::sleep(Duration::from_millis(1));
        }
        seen.store(since.elapsed() >= HUNG, Ordering::Release);
        control.pause();
        Instant::now()
    });
    assert_eq!(vm.run(None).unwrap(), RunEnd::Paused);
    let paused_at = Instant::now();
    let asked_at = watcher.join().unwrap();
    assert!(!is_hung.load(Ordering::Acquire), "the guest does not get there");
    paused_at.saturating_duration_since(asked_at)
}

fn counter(ram: &GuestRam) -> u64 {
    ram.load(COUNTER).unwrap()
}

fn has_kvm() -> bool {
    super::engines().contains(&Kvm)
}

#[test]
fn a_flush_that_hangs_holds_up_neither_the_vcpu_nor_a_pause() {
    if !has_kvm() {
        return;
    }
    let disk = HeldDisk::new(DISK_BYTES);
    disk.hold(false, true);
    let (mut vm, _driver, [write, flush]) = start(&disk, &program());
    let watched = write.clone();
    let pause = run_until(&mut vm, move |ram| status(ram, &watched) == 0);
    assert!(pause < PAUSE_MAX, "{pause:?}");
    disk.wait_for_held(1);
    // The vCPU counts on while the flush hangs.
    let counted = counter(vm.platform().ram());
    let pause = run_until(&mut vm, move |ram| counter(ram) > counted + 10_000);
    assert!(pause < PAUSE_MAX, "{pause:?}");
    assert_eq!(status(vm.platform().ram(), &flush), 0xee);
    let state = vm.save().unwrap();
    assert_eq!(state.platform.disks[0].device.in_flight.len(), 1);
    disk.hold(false, false);
    let watched = flush.clone();
    run_until(&mut vm, move |ram| status(ram, &watched) == 0);
    assert!(vm.save().unwrap().platform.disks[0].device.in_flight.is_empty());
    assert_ne!(vm.platform().pins().levels(), 0);
}

#[test]
fn what_a_disk_had_under_way_is_done_where_the_vm_goes_on() {
    if !has_kvm() {
        return;
    }
    for engine in [Kvm, Soft] {
        go_on(engine);
    }
}

fn go_on(engine: EngineKind) {
    let disk = HeldDisk::new(DISK_BYTES);
    disk.hold(true, true);
    let (mut vm, _driver, [write, flush]) = start(&disk, &program());
    let held = disk.clone();
    run_until(&mut vm, move |_| {
        held.wait_for_held(2);
        true
    });
    let state = vm.save().unwrap();
    assert_eq!(state.platform.disks[0].device.in_flight.len(), 2);
    let ram = vm.platform().ram().clone();
    let other = HeldDisk::new(DISK_BYTES);
    let mut vm_there = Vm::restore(config(1), &ram, state, parts(&other), engine, InputMode::Live).unwrap();
    run_until(&mut vm_there, move |ram| status(ram, &write) == 0 && status(ram, &flush) == 0);
    assert_eq!(other.disk.content().bytes[..512], [7; 512], "{engine}");
    disk.hold(false, false);
}

#[test]
fn a_guest_that_reads_the_interrupts_status_sees_it_come_and_go() {
    if !has_kvm() {
        return;
    }
    let disk = HeldDisk::new(DISK_BYTES);
    // Its answer would be another interrupt.
    disk.hold(false, true);
    let (mut vm, _driver, _) = start(&disk, &reader());
    run_until(&mut vm, |ram| counter(ram) > 0);
    let word = |offset: u64| vm.platform().ram().load::<u32>(COUNTER + offset).unwrap();
    assert_eq!(word(8).to_le_bytes(), *b"virt");
    assert_eq!((word(12), word(16)), (1, 0), "status before and after it was acknowledged");
    assert_eq!(vm.platform().pins().levels(), 0);
    disk.hold(false, false);
}
