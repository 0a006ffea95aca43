//! Devices under hostile guests. Each function takes one case, any bytes at all, says whether the device still works
//! at its end (not `DEVICE_NEEDS_RESET`), and panics if a promise is broken:
//!
//! * no panic, endless loop or unbounded allocation inside the device,
//! * every page that the device wrote is dirty,
//! * the interrupt pin says what the interrupt status says,
//! * a device restored from its saved state has that state, and guest and world cannot tell it from one that was not (of a disk that
//!   queues its requests only the first: overlapping requests that are under way together may end in any order).

use std::fmt::Debug;

use memory::{DmaMemory, GuestRam, PAGE_BYTES};
use network::{Checksum, FrameOffload, Gso, Segmentation};
use spec::MacAddr;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::backends::{MemoryDisk, MemoryNetwork};
use super::script::{QUEUE_SIZE, RAM_BYTES, Step, Steps, ring_addresses};
use crate::bus::BusDevice;
use crate::devices::virtio::block::{Block, BlockState};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::mmio::{DeviceStatus, MmioState, MmioTransport, NotifiedDevice, WINDOW_BYTES};
use crate::devices::virtio::net::{Net, NetConfig};
use crate::devices::virtio::rng::{Rng, SeededEntropy};
use crate::irq::{IrqPin, IrqPins};

/// Steps of a case that are done; a fuzzer's longer ones cost time and find nothing.
const STEPS_MAX: usize = 400;
const RING_FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A device type under test, and its backend.
trait Target {
    type Device: VirtioDevice<State: Clone + Debug + PartialEq>;
    /// What the device did to the world.
    type World: Debug + PartialEq;

    fn build(&self) -> Self::Device;
    fn rebuild(&self, state: <Self::Device as VirtioDevice>::State) -> Self::Device;
    fn input(&self, transport: &mut MmioTransport<Self::Device>, bytes: &[u8]);
    fn world(&self) -> Self::World;

    /// What the host's side does after the step with this number.
    fn after_step(&self, _transport: &mut MmioTransport<Self::Device>, _number: usize) {}
}

/// One case for virtio-blk.
pub fn block(data: &[u8]) -> bool {
    // An odd first byte makes the disk read-only.
    let read_only = data.first().is_some_and(|byte| byte & 1 != 0);
    run(|| BlockTarget(MemoryDisk::new(64 << 10, read_only)), data.get(1..).unwrap_or_default())
}

/// One case for virtio-blk with requests that are queued, and answered some steps later.
pub fn queued_block(data: &[u8]) -> bool {
    let read_only = data.first().is_some_and(|byte| byte & 1 != 0);
    let target = QueuedBlockTarget(BlockTarget(MemoryDisk::new(64 << 10, read_only)));
    let steps: Vec<_> = Steps::new(data.get(1..).unwrap_or_default()).take(STEPS_MAX).collect();
    let outcome = run_steps(&target, &steps, true);
    !outcome.state.transport.status.has(DeviceStatus::NEEDS_RESET)
}

/// One case for virtio-net.
pub fn net(data: &[u8]) -> bool {
    run(|| NetTarget(MemoryNetwork::default()), data)
}

/// One case for virtio-rng.
pub fn rng(data: &[u8]) -> bool {
    run(|| RngTarget, data)
}

struct BlockTarget(MemoryDisk);

impl Target for BlockTarget {
    type Device = Block;
    type World = Vec<u8>;

    fn build(&self) -> Block {
        Block::new(Box::new(self.0.clone()), "fuzz")
    }

    fn rebuild(&self, state: <Block as VirtioDevice>::State) -> Block {
        Block::restore(state, Box::new(self.0.clone())).expect("own state fits")
    }

    fn input(&self, _transport: &mut MmioTransport<Block>, bytes: &[u8]) {
        self.0.content().broken = bytes.first().is_some_and(|byte| byte & 1 != 0);
    }

    fn world(&self) -> Vec<u8> {
        self.0.content().bytes.clone()
    }
}

/// Steps between two answers.
const STEPS_PER_ANSWER: usize = 3;

struct QueuedBlockTarget(BlockTarget);

impl Target for QueuedBlockTarget {
    type Device = Block;
    type World = Vec<u8>;

    fn build(&self) -> Block {
        let mut block = self.0.build();
        block.queue_requests().expect("an eventfd");
        block
    }

    fn rebuild(&self, state: BlockState) -> Block {
        let mut block = self.0.rebuild(state);
        block.queue_requests().expect("an eventfd");
        block
    }

    fn input(&self, transport: &mut MmioTransport<Block>, bytes: &[u8]) {
        self.0.input(transport, bytes);
    }

    fn world(&self) -> Vec<u8> {
        self.0.world()
    }

