//! virtio-blk as a guest's driver sees it.

use std::sync::Arc;

use machine::devices::virtio::block::{Block, BlockBackend, BlockRestoreError, ImageDisk};
use machine::devices::virtio::mmio::DeviceStatus;
use machine::devices::virtio::testing::{Buffer, GuestDriver, MemoryDisk};
use machine::devices::virtio::{MmioState, MmioTransport, QueueError};
use machine::irq::{IrqPin, IrqPins};
use memory::{GuestRam, PAGE_BYTES};
use storage::disk::{DiskImage, DiskOptions, create_qcow2, create_raw};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

const SECTORS: usize = 2048;
const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const ALL: u64 = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

struct Rig {
    disk: MemoryDisk,
    ram: GuestRam,
    pins: Arc<IrqPins>,
    device: MmioTransport<Block>,
    driver: GuestDriver,
}

impl Rig {
    fn new(features: u64) -> Self {
        Self::with_disk(MemoryDisk::new(SECTORS * 512, false), features)
    }

    fn with_disk(disk: MemoryDisk, features: u64) -> Self {
        Self::with_backend(Box::new(disk.clone()), disk, features)
    }

    fn with_backend(backend: Box<dyn BlockBackend>, disk: MemoryDisk, features: u64) -> Self {
        let ram = GuestRam::new(32 << 20).unwrap();
        let pins = IrqPins::new();
        let device = MmioTransport::new(Block::new(backend, "disk-0"), ram.dma().clone(), pin(&pins));
        let driver = GuestDriver::new(&ram);
        let mut rig = Self { disk, ram, pins, device, driver };
        rig.driver.start(&mut rig.device, features, 64);
        rig
    }

    /// Does one request; returns its status and the data read.
    fn request(&mut self, kind: u32, sector: u64, out: &[u8], read_len: u32) -> (u8, Vec<u8>) {
        let header = header(kind, sector);
        let mut buffers = vec![Buffer::Out(&header)];
        buffers.extend((!out.is_empty()).then_some(Buffer::Out(out)));
        buffers.extend((read_len > 0).then_some(Buffer::In(read_len)));
        buffers.push(Buffer::In(1));
        let posted = self.driver.post(0, &buffers);
        self.driver.notify(&mut self.device, 0);
        let (used, written) = self.driver.take_used(0).expect("request is answered");
        assert_eq!(used.head, posted.head);
        let mut status = [0xee];
        self.driver.read(*posted.addresses.last().unwrap(), &mut status);
        let mut data = vec![0; read_len as usize];
        if read_len > 0 {
            self.driver.read(posted.addresses[posted.addresses.len() - 2], &mut data);
        }
        if status[0] == OK {
            assert_eq!(written, read_len + 1);
        }
        (status[0], data)
    }

    fn operations(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.disk.content().log)
    }
}

fn pin(pins: &Arc<IrqPins>) -> IrqPin {
    IrqPin::new(pins, 5)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + n / 256 + seed) as u8).collect()
}

#[test]
fn the_window_describes_a_modern_disk() {
    let mut rig = Rig::new(ALL);
    let mut read = |register| rig.driver.read_register(&mut rig.device, register);
    assert_eq!(read(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(read(VIRTIO_MMIO_DEVICE_ID), 2);
    assert_eq!(read(VIRTIO_MMIO_CONFIG), SECTORS as u32);
    // seg_max, blk_size
    assert_eq!([read(VIRTIO_MMIO_CONFIG + 12), read(VIRTIO_MMIO_CONFIG + 20)], [254, 512]);
    assert_eq!([read(VIRTIO_MMIO_SHM_LEN_LOW), read(VIRTIO_MMIO_SHM_LEN_HIGH)], [u32::MAX; 2]);
    assert_eq!(read(VIRTIO_MMIO_CONFIG + 0xfc), 0);
}

#[test]
fn what_is_written_is_read_back_whatever_the_buffers() {
    for indirect in [false, true] {
        let mut rig = Rig::new(ALL);
        rig.driver.indirect = indirect;
        // Longer than the device copies at a time.
        let data = pattern(300 << 10, 1);
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 3, &data, 0).0, OK);
        assert_eq!(rig.disk.content().bytes[3 * 512..][..data.len()], data);
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 3, &[], data.len() as u32), (OK, data.clone()));

        // Header and data split at odd places, the status in the last data buffer (virtio 1.2, 2.7.4: framing is free).
        let header = header(VIRTIO_BLK_T_IN, 3);
        let parts = [Buffer::Out(&header[..5]), Buffer::Out(&header[5..]), Buffer::In(700), Buffer::In(325)];
        let posted = rig.driver.post(0, &parts);
        rig.driver.notify(&mut rig.device, 0);
        assert_eq!(rig.driver.take_used(0).unwrap().1, 1025);
        let (mut first, mut second) = ([0; 700], [0; 325]);
        rig.driver.read(posted.addresses[2], &mut first);
        rig.driver.read(posted.addresses[3], &mut second);
        assert_eq!([&first[..], &second[..324]].concat(), data[..1024]);
        assert_eq!(second[324], OK);
    }
}

