//! A guest works its disk hard while the host is slow at random and fails at random. Its record says how, and repeats it on a host
//! that is slow at other times and never fails: the same state, the same disk, and the same record once more.

use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{io, thread};

use iced_x86::code_asm::*;
use machine::bus::BusDevice;
use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::block::BlockBackend;
use machine::devices::virtio::rng::SeededEntropy;
use machine::devices::virtio::testing::{Buffer, GuestDriver};
use machine::digest::Digest;
use machine::engine::soft::InputMode;
use machine::engine::{EngineError, RunEnd};
use machine::events::GuestEvent;
use machine::input::{FailedContent, Input, InputEvent, Journal};
use machine::map;
use machine::platform::{Parts, Platform};
use machine::vm::{Boot, Vm, VmConfig, VmError, VmState};
use memory::{GuestRam, PAGE_BYTES};
use spec::EngineKind;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_mmio::*;

const MEMORY_BYTES: u64 = 8 << 20;
const PROGRAM: u64 = 0x30_0000;
/// For each request where its sector is, and where the guest mixes what it knows into its data.
const TABLE: u64 = 0x31_0000;
const SCRATCH: u64 = 0x32_0000;
/// The entropy device's only buffer, and its rings.
const ENTROPY: u64 = 0x33_0000;
const ENTROPY_QUEUE: u64 = 0x34_0000;
const ENTROPY_BYTES: u32 = 32;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

const QUEUE_SIZE: u16 = 256;
/// The same requests come again and again, at other sectors and with other data.
const REQUESTS: u16 = 64;
/// Requests for each notification.
const BATCH: u16 = 4;
/// Requests begin at one of these, a power of two.
const FIRST_SECTORS: u64 = 1024;
const DISK_BYTES: usize = (FIRST_SECTORS as usize + 16) * 512;
const ROUNDS: u64 = 1500;

/// RSI rounds, each of which lets the device do a batch of requests whose sectors and data depend on the clock, on entropy, and on what
/// was read before.
fn program(avail: u64, used: u64) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let [mut round, mut no_entropy, mut request, mut wait, mut compute] = [(); 5].map(|()| a.create_label());
    let [disk, rng] = [0, 1].map(|slot| map::virtio_slot(slot).unwrap().base);
    a.mov(r8, MULTIPLIER).unwrap();
    a.mov(r9, avail).unwrap();
    a.mov(r10, used).unwrap();
    a.mov(r11, rng).unwrap();
    a.mov(r12, TABLE).unwrap();
    a.mov(r13, disk).unwrap();
    a.mov(rbp, ENTROPY_QUEUE).unwrap();
    a.xor(r14d, r14d).unwrap();
    a.xor(r15d, r15d).unwrap();
    a.set_label(&mut round).unwrap();
    a.rdtsc().unwrap();
    a.xor(r14, rax).unwrap();
    a.test(r15d, 31).unwrap();
    a.jnz(no_entropy).unwrap();
    a.inc(word_ptr(rbp + 0x1002)).unwrap();
    a.mov(dword_ptr(r11 + VIRTIO_MMIO_QUEUE_NOTIFY), 0).unwrap();
    a.mov(rdi, ENTROPY).unwrap();
    a.xor(r14, qword_ptr(rdi)).unwrap();
    a.set_label(&mut no_entropy).unwrap();
    a.mov(ecx, u32::from(BATCH)).unwrap();
    a.set_label(&mut request).unwrap();
    a.mov(eax, r15d).unwrap();
    a.and(eax, i32::from(REQUESTS - 1)).unwrap();
    a.shl(eax, 4).unwrap();
    a.mov(rbx, qword_ptr(r12 + rax)).unwrap();
    a.mov(rdi, qword_ptr(r12 + rax + 8)).unwrap();
    a.xor(r14, qword_ptr(rdi)).unwrap();
    a.imul_2(r14, r8).unwrap();
    a.mov(rdx, r14).unwrap();
    a.shr(rdx, 40).unwrap();
    a.and(edx, FIRST_SECTORS as i32 - 1).unwrap();
    a.mov(qword_ptr(rbx), rdx).unwrap();
    a.mov(qword_ptr(rdi), r14).unwrap();
    a.inc(r15d).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(request).unwrap();
    a.mov(word_ptr(r9 + 2), r15w).unwrap();
    a.mov(dword_ptr(r13 + VIRTIO_MMIO_QUEUE_NOTIFY), 0).unwrap();
    // A device that leaves some requests for later goes on when its interrupt is acknowledged.
    a.set_label(&mut wait).unwrap();
    a.mov(eax, dword_ptr(r13 + VIRTIO_MMIO_INTERRUPT_STATUS)).unwrap();
    a.mov(dword_ptr(r13 + VIRTIO_MMIO_INTERRUPT_ACK), eax).unwrap();
    a.cmp(word_ptr(r10 + 2), r15w).unwrap();
    a.jne(wait).unwrap();
    a.mov(ecx, 200).unwrap();
    a.set_label(&mut compute).unwrap();
    a.imul_2(r14, r8).unwrap();
    a.add(r14, rcx).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(compute).unwrap();
    a.dec(rsi).unwrap();
    a.jnz(round).unwrap();
    a.mov(dx, u32::from(map::RESET_CONTROL_PORT)).unwrap();
    a.mov(al, 6).unwrap();
    a.out(dx, al).unwrap();
    a.hlt().unwrap();
    a.assemble(PROGRAM).unwrap()
}