    fn after_step(&self, transport: &mut MmioTransport<Block>, number: usize) {
        transport.carry_on();
        if number.is_multiple_of(STEPS_PER_ANSWER) {
            // Fails if the disk is broken. It is done with all requests in any case.
            let _ = transport.device().flush();
            transport.answer_requests();
            transport.serve_notified();
        }
    }
}

struct NetTarget(MemoryNetwork);

impl Target for NetTarget {
    type Device = Net;
    type World = Vec<(Vec<u8>, FrameOffload)>;

    fn build(&self) -> Net {
        Net::new(NetConfig { mac: MacAddr::for_vm("fuzz", 0), mtu: 1500 }, Box::new(self.0.clone()))
    }

    fn rebuild(&self, state: <Net as VirtioDevice>::State) -> Net {
        Net::restore(state, Box::new(self.0.clone())).expect("own state fits")
    }

    fn input(&self, transport: &mut MmioTransport<Net>, bytes: &[u8]) {
        let (kind, rest) = bytes.split_first().unwrap_or((&0, &[]));
        match kind % 4 {
            0 => self.0.content().full = !rest.is_empty(),
            1 => transport.device_mut().retry_transmit(),
            2 => transport.set_link(!rest.is_empty()),
            _ => {
                let (len, rest) = rest.split_first().unwrap_or((&0, &[]));
                let frame = [rest, &vec![*len; usize::from(*len) << (kind >> 4).min(9)]].concat();
                let gso = match kind >> 2 & 3 {
                    0 => Gso::None,
                    1 => Gso::TcpV4(Segmentation { mss: 1460, header_len: 54 }),
                    _ => Gso::TcpV6(Segmentation { mss: 1440, header_len: 74 }),
                };
                let checksum =
                    if gso == Gso::None { Checksum::Complete } else { Checksum::Partial { start: 34, offset: 16 } };
                let _ = transport.deliver(&frame, FrameOffload { checksum, gso });
            }
        }
    }

    fn world(&self) -> Self::World {
        self.0.content().sent.clone()
    }
}

struct RngTarget;

impl Target for RngTarget {
    type Device = Rng;
    type World = ();

    fn build(&self) -> Rng {
        Rng::new(Box::new(SeededEntropy::new(1, 0)))
    }

    fn rebuild(&self, state: <Rng as VirtioDevice>::State) -> Rng {
        let source = SeededEntropy::new(1, state.taken_bytes);
        Rng::restore(state, Box::new(source))
    }

    fn input(&self, _transport: &mut MmioTransport<Rng>, _bytes: &[u8]) {}

    fn world(&self) {}
}

/// Guest memory, and a copy of it in which only the guest has written.
struct Memory {
    ram: GuestRam,
    guests_view: Vec<u8>,
}

impl Memory {
    /// Writes as a vCPU whose stores leave no trace in the dirty set, so that what is dirty was written by the device.
    fn write(&mut self, address: u64, bytes: &[u8]) {
        for (address, &byte) in (address..).zip(bytes) {
            if let Some(mirror) = self.guests_view.get_mut(address as usize) {
                *mirror = byte;
                self.ram.store_premarked(address, byte);
            }
        }
    }

    fn check_dirty_pages(&self) {
        let mut page = [0; PAGE_BYTES as usize];
        for (number, guests_view) in (0..).zip(self.guests_view.chunks(PAGE_BYTES as usize)) {
            assert!(self.ram.read_offset(number * PAGE_BYTES, &mut page));
            assert!(page == guests_view || self.ram.is_dirty(number), "device wrote page {number} unnoticed");
        }
    }
}

/// What is left of a case.
#[derive(Debug, PartialEq)]
struct Outcome<S, W> {
    state: MmioState<S>,
    ram: Vec<u8>,
    world: W,
}

fn run<T: Target>(target: impl Fn() -> T, data: &[u8]) -> bool {
    let steps: Vec<_> = Steps::new(data).take(STEPS_MAX).collect();
    let outcome = run_steps(&target(), &steps, true);
    if steps.contains(&Step::SaveAndRestore) {
        let uninterrupted = run_steps(&target(), &steps, false);
        assert!(outcome == uninterrupted, "restored {outcome:?}\nuninterrupted {uninterrupted:?}");
    }
    !outcome.state.transport.status.has(DeviceStatus::NEEDS_RESET)
}

/// Zeroed RAM with no dirty pages; the same in each case, as mapping takes longer than most cases.
fn clean_ram() -> GuestRam {
    thread_local! {
        static RAM: GuestRam = GuestRam::new(RAM_BYTES).expect("a few pages of RAM");
    }
    let ram = RAM.with(GuestRam::clone);
    assert!(ram.write_offset(0, &[0; RAM_BYTES as usize]));
    ram.harvest().acknowledge();
    ram
}