#[test]
fn a_flush_reaches_the_backend_before_it_is_answered() {
    let mut rig = Rig::new(ALL);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0).0, OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
    assert_eq!(rig.operations(), ["write", "flush"]);
    rig.disk.content().broken = true;
    assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, IOERR);
    assert_eq!(rig.device.device().metrics().backend_errors, 1);
}

#[test]
fn a_failure_ends_the_work_on_the_queue_until_the_interrupt_is_acknowledged() {
    let mut rig = Rig::new(ALL);
    rig.disk.content().broken = true;
    for sector in 0..3 {
        rig.driver.post(0, &[Buffer::Out(&header(VIRTIO_BLK_T_IN, sector)), Buffer::In(512), Buffer::In(1)]);
    }
    rig.driver.notify(&mut rig.device, 0);
    for _ in 0..3 {
        assert!(rig.driver.take_used(0).is_some());
        assert!(rig.driver.take_used(0).is_none());
        assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_VRING);
    }
}

#[test]
fn a_driver_that_knows_no_flushes_gets_each_write_flushed() {
    let mut rig = Rig::new(0);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0).0, OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], 512).0, OK);
    assert_eq!(rig.operations(), ["write", "flush", "read"]);
}

#[test]
fn disk_images_of_both_formats_keep_what_a_guest_wrote() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["disk.raw", "disk.qcow2"] {
        let path = folder.path().join(name);
        if name.ends_with("raw") { create_raw(&path, 1 << 20) } else { create_qcow2(&path, 1 << 20, None) }.unwrap();
        let open = || DiskImage::open(&path, DiskOptions::default()).unwrap();
        let mut rig = Rig::with_backend(Box::new(ImageDisk::new(open())), MemoryDisk::default(), ALL);
        let data = pattern(200 << 10, 3);
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 7, &data, 0).0, OK);
        assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(8, 2, 0), 0).0, OK);
        assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &range(20, 1, 0), 0).0, OK);
        assert_eq!(rig.request(VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
        drop(rig);
        let mut rig = Rig::with_backend(Box::new(ImageDisk::new(open())), MemoryDisk::default(), ALL);
        let mut expected = data;
        expected[512..3 * 512].fill(0);
        expected[13 * 512..14 * 512].fill(0);
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, 7, &[], expected.len() as u32), (OK, expected), "{name}");
    }
}

#[test]
fn discard_and_write_zeroes_take_several_ranges_or_none() {
    let mut rig = Rig::new(ALL);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &vec![7; 64 << 10], 0).0, OK);
    rig.operations();
    let two = [range(1, 2, 0), range(10, 5, 0)].concat();
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &two, 0).0, OK);
    assert_eq!(rig.operations(), ["discard", "discard"]);
    let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(20, 3, unmap), 0).0, OK);
    assert_eq!(rig.operations(), ["write_zeroes"]);
    let bytes = rig.disk.content().bytes.clone();
    assert!(bytes[20 * 512..23 * 512].iter().all(|&byte| byte == 0));
    assert!(bytes[19 * 512..20 * 512].iter().chain(&bytes[23 * 512..24 * 512]).all(|&byte| byte == 7));

    // One bad range spoils the request before anything is done.
    let bad = [range(1, 2, 0), range(SECTORS as u64 - 1, 2, 0)].concat();
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &bad, 0).0, IOERR);
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &range(u64::MAX, 2, 0), 0).0, IOERR);
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &range(0, u32::MAX, 0), 0).0, IOERR);
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &range(0, 1, unmap), 0).0, UNSUPP);
    assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(0, 1, 4), 0).0, UNSUPP);
    assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[0; 17], 0).0, IOERR);
    assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[0; 17 * 16], 0).0, IOERR);
    assert!(rig.operations().is_empty());
}