/// A virtio slot for a driver outside of the guest.
struct Slot<'a> {
    platform: &'a Platform,
    base: u64,
}

impl BusDevice for Slot<'_> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.platform.mmio_read(self.base + offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.platform.mmio_write(self.base + offset, data);
    }
}

/// Makes the requests and hides them from the device again, so that the guest can show them to it one by one.
fn prepare_disk(platform: &Platform) {
    let ram = platform.ram();
    let mut driver = GuestDriver::new(ram);
    let mut slot = Slot { platform, base: map::virtio_slot(0).unwrap().base };
    let features = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    driver.start(&mut slot, features, QUEUE_SIZE);
    let data = |seed: u16, len: usize| (0..len).map(|at| (at as u16 * 7 + seed * 31) as u8).collect::<Vec<u8>>();
    // `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
    let mut range = vec![0; 16];
    range[8] = 8;
    let mut heads = Vec::new();
    for number in 0..REQUESTS {
        let (kind, out, read_len) = match number % 8 {
            0 => (VIRTIO_BLK_T_OUT, data(number, 8192), 0),
            1 => (VIRTIO_BLK_T_IN, Vec::new(), 8192),
            2 => (VIRTIO_BLK_T_OUT, data(number, 512), 0),
            3 => (VIRTIO_BLK_T_FLUSH, Vec::new(), 0),
            4 => (VIRTIO_BLK_T_DISCARD, range.clone(), 0),
            5 => (VIRTIO_BLK_T_IN, Vec::new(), 512),
            6 => (VIRTIO_BLK_T_WRITE_ZEROES, range.clone(), 0),
            _ => (VIRTIO_BLK_T_OUT, data(number, 4096), 0),
        };
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        let mut buffers = vec![Buffer::Out(&header)];
        buffers.extend((!out.is_empty()).then_some(Buffer::Out(&out)));
        buffers.extend((read_len > 0).then_some(Buffer::In(read_len)));
        buffers.push(Buffer::In(1));
        let posted = driver.post(0, &buffers);
        let (sector, mixed) = match kind {
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => (posted.addresses[1], SCRATCH),
            VIRTIO_BLK_T_FLUSH => (posted.addresses[0] + 8, SCRATCH),
            _ => (posted.addresses[0] + 8, posted.addresses[1]),
        };
        ram.write_bytes(TABLE + u64::from(number) * 16, &sector.to_le_bytes()).unwrap();
        ram.write_bytes(TABLE + u64::from(number) * 16 + 8, &mixed.to_le_bytes()).unwrap();
        heads.push(posted.head);
    }
    let [_, avail, _] = driver.ring_addresses(0);
    for (entry, head) in (0..u64::from(QUEUE_SIZE)).zip(heads.iter().cycle()) {
        ram.write_bytes(avail + 4 + entry * 2, &head.to_le_bytes()).unwrap();
    }
    ram.write_bytes(avail + 2, &0u16.to_le_bytes()).unwrap();
}

