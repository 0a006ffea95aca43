//! virtio-blk whose requests are queued: what a guest's driver sees, and what is under way when the VM stands still.

use std::sync::Arc;

use machine::devices::virtio::block::{Block, BlockRestoreError, BlockState};
use machine::devices::virtio::testing::{Buffer, GuestDriver, HeldDisk, MemoryDisk, Posted};
use machine::devices::virtio::{MmioState, MmioTransport, NotifiedDevice};
use machine::irq::{IrqPin, IrqPins};
use memory::GuestRam;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

const SECTORS: usize = 32 << 10;
const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const ALL: u64 = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
/// What a status byte holds before it is written.
const UNANSWERED: u8 = 0;

struct Rig {
    disk: HeldDisk,
    ram: GuestRam,
    pins: Arc<IrqPins>,
    device: MmioTransport<Block>,
    driver: GuestDriver,
}

impl Rig {
    fn new(features: u64) -> Self {
        let (disk, ram, pins) = (HeldDisk::new(SECTORS * 512), GuestRam::new(128 << 20).unwrap(), IrqPins::new());
        let mut block = Block::new(Box::new(disk.clone()), "disk-0");
        block.queue_requests().unwrap();
        let device = MmioTransport::new(block, ram.dma().clone(), IrqPin::new(&pins, 5));
        let driver = GuestDriver::new(&ram);
        let mut rig = Self { disk, ram, pins, device, driver };
        rig.driver.start(&mut rig.device, features, 64);
        rig
    }

    fn post(&mut self, kind: u32, sector: u64, out: &[u8], read_len: u32) -> Posted {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let mut buffers = vec![Buffer::Out(&header)];
        buffers.extend((!out.is_empty()).then_some(Buffer::Out(out)));
        buffers.extend((read_len > 0).then_some(Buffer::In(read_len)));
        buffers.push(Buffer::In(1));
        let posted = self.driver.post(0, &buffers);
        self.driver.write(*posted.addresses.last().unwrap(), &[0xee]);
        posted
    }

    fn post_and_notify(&mut self, kind: u32, sector: u64, out: &[u8], read_len: u32) -> Posted {
        let posted = self.post(kind, sector, out, read_len);
        self.driver.notify(&mut self.device, 0);
        posted
    }

    /// Waits for what is under way, and answers it.
    fn settle(&mut self) {
        self.device.device().flush().unwrap();
        self.device.answer_requests();
    }

    /// Answers what ends until a request is used, which must be this one.
    fn wait_for(&mut self, posted: &Posted) -> u8 {
        let mut used = None;
        while used.is_none() {
            std::thread::yield_now();
            self.device.answer_requests();
            used = self.driver.take_used(0);
        }
        assert_eq!(used.unwrap().0.head, posted.head);
        self.status(posted)
    }

    fn status(&self, posted: &Posted) -> u8 {
        let mut status = [UNANSWERED];
        self.driver.read(*posted.addresses.last().unwrap(), &mut status);
        status[0]
    }

    fn request(&mut self, kind: u32, sector: u64, out: &[u8], read_len: u32) -> (u8, Vec<u8>) {
        let posted = self.post_and_notify(kind, sector, out, read_len);
        let status = self.wait_for(&posted);
        let mut data = vec![0; read_len as usize];
        if read_len > 0 {
            self.driver.read(posted.addresses[posted.addresses.len() - 2], &mut data);
        }
        (status, data)
    }

    /// The device as another process restores it, on another disk.
    fn restored(&self, is_queued: bool) -> (MmioTransport<Block>, HeldDisk) {
        let MmioState { transport, device } = self.device.save();
        let disk = HeldDisk::new(SECTORS * 512);
        let mut block = Block::restore(device, Box::new(disk.clone())).unwrap();
        if is_queued {
            block.queue_requests().unwrap();
        }
        let pin = IrqPin::new(&self.pins, 6);
        (MmioTransport::restore(transport, block, self.ram.dma().clone(), pin).unwrap(), disk)
    }
}