#[test]
fn requests_beyond_the_end_are_errors_and_nothing_is_done() {
    let mut rig = Rig::new(ALL);
    let last = SECTORS as u64 - 1;
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, last, &[], 512).0, OK);
    rig.operations();
    for (sector, len) in [(last, 1024), (last + 1, 512), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 513), (0, 100)] {
        assert_eq!(rig.request(VIRTIO_BLK_T_IN, sector, &[], len).0, IOERR, "read {len} at {sector}");
        let data = vec![1; len as usize];
        assert_eq!(rig.request(VIRTIO_BLK_T_OUT, sector, &data, 0).0, IOERR, "write {len} at {sector}");
    }
    assert!(rig.operations().is_empty());
    assert_eq!(rig.request(0x99, 0, &[], 512).0, UNSUPP);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, last, &[], 512).0, OK);
    assert_eq!(rig.device.device().metrics().refused, 13);
}

#[test]
fn a_read_only_disk_offers_and_does_no_writes() {
    let mut rig = Rig::with_disk(MemoryDisk::new(SECTORS * 512, true), 1 << VIRTIO_BLK_F_RO);
    let offered = rig.driver.offered_features(&mut rig.device);
    assert_eq!(offered & (1 << VIRTIO_BLK_F_RO | ALL), 1 << VIRTIO_BLK_F_RO | 1 << VIRTIO_BLK_F_FLUSH);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], 512).0, OK);
    assert_eq!(rig.request(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0).0, IOERR);
    assert_eq!(rig.request(VIRTIO_BLK_T_DISCARD, 0, &range(0, 1, 0), 0).0, IOERR);
    assert_eq!(rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(0, 1, 0), 0).0, IOERR);
    assert_eq!(rig.operations(), ["read"]);
}

#[test]
fn the_identity_is_padded_with_zeros() {
    let mut rig = Rig::new(ALL);
    let (status, id) = rig.request(VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert_eq!((status, &id[..]), (OK, &b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]));
}

#[test]
fn one_notification_serves_all_requests_with_one_interrupt() {
    let mut rig = Rig::new(ALL | 1 << VIRTIO_RING_F_EVENT_IDX);
    let mut posted = Vec::new();
    for sector in 0..10 {
        let header = header(VIRTIO_BLK_T_OUT, sector);
        let data = vec![sector as u8 + 1; 512];
        posted.push(rig.driver.post(0, &[Buffer::Out(&header), Buffer::Out(&data), Buffer::In(1)]));
    }
    assert_eq!(rig.pins.levels(), 0);
    rig.driver.notify(&mut rig.device, 0);
    assert_eq!(rig.pins.levels(), 1 << 5);
    for expected in &posted {
        assert_eq!(rig.driver.take_used(0).unwrap().0.head, expected.head);
    }
    assert!(rig.driver.take_used(0).is_none());
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_VRING);
    assert_eq!(rig.pins.levels(), 0);
    assert_eq!(rig.disk.content().bytes[9 * 512], 10);
    // The device wants to hear of the next request.
    assert_eq!(rig.driver.avail_event(0), 10);
}

#[test]
fn event_indices_hold_interrupts_back() {
    let mut rig = Rig::new(ALL | 1 << VIRTIO_RING_F_EVENT_IDX);
    // Interrupt when the third request is done.
    rig.driver.set_used_event(0, 2);
    for done in 1..=4 {
        rig.request(VIRTIO_BLK_T_IN, 0, &[], 512);
        let expected = if done == 3 { VIRTIO_MMIO_INT_VRING } else { 0 };
        assert_eq!(rig.driver.take_interrupt(&mut rig.device), expected, "after request {done}");
    }
}

#[test]
fn without_event_indices_the_flag_holds_interrupts_back() {
    let mut rig = Rig::new(ALL);
    let avail = rig.driver.ring_addresses(0)[1];
    rig.driver.write(avail, &1u16.to_le_bytes());
    rig.request(VIRTIO_BLK_T_IN, 0, &[], 512);
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), 0);
    rig.driver.write(avail, &0u16.to_le_bytes());
    rig.request(VIRTIO_BLK_T_IN, 0, &[], 512);
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_VRING);
}

#[test]
fn much_work_is_done_in_turns_with_the_guest() {
    let mut rig = Rig::with_disk(MemoryDisk::new(16 << 20, false), ALL | 1 << VIRTIO_RING_F_EVENT_IDX);
    // No interrupt wanted for a long time.
    rig.driver.set_used_event(0, 1000);
    for _ in 0..20 {
        let header = header(VIRTIO_BLK_T_IN, 0);
        rig.driver.post(0, &[Buffer::Out(&header), Buffer::In(1 << 20), Buffer::In(1)]);
    }
    rig.driver.notify(&mut rig.device, 0);
    let mut turns = Vec::new();
    loop {
        turns.push(std::iter::from_fn(|| rig.driver.take_used(0)).count());
        // The device must interrupt, as the driver need not notify again.
        if rig.driver.take_interrupt(&mut rig.device) == 0 {
            break;
        }
    }
    assert_eq!(turns, [8, 8, 4]);
}