fn run_steps<T: Target>(
    target: &T,
    steps: &[Step],
    restoring: bool,
) -> Outcome<<T::Device as VirtioDevice>::State, T::World> {
    let ram = clean_ram();
    let dma: DmaMemory = ram.dma().clone();
    let mut memory = Memory { ram, guests_view: vec![0; RAM_BYTES as usize] };
    let pin = IrqPin::new(&IrqPins::new(), 5);
    let mut device = MmioTransport::new(target.build(), dma.clone(), pin.clone());
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::WriteWindow { offset, ref bytes } => {
                // The bus hands over 1 to 8 bytes within the window.
                let bytes = if bytes.is_empty() { &[0][..] } else { bytes };
                device.write(u64::from(offset) % WINDOW_BYTES, bytes.get(..8).unwrap_or(bytes));
            }
            Step::ReadWindow { offset, len } => {
                let mut data = [0xff; 8];
                device.read(u64::from(offset) % WINDOW_BYTES, &mut data[..=usize::from(len % 8)]);
            }
            Step::WriteRam { address, ref bytes } => memory.write(u64::from(address), bytes),
            Step::Descriptor { queue, index, address, high, len, flags, next } => {
                let at = ring_addresses(u64::from(queue % 2))[0] + u64::from(index) * 16;
                let address = u64::from(address) | u64::from(high) << 56;
                memory.write(at, &address.to_le_bytes());
                memory.write(at + 8, &len.to_le_bytes());
                memory.write(at + 12, &[flags, 0, next, 0]);
            }
            Step::MakeAvailable { queue, head } => {
                let avail = ring_addresses(u64::from(queue % 2))[1];
                let mut index = [0; 2];
                assert!(memory.ram.read_offset(avail + 2, &mut index));
                let index = u16::from_le_bytes(index);
                memory.write(avail + 4 + u64::from(index % QUEUE_SIZE) * 2, &head.to_le_bytes());
                memory.write(avail + 2, &index.wrapping_add(1).to_le_bytes());
            }
            Step::SetAvailIndex { queue, index } => {
                memory.write(ring_addresses(u64::from(queue % 2))[1] + 2, &index.to_le_bytes());
            }
            Step::Notify { queue } => write(&mut device, VIRTIO_MMIO_QUEUE_NOTIFY, u32::from(queue % 4)),
            Step::Acknowledge => write(&mut device, VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX),
            Step::SaveAndRestore if restoring => device = save_and_restore(target, &device, &dma, &pin),
            Step::SaveAndRestore => {}
            Step::Initialise { features } => initialise(&mut device, features),
            Step::Input { ref bytes } => target.input(&mut device, bytes),
        }
        target.after_step(&mut device, number);
        let mut status = [0; 4];
        device.read(u64::from(VIRTIO_MMIO_INTERRUPT_STATUS), &mut status);
        assert_eq!(pin.is_asserted(), status != [0; 4], "pin and interrupt status differ");
    }
    memory.check_dirty_pages();
    let mut ram = vec![0; RAM_BYTES as usize];
    assert!(memory.ram.read_offset(0, &mut ram));
    Outcome { state: device.save(), ram, world: target.world() }
}

fn save_and_restore<T: Target>(
    target: &T,
    device: &MmioTransport<T::Device>,
    dma: &DmaMemory,
    pin: &IrqPin,
) -> MmioTransport<T::Device> {
    let saved = device.save();
    let MmioState { transport, device } = saved.clone();
    let restored = MmioTransport::restore(transport, target.rebuild(device), dma.clone(), pin.clone());
    let restored = restored.expect("own state fits");
    assert_eq!(restored.save(), saved, "a restored device differs");
    restored
}

fn write(device: &mut dyn BusDevice, register: u32, value: u32) {
    device.write(u64::from(register), &value.to_le_bytes());
}

fn initialise<D: VirtioDevice>(device: &mut MmioTransport<D>, features: u64) {
    let offered = device.device().offered_features() | RING_FEATURES;
    let features = features & offered | 1 << VIRTIO_F_VERSION_1;
    for status in [0, 1, 3] {
        write(device, VIRTIO_MMIO_STATUS, status);
    }
    for selector in [0, 1] {
        write(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
        write(device, VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * selector)) as u32);
    }
    write(device, VIRTIO_MMIO_STATUS, 11);
    for queue in 0..D::QUEUE_SIZES_MAX.len() {
        let [table, avail, used] = ring_addresses(queue as u64);
        write(device, VIRTIO_MMIO_QUEUE_SEL, queue as u32);
        write(device, VIRTIO_MMIO_QUEUE_NUM, u32::from(QUEUE_SIZE));
        write(device, VIRTIO_MMIO_QUEUE_DESC_LOW, table as u32);
        write(device, VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail as u32);
        write(device, VIRTIO_MMIO_QUEUE_USED_LOW, used as u32);
        write(device, VIRTIO_MMIO_QUEUE_READY, 1);
    }
    write(device, VIRTIO_MMIO_STATUS, 15);
}