#[test]
fn requests_are_answered_as_by_a_disk_that_queues_nothing() {
    let mut rig = Rig::new(ALL);
    let data: Vec<u8> = (0..300 << 10).map(|n: usize| (n * 31 + n / 256) as u8).collect();
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 3, &data, 0).0, OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 3, &[], data.len() as u32), (OK, data));
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_GET_ID, 0, &[], 20), (OK, [&b"disk-0"[..], &[0; 14]].concat()));
    let range = [&4_u64.to_le_bytes()[..], &2_u32.to_le_bytes(), &[0; 4]].concat();
    assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range, 0).0, OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &range, 0).0, OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 4, &[], 1024), (OK, vec![0; 1024]));
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, SECTORS as u64, &[], 512).0, IOERR);
    assert_eq!(rig.request(99, 0, &[], 0).0, UNSUPP);
    let metrics = rig.device.device().metrics();
    assert_eq!((metrics.reads, metrics.writes, metrics.flushes, metrics.refused), (2, 1, 1, 2));
    assert_eq!((metrics.discards, metrics.write_zeroes, metrics.written_bytes), (1, 1, 300 << 10));
    rig.disk.disk.content().broken = true;
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0).0, IOERR);
    assert_eq!(rig.device.device().metrics().backend_errors, 1);
}

#[test]
fn a_driver_that_knows_no_flushes_gets_each_write_flushed() {
    let mut rig = Rig::new(0);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0).0, OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], 512).0, OK);
    assert_eq!(rig.disk.disk.content().log, ["write", "flush", "read"]);
}

#[test]
fn a_flush_that_hangs_holds_no_other_request_up() {
    let mut rig = Rig::new(ALL);
    rig.disk.hold(false, true);
    let flush = rig.post_and_notify(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
    rig.disk.wait_for_held(1);
    let write = rig.post_and_notify(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0);
    assert_eq!(rig.wait_for(&write), OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], 512), (OK, vec![1; 512]));
    rig.disk.hold(false, false);
    assert_eq!(rig.wait_for(&flush), OK);
}

#[test]
fn the_guest_sees_nothing_of_a_request_before_it_is_answered() {
    let mut rig = Rig::new(ALL);
    rig.disk.disk.content().bytes.fill(7);
    let read = rig.post_and_notify(VIRTIO_BLK_T_IN, 0, &[], 4096);
    rig.ram.harvest().acknowledge();
    // It has been done; nobody has answered it.
    rig.device.device().flush().unwrap();
    assert_eq!((rig.pins.levels(), rig.ram.dirty_pages_estimate()), (0, 0));
    assert!(rig.driver.take_used(0).is_none());
    assert_eq!(rig.device.save().device.in_flight.len(), 1);
    rig.device.answer_requests();
    assert_eq!(rig.status(&read), OK);
    assert_ne!(rig.pins.levels(), 0);
    assert!(rig.device.save().device.in_flight.is_empty());
}

#[test]
fn a_read_of_what_the_host_has_in_memory_is_answered_at_once() {
    let mut rig = Rig::new(ALL);
    rig.disk.disk.content().bytes.fill(7);
    rig.disk.set_cached(true);
    let read = rig.post_and_notify(VIRTIO_BLK_T_IN, 0, &[], 4096);
    assert_eq!((rig.driver.take_used(0).map(|(used, len)| (used.head, len))), Some((read.head, 4097)));
    assert_eq!((rig.status(&read), rig.device.device().metrics().reads), (OK, 1));
    // One that fails is left to those who can wait, and say why.
    rig.disk.disk.content().broken = true;
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], 4096).0, IOERR);
    // So is one that would keep the device for long.
    rig.disk.disk.content().broken = false;
    rig.post_and_notify(VIRTIO_BLK_T_IN, 0, &[], 1 << 20);
    assert_eq!(rig.device.save().device.in_flight.len(), 1);
}

#[test]
fn what_was_under_way_is_done_by_whoever_goes_on_from_the_saved_state() {
    for is_queued in [false, true] {
        let mut rig = Rig::new(ALL);
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 9, &[3; 512], 0).0, OK);
        rig.disk.hold(true, true);
        let write = rig.post_and_notify(VIRTIO_BLK_T_OUT, 8, &[9; 1024], 0);
        let flush = rig.post_and_notify(VIRTIO_BLK_T_FLUSH, 0, &[], 0);
        rig.disk.wait_for_held(2);
        let (mut other, disk) = rig.restored(is_queued);
        assert_eq!(other.save(), rig.device.save());
        assert!(disk.disk.content().log.is_empty());
        other.carry_on();
        other.device().flush().unwrap();
        other.answer_requests();
        assert!(other.save().device.in_flight.is_empty());
        assert_eq!((rig.status(&write), rig.status(&flush)), (OK, OK));
        let heads = [rig.driver.take_used(0).unwrap().0.head, rig.driver.take_used(0).unwrap().0.head];
        assert!(heads == [write.head, flush.head] || heads == [flush.head, write.head]);
        assert_eq!(disk.disk.content().bytes[8 * 512..][..1024], [9; 1024]);
        // What had been answered is not done again.
        assert_eq!(disk.disk.content().log.iter().filter(|name| **name == "write").count(), 1);
        rig.disk.hold(false, false);
    }
}