#[test]
fn every_page_the_device_writes_is_dirty_and_no_other() {
    let mut rig = Rig::new(ALL);
    rig.disk.content().bytes.fill(5);
    let header = header(VIRTIO_BLK_T_IN, 0);
    let posted = rig.driver.post(0, &[Buffer::Out(&header), Buffer::In(3 * 4096), Buffer::In(1)]);
    rig.ram.harvest().acknowledge();
    rig.driver.notify(&mut rig.device, 0);
    let data = posted.addresses[1] / PAGE_BYTES;
    let used_ring = rig.driver.ring_addresses(0)[2] / PAGE_BYTES;
    let expected = [used_ring, data, data + 1, data + 2, posted.addresses[2] / PAGE_BYTES];
    let harvest = rig.ram.harvest();
    assert_eq!(harvest.pages().collect::<Vec<_>>(), expected);
    harvest.acknowledge();
}

#[test]
fn a_restored_disk_goes_on_where_it_was_saved() {
    let mut rig = Rig::new(ALL | 1 << VIRTIO_RING_F_EVENT_IDX);
    for _ in 0..70 {
        rig.request(VIRTIO_BLK_T_OUT, 0, &[1; 512], 0);
    }
    // An interrupt is pending, and a request is available that nobody has notified of.
    rig.driver.set_used_event(0, 70);
    rig.request(VIRTIO_BLK_T_OUT, 1, &[2; 512], 0);
    let header = header(VIRTIO_BLK_T_IN, 1);
    let posted = rig.driver.post(0, &[Buffer::Out(&header), Buffer::In(512), Buffer::In(1)]);

    let saved = rig.device.save();
    let bytes = postcard::to_allocvec(&saved).unwrap();
    let state: MmioState<_> = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(state, saved);
    let block = Block::restore(state.device, Box::new(rig.disk.clone())).unwrap();
    let pins = IrqPins::new();
    rig.device = MmioTransport::restore(state.transport, block, rig.ram.dma().clone(), pin(&pins)).unwrap();
    assert_eq!(pins.levels(), 1 << 5);
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_VRING);
    assert_eq!(pins.levels(), 0);
    rig.driver.notify(&mut rig.device, 0);
    assert_eq!(rig.driver.take_used(0).unwrap().0.head, posted.head);
    let mut data = [0; 512];
    rig.driver.read(posted.addresses[1], &mut data);
    assert_eq!(data, [2; 512]);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let rig = Rig::new(ALL);
    let MmioState { transport, device } = rig.device.save();
    let small = MemoryDisk::new(512, false);
    let refused = Block::restore(device.clone(), Box::new(small)).err().unwrap();
    assert_eq!(refused, BlockRestoreError::Capacity { saved: SECTORS as u64, found: 1 });
    let locked = MemoryDisk::new(SECTORS * 512, true);
    assert_eq!(Block::restore(device.clone(), Box::new(locked)).err(), Some(BlockRestoreError::ReadOnly));

    let restore = |change: fn(&mut machine::devices::virtio::TransportState)| {
        let mut transport = transport.clone();
        change(&mut transport);
        let block = Block::restore(device.clone(), Box::new(rig.disk.clone())).unwrap();
        MmioTransport::restore(transport, block, rig.ram.dma().clone(), pin(&rig.pins)).map(drop)
    };
    assert!(restore(|_| {}).is_ok());
    assert!(restore(|state| state.device_id = 1).is_err());
    assert!(restore(|state| state.queues.clear()).is_err());
    assert!(restore(|state| state.driver_features |= 1 << 60).is_err());
    assert!(restore(|state| state.queues[0].setup.size = 0).is_err());
    assert!(restore(|state| state.queues[0].setup.device_area = 1 << 40).is_err());
}

#[test]
fn a_broken_chain_stops_the_device_until_it_is_reset() {
    let mut rig = Rig::new(ALL);
    // A chain of one descriptor that names itself as the next.
    let table = rig.driver.ring_addresses(0)[0];
    let header = header(VIRTIO_BLK_T_IN, 0);
    let posted = rig.driver.post(0, &[Buffer::Out(&header)]);
    let flags_and_next = [1, 0, posted.head as u8, 0];
    rig.driver.write(table + u64::from(posted.head) * 16 + 12, &flags_and_next);
    rig.driver.notify(&mut rig.device, 0);
    assert!(rig.device.status().has(DeviceStatus::NEEDS_RESET));
    assert_eq!(rig.device.fault(), Some(QueueError::BrokenChain));
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_CONFIG);
    rig.driver.notify(&mut rig.device, 0);
    assert!(rig.driver.take_used(0).is_none());

    rig.driver.start(&mut rig.device, ALL, 64);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], 512).0, OK);
}