/// One descriptor; the available ring names it in every entry.
fn prepare_entropy(platform: &Platform) {
    let base = map::virtio_slot(1).unwrap().base;
    let write = |register: u32, value: u64| {
        platform.mmio_write(base + u64::from(register), &(value as u32).to_le_bytes());
    };
    let ram = platform.ram();
    ram.write_bytes(ENTROPY_QUEUE, &ENTROPY.to_le_bytes()).unwrap();
    ram.write_bytes(ENTROPY_QUEUE + 8, &ENTROPY_BYTES.to_le_bytes()).unwrap();
    // The device may write to it.
    ram.write_bytes(ENTROPY_QUEUE + 12, &2u16.to_le_bytes()).unwrap();
    for status in [0, 1, 3] {
        write(VIRTIO_MMIO_STATUS, status);
    }
    write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    // VIRTIO_F_VERSION_1
    write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    write(VIRTIO_MMIO_STATUS, 11);
    write(VIRTIO_MMIO_QUEUE_SEL, 0);
    write(VIRTIO_MMIO_QUEUE_NUM, 8);
    write(VIRTIO_MMIO_QUEUE_DESC_LOW, ENTROPY_QUEUE);
    write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, ENTROPY_QUEUE + 0x1000);
    write(VIRTIO_MMIO_QUEUE_USED_LOW, ENTROPY_QUEUE + 0x2000);
    write(VIRTIO_MMIO_QUEUE_READY, 1);
    write(VIRTIO_MMIO_STATUS, 15);
}

/// How the host treats the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// It fails now and then, halfway.
    Failing,
    /// Its first write fails.
    Broken,
}

/// A disk in memory on a host that is slow at random.
struct HostDisk {
    content: Arc<Mutex<Vec<u8>>>,
    health: Health,
    dice: Mutex<Dice>,
}

struct Dice {
    random: u64,
    has_just_failed: bool,
}

impl Dice {
    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(MULTIPLIER);
        let z = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

impl HostDisk {
    fn new(content: Arc<Mutex<Vec<u8>>>, health: Health, random: u64) -> Self {
        Self { content, health, dice: Mutex::new(Dice { random, has_just_failed: false }) }
    }

    /// Changes so much of `len` bytes as the host does before it fails, if it does.
    fn operate(&self, offset: u64, len: usize, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let mut dice = self.dice.lock().unwrap();
        let (delay, failure) = (dice.random(), dice.random());
        if delay.is_multiple_of(64) {
            thread::sleep(Duration::from_nanos(delay >> 8 & 0x7_ffff));
        }
        let fails = match self.health {
            Health::Good => false,
            // Not twice in a row: what a failure left can be read.
            Health::Failing => failure.is_multiple_of(32) && !dice.has_just_failed,
            Health::Broken => true,
        };
        dice.has_just_failed = fails;
        let done = if fails { (failure >> 8) as usize % (len + 1) } else { len };
        change(&mut self.content.lock().unwrap()[offset as usize..][..done]);
        if fails { Err(io::Error::other("the host failed")) } else { Ok(()) }
    }
}

impl BlockBackend for HostDisk {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = buf.len();
        self.operate(offset, len, |from| buf[..from.len()].copy_from_slice(from))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.operate(offset, data.len(), |to| to.copy_from_slice(&data[..to.len()]))
    }

    fn flush(&self) -> io::Result<()> {
        self.operate(0, 0, |_| {})
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.operate(offset, len as usize, |to| to.fill(0))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        self.operate(offset, len as usize, |to| to.fill(0))
    }
}

struct Nobody;

impl ConsoleSink for Nobody {
    fn write(&mut self, _bytes: &[u8]) {}
}

fn config() -> VmConfig {
    VmConfig {
        name: "disk".into(),
        cpus: 1,
        memory_bytes: MEMORY_BYTES,
        cpu: spec::CpuLevel::Portable,
        backing: spec::MemoryBacking::default(),
        translator: spec::Translator::default(),
    }
}

fn parts(disk: HostDisk, entropy_seed: u64) -> Parts {
    Parts {
        disks: vec![Box::new(disk)],
        cards: Vec::new(),
        console: Box::new(Nobody),
        entropy: Box::new(SeededEntropy::new(entropy_seed, 0)),
    }
}

/// A guest that is about to start.
struct Start {
    ram: GuestRam,
    state: VmState,
}

/// What a run ended in.
#[derive(PartialEq, Eq)]
struct Outcome {
    digest: Digest,
    instructions: u64,
    disk: Vec<u8>,
}

impl Start {
    fn new() -> Self {
        let disk = HostDisk::new(Arc::default(), Health::Good, 0);
        // The rings are where every driver of this kind has them.
        let [_, avail, used] = {
            let ram = GuestRam::new(MEMORY_BYTES).unwrap();
            GuestDriver::new(&ram).ring_addresses(0)
        };
        let boot = Boot::Flat { program: &program(avail, used), address: PROGRAM, rsi: ROUNDS };
        let mut vm = Vm::boot(config(), &boot, parts(disk, 0), EngineKind::Soft, InputMode::Live).unwrap();
        prepare_disk(vm.platform());
        prepare_entropy(vm.platform());
        Self { state: vm.save().unwrap(), ram: vm.platform().ram().clone() }
    }