#[test]
fn a_queue_that_was_notified_of_and_not_looked_at_is_part_of_the_state() {
    let mut rig = Rig::new(ALL);
    let write = rig.post(VIRTIO_BLK_T_OUT, 8, &[9; 512], 0);
    rig.device.notified(0);
    let (mut other, _) = rig.restored(false);
    assert!(!other.serve_notified());
    assert_eq!(rig.status(&write), OK);
    // A queue that does not exist is none.
    other.notified(31);
    other.notified(1 << 20);
    assert!(!other.serve_notified());
}

#[test]
fn a_write_from_before_a_reset_does_not_overtake_one_from_after_it() {
    let mut rig = Rig::new(ALL);
    rig.disk.hold(true, false);
    rig.post_and_notify(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0);
    rig.disk.wait_for_held(1);
    rig.driver.write_register(&mut rig.device, VIRTIO_MMIO_STATUS, 0);
    rig.driver.start(&mut rig.device, ALL, 64);
    let new = rig.post_and_notify(VIRTIO_BLK_T_OUT, 0, &[2; 512], 0);
    rig.device.answer_requests();
    assert!(rig.driver.take_used(0).is_none());
    rig.disk.hold(false, false);
    assert_eq!(rig.wait_for(&new), OK);
    assert_eq!(rig.disk.disk.content().bytes[..512], [2; 512]);
    assert_eq!(rig.disk.disk.content().log, ["write", "write"]);
    // Nothing of the first one's is left.
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], 512), (OK, vec![2; 512]));
}

#[test]
fn requests_under_way_take_a_bounded_amount_of_memory() {
    let mut rig = Rig::new(ALL);
    rig.disk.hold(true, false);
    let data = vec![5; 8 << 20];
    let large = SECTORS as u64 - (data.len() / 512) as u64;
    // 32 MiB may be under way; the fourth request goes beyond that by its header.
    (0..6).for_each(|_| drop(rig.post(VIRTIO_BLK_T_OUT, large, &data, 0)));
    rig.driver.notify(&mut rig.device, 0);
    assert_eq!(rig.device.save().device.in_flight.len(), 4);
    rig.driver.notify(&mut rig.device, 0);
    assert_eq!(rig.device.save().device.in_flight.len(), 4);
    rig.disk.hold(false, false);
    rig.settle();
    rig.settle();
    assert_eq!(std::iter::from_fn(|| rig.driver.take_used(0)).count(), 6);
}

#[test]
fn a_forged_state_of_requests_under_way_is_refused_or_does_no_harm() {
    let mut rig = Rig::new(ALL);
    rig.disk.hold(true, false);
    rig.post_and_notify(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0);
    let MmioState { transport, device } = rig.device.save();
    let restore = |state: BlockState| Block::restore(state, Box::new(MemoryDisk::new(SECTORS * 512, false)));
    let chain = device.in_flight[0].clone();
    let many = BlockState { in_flight: vec![chain.clone(); 257], ..device.clone() };
    assert_eq!(restore(many).err(), Some(BlockRestoreError::TooManyRequests(257)));
    let mut long = chain.clone();
    long.readable = vec![(0, 1); 1025];
    assert!(matches!(
        restore(BlockState { in_flight: vec![long], ..device.clone() }),
        Err(BlockRestoreError::Request(_))
    ));
    let mut forged = chain;
    forged.head = u16::MAX;
    forged.readable = vec![(u64::MAX - 3, u32::MAX); 3];
    let block = restore(BlockState { in_flight: vec![forged], ..device }).unwrap();
    let pin = IrqPin::new(&rig.pins, 6);
    let mut other = MmioTransport::restore(transport, block, rig.ram.dma().clone(), pin).unwrap();
    other.carry_on();
    assert!(other.fault().is_some());
    rig.disk.hold(false, false);
}