#[test]
fn buffers_outside_ram_are_an_error_of_their_request() {
    let mut rig = Rig::new(ALL);
    let table = rig.driver.ring_addresses(0)[0];
    let header = header(VIRTIO_BLK_T_IN, 0);
    let posted = rig.driver.post(0, &[Buffer::Out(&header), Buffer::In(512), Buffer::In(1)]);
    rig.driver.write(table + u64::from(posted.head + 1) * 16, &(1u64 << 40).to_le_bytes());
    rig.driver.notify(&mut rig.device, 0);
    // Nothing was written without a gap from the start.
    assert_eq!(rig.driver.take_used(0).unwrap().1, 0);
    let mut status = [0xee];
    rig.driver.read(posted.addresses[2], &mut status);
    assert_eq!(status, [IOERR]);
    assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &[], 512).0, OK);
}

#[test]
fn impossible_queues_are_refused() {
    let ram = GuestRam::new(1 << 20).unwrap();
    let set_up = |size: u32, table: u64, avail: u64, used: u64| {
        let block = Block::new(Box::new(MemoryDisk::new(512, false)), "");
        let mut device = MmioTransport::new(block, ram.dma().clone(), pin(&IrqPins::new()));
        let driver = GuestDriver::new(&ram);
        for (register, value) in [
            (VIRTIO_MMIO_STATUS, 3),
            (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
            (VIRTIO_MMIO_DRIVER_FEATURES, 1),
            (VIRTIO_MMIO_STATUS, 11),
            (VIRTIO_MMIO_QUEUE_NUM, size),
            (VIRTIO_MMIO_QUEUE_DESC_LOW, table as u32),
            (VIRTIO_MMIO_QUEUE_DESC_HIGH, (table >> 32) as u32),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail as u32),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used as u32),
            (VIRTIO_MMIO_QUEUE_READY, 1),
        ] {
            driver.write_register(&mut device, register, value);
        }
        let ready = driver.read_register(&mut device, VIRTIO_MMIO_QUEUE_READY) == 1;
        assert_ne!(ready, device.status().has(DeviceStatus::NEEDS_RESET));
        ready
    };
    assert!(set_up(256, 0x1000, 0x2000, 0x3000));
    for size in [0, 3, 255, 512, 0x1_0000, 0x1_0100] {
        assert!(!set_up(size, 0x1000, 0x2000, 0x3000), "size {size}");
    }
    assert!(!set_up(256, 0x1001, 0x2000, 0x3000));
    assert!(!set_up(256, 0x1000, 0x2001, 0x3000));
    assert!(!set_up(256, 0x1000, 0x2000, 0x3002));
    assert!(!set_up(256, 1 << 20, 0x2000, 0x3000));
    assert!(!set_up(256, 0xffff_ffff_ffff_fff0, 0x2000, 0x3000));
    assert!(!set_up(256, 0x1000, (1 << 20) - 2, 0x3000));
    assert!(!set_up(256, 0x1000, 0x2000, (1 << 20) - 4));
    assert!(!set_up(256, 0x1000, 0, 0x3000));
}

#[test]
fn features_are_settled_once_and_only_those_offered() {
    let ram = GuestRam::new(1 << 20).unwrap();
    let negotiate = |high: u32, low: u32| {
        let block = Block::new(Box::new(MemoryDisk::new(512, false)), "");
        let mut device = MmioTransport::new(block, ram.dma().clone(), pin(&IrqPins::new()));
        let driver = GuestDriver::new(&ram);
        driver.write_register(&mut device, VIRTIO_MMIO_STATUS, 3);
        for (selector, bits) in [(0, low), (1, high), (2, u32::MAX)] {
            driver.write_register(&mut device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
            driver.write_register(&mut device, VIRTIO_MMIO_DRIVER_FEATURES, bits);
        }
        driver.write_register(&mut device, VIRTIO_MMIO_STATUS, 3 | 8 | 4);
        driver.read_register(&mut device, VIRTIO_MMIO_STATUS)
    };
    assert_eq!(negotiate(1, 0), 15);
    assert_eq!(negotiate(1, 1 << VIRTIO_BLK_F_FLUSH), 15);
    // Without VERSION_1, or with what was not offered.
    assert_eq!(negotiate(0, 0), 3);
    assert_eq!(negotiate(1, 1 << VIRTIO_BLK_F_MQ), 3);
}