    fn vm(&self, health: Health, seed: u64, mode: InputMode) -> (Vm, Arc<Mutex<Vec<u8>>>) {
        let ram = GuestRam::new(MEMORY_BYTES).unwrap();
        let mut page = vec![0; PAGE_BYTES as usize];
        for number in 0..ram.pages() {
            self.ram.read_offset(number * PAGE_BYTES, &mut page);
            ram.write_offset(number * PAGE_BYTES, &page);
        }
        let content = Arc::new(Mutex::new(vec![0; DISK_BYTES]));
        let parts = parts(HostDisk::new(content.clone(), health, seed), seed);
        (Vm::restore(config(), &ram, self.state.clone(), parts, EngineKind::Soft, mode).unwrap(), content)
    }

    /// Runs to the end, in pieces.
    fn run(&self, health: Health, seed: u64, mode: InputMode, piece: u64) -> Result<Outcome, VmError> {
        let (mut vm, content) = self.vm(health, seed, mode);
        loop {
            let limit = vm.instructions().unwrap().saturating_add(piece);
            match vm.run(Some(limit))? {
                RunEnd::Guest(GuestEvent::Reset) => break,
                end => assert_eq!((end, vm.instructions()), (RunEnd::LimitReached, Some(limit)), "the guest is stuck"),
            }
        }
        let (digest, instructions) = (vm.digest()?, vm.instructions().unwrap());
        drop(vm);
        let disk = content.lock().unwrap().clone();
        Ok(Outcome { digest, instructions, disk })
    }

    fn record(&self, health: Health, seed: u64) -> (Outcome, Vec<InputEvent>) {
        let journal = Journal::default();
        let outcome = self.run(health, seed, InputMode::Record(Arc::new(journal.clone())), u64::MAX).unwrap();
        (outcome, journal.events())
    }
}

#[test]
fn a_replay_is_the_same_whatever_the_hosts_disks_do() {
    let start = Start::new();
    let (recorded, events) = start.record(Health::Failing, 1);
    let count = |is: fn(&Input) -> bool| events.iter().filter(|event| is(&event.input)).count();
    let counts = [
        count(|input| matches!(input, Input::ClockStep(_))),
        count(|input| matches!(input, Input::Entropy(_))),
        count(|input| matches!(input, Input::DiskFailed { content: FailedContent::Unchanged, .. })),
        count(|input| matches!(input, Input::DiskFailed { content: FailedContent::Bytes(_), .. })),
    ];
    eprintln!("{} instructions; clock steps, entropy, failures: {counts:?}", recorded.instructions);
    assert!(counts.iter().all(|&count| count > 10), "{counts:?}");
    // The runs have something to differ in: what was recorded depends on the host.
    assert!(start.record(Health::Failing, 1).1 != events);

    for (seed, piece) in [(2, u64::MAX), (3, 77_777), (4, 1_000_003)] {
        let journal = Journal::new(events.iter().cloned());
        assert!(start.run(Health::Good, seed, InputMode::Replay(journal), piece).unwrap() == recorded, "seed {seed}");
        let (journal, again) = (Journal::new(events.iter().cloned()), Journal::default());
        let mode = InputMode::Rerecord(journal, Arc::new(again.clone()));
        assert!(start.run(Health::Good, seed, mode, piece).unwrap() == recorded, "seed {seed}");
        assert!(again.events() == events, "seed {seed}: the record of the replay is another one");
    }
}

#[test]
fn a_replay_whose_own_disk_fails_ends() {
    let start = Start::new();
    let (_, events) = start.record(Health::Good, 1);
    let replay = |events: &[InputEvent], health| {
        start.run(health, 2, InputMode::Replay(Journal::new(events.iter().cloned())), u64::MAX)
    };
    let error = replay(&events, Health::Broken).err().unwrap();
    assert!(
        matches!(&error, VmError::Engine(EngineError::DiskDiverged(reason)) if reason.starts_with("disk 0")),
        "{error}"
    );

    // Nor can one follow that is not told what a failure left.
    let (_, mut events) = start.record(Health::Failing, 1);
    for event in &mut events {
        if let Input::DiskFailed { content: content @ FailedContent::Bytes(_), .. } = &mut event.input {
            *content = FailedContent::Unknown;
        }
    }
    let error = replay(&events, Health::Good).err().unwrap();
    assert!(matches!(error, VmError::Engine(EngineError::DiskDiverged(_))), "{error}");
}
