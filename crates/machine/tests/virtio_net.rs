//! virtio-net as a guest's driver sees it.

use std::sync::Arc;

use machine::devices::virtio::net::{Delivery, FRAMES_MAX, Net, NetConfig};
use machine::devices::virtio::testing::{Buffer, GuestDriver, MemoryNetwork};
use machine::devices::virtio::{MmioState, MmioTransport};
use machine::irq::{IrqPin, IrqPins};
use memory::{GuestRam, PAGE_BYTES};
use network::{Checksum, FrameOffload, Gso, ReceiveOffloads, Segmentation};
use spec::MacAddr;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_net::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

const RX: usize = 0;
const TX: usize = 1;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6;
const LONG: FrameOffload = FrameOffload {
    checksum: Checksum::Partial { start: 34, offset: 16 },
    gso: Gso::TcpV4(Segmentation { mss: 1460, header_len: 54 }),
};
const PLAIN: FrameOffload = FrameOffload { checksum: Checksum::Complete, gso: Gso::None };

struct Rig {
    network: MemoryNetwork,
    ram: GuestRam,
    pins: Arc<IrqPins>,
    device: MmioTransport<Net>,
    driver: GuestDriver,
}

impl Rig {
    fn new(features: u64) -> Self {
        let network = MemoryNetwork::default();
        let ram = GuestRam::new(32 << 20).unwrap();
        let pins = IrqPins::new();
        let config = NetConfig { mac: "52:54:00:12:34:56".parse().unwrap(), mtu: 1400 };
        let net = Net::new(config, Box::new(network.clone()));
        let device = MmioTransport::new(net, ram.dma().clone(), IrqPin::new(&pins, 6));
        let driver = GuestDriver::new(&ram);
        let mut rig = Self { network, ram, pins, device, driver };
        rig.driver.start(&mut rig.device, features, 64);
        rig
    }

    fn supply(&mut self, buffers: &[u32]) -> Vec<u64> {
        let posts = buffers.iter().map(|&len| self.driver.post(RX, &[Buffer::In(len)]).addresses[0]);
        posts.collect()
    }

    /// The next frame that the guest finds: header and frame, put together from its buffers.
    fn receive(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let (mut bytes, mut left) = (Vec::new(), 1);
        while left > 0 {
            let (posted, len) = self.driver.take_used(RX)?;
            let mut part = vec![0; len as usize];
            self.driver.read(posted.addresses[0], &mut part);
            if bytes.is_empty() {
                left = u16::from_le_bytes([part[10], part[11]]);
            }
            bytes.extend(part);
            left -= 1;
        }
        let frame = bytes.split_off(12);
        Some((bytes, frame))
    }

    fn send(&mut self, header: &[u8], frame: &[u8]) {
        self.driver.post(TX, &[Buffer::Out(header), Buffer::Out(frame)]);
        self.driver.notify(&mut self.device, TX);
        assert!(self.driver.take_used(TX).is_some(), "the buffer comes back");
    }

    fn restore(&mut self) {
        let saved = self.device.save();
        let bytes = postcard::to_allocvec(&saved).unwrap();
        let state: MmioState<_> = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(state, saved);
        self.network.content().accepted = None;
        let net = Net::restore(state.device, Box::new(self.network.clone())).unwrap();
        self.pins = IrqPins::new();
        let pin = IrqPin::new(&self.pins, 6);
        self.device = MmioTransport::restore(state.transport, net, self.ram.dma().clone(), pin).unwrap();
    }
}

fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 256 + seed) as u8).collect()
}

#[test]
fn the_card_shows_its_address_mtu_and_link() {
    let mut rig = Rig::new(MERGE);
    let config = |rig: &mut Rig, at| rig.driver.read_register(&mut rig.device, VIRTIO_MMIO_CONFIG + at);
    assert_eq!(config(&mut rig, 0).to_le_bytes(), [0x52, 0x54, 0x00, 0x12]);
    assert_eq!(config(&mut rig, 4).to_le_bytes(), [0x34, 0x56, 1, 0]);
    assert_eq!(config(&mut rig, 8) >> 16, 1400);
    let generation = rig.driver.read_register(&mut rig.device, VIRTIO_MMIO_CONFIG_GENERATION);
    rig.device.set_link(false);
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(config(&mut rig, 4).to_le_bytes(), [0x34, 0x56, 0, 0]);
    assert_ne!(rig.driver.read_register(&mut rig.device, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    rig.device.set_link(false);
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), 0);
}

#[test]
fn the_pin_stays_up_until_every_cause_is_acknowledged() {
    let mut rig = Rig::new(MERGE);
    rig.supply(&[1536]);
    rig.device.set_link(false);
    assert_eq!(rig.device.deliver(&frame(60, 0), PLAIN), Delivery::Delivered);
    rig.driver.write_register(&mut rig.device, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(rig.pins.levels(), 1 << 6);
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(rig.pins.levels(), 0);
}

#[test]
fn the_backend_hears_what_the_driver_accepts() {
    let rig = Rig::new(MERGE);
    assert_eq!(rig.network.content().accepted, Some(ReceiveOffloads::default()));
    let mut rig = Rig::new(MERGE | OFFLOADS);
    let all = ReceiveOffloads { checksum: true, tso4: true, tso6: true };
    assert_eq!(rig.network.content().accepted, Some(all));
    rig.restore();
    assert_eq!(rig.network.content().accepted, Some(all));
    // Long frames are no use to a driver that cannot complete their checksums.
    let rig = Rig::new(MERGE | 1 << VIRTIO_NET_F_GUEST_TSO4);
    assert_eq!(rig.network.content().accepted, Some(ReceiveOffloads::default()));
}

#[test]
fn frames_go_out_with_their_offloads_and_in_order() {
    let mut rig = Rig::new(MERGE | OFFLOADS | 1 << VIRTIO_RING_F_EVENT_IDX);
    let (short, long) = (frame(60, 1), frame(20_000, 2));
    rig.driver.post(TX, &[Buffer::Out(&PLAIN.to_header()), Buffer::Out(&short)]);
    // Header and frame in one buffer, and the frame in several.
    let joined = [&LONG.to_header()[..], &long[..100]].concat();
    rig.driver.post(TX, &[Buffer::Out(&joined), Buffer::Out(&long[100..9000]), Buffer::Out(&long[9000..])]);
    rig.driver.notify(&mut rig.device, TX);
    assert_eq!(rig.network.content().sent, [(short, PLAIN), (long, LONG)]);
    assert_eq!(rig.driver.take_used(TX).unwrap().1, 0);
    assert!(rig.driver.take_used(TX).is_some());
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_VRING);
    assert_eq!(rig.device.device().metrics().tx_frames, 2);
}

#[test]
fn frames_that_a_guest_may_not_send_are_dropped_and_counted() {
    let mut rig = Rig::new(MERGE);
    let body = frame(100, 0);
    rig.send(&LONG.to_header(), &body);
    let partial = FrameOffload { gso: Gso::None, ..LONG };
    rig.send(&partial.to_header(), &body);
    rig.send(&PLAIN.to_header(), &body[..13]);
    rig.send(&PLAIN.to_header()[..5], &body[..6]);
    rig.send(&PLAIN.to_header(), &frame(65_551, 0));
    // GSO type 3 was never offered.
    rig.send(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &body);
    assert!(rig.network.content().sent.is_empty());
    assert_eq!(rig.device.device().metrics().tx_dropped_malformed, 6);
    // A guest's word for a checksum does not count.
    rig.send(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &body);
    assert_eq!(rig.network.content().sent, [(body.clone(), PLAIN)]);
    let mut rig = Rig::new(MERGE | OFFLOADS);
    rig.send(&FrameOffload { checksum: Checksum::Partial { start: 90, offset: 9 }, gso: Gso::None }.to_header(), &body);
    assert_eq!(rig.device.device().metrics().tx_dropped_malformed, 1);
}

#[test]
fn a_full_backend_does_not_show_in_the_guest() {
    let mut rig = Rig::new(MERGE);
    rig.network.content().full = true;
    for n in 0..FRAMES_MAX + 5 {
        rig.send(&PLAIN.to_header(), &frame(60, n));
    }
    let metrics = rig.device.device().metrics();
    assert_eq!([metrics.tx_waited, metrics.tx_dropped_full], [FRAMES_MAX as u64, 5]);
    rig.restore();
    assert!(rig.device.device().has_waiting_tx());
    rig.device.device_mut().retry_transmit();
    assert!(rig.device.device().has_waiting_tx());
    rig.network.content().full = false;
    // A new frame does not overtake those that wait.
    rig.send(&PLAIN.to_header(), &frame(60, 1));
    assert!(rig.network.content().sent.is_empty());
    rig.device.device_mut().retry_transmit();
    assert!(!rig.device.device().has_waiting_tx());
    let sent = rig.network.content().sent.clone();
    assert_eq!(sent.len(), FRAMES_MAX);
    assert!(sent.iter().enumerate().all(|(n, (bytes, _))| *bytes == frame(60, n)));
}

#[test]
fn a_frame_is_spread_over_merged_buffers() {
    let mut rig = Rig::new(MERGE | OFFLOADS);
    rig.supply(&[1536; 4]);
    let long = frame(4000, 3);
    assert_eq!(rig.device.deliver(&long, LONG), Delivery::Delivered);
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_VRING);
    let (header, received) = rig.receive().unwrap();
    let mut expected = LONG.to_header();
    expected[10] = 3;
    assert_eq!((&header[..], received), (&expected[..], long));
    // The fourth buffer is still there.
    assert_eq!(rig.device.deliver(&frame(60, 4), PLAIN), Delivery::Delivered);
    let (header, received) = rig.receive().unwrap();
    assert_eq!((&header[..], received), (&PLAIN.to_header()[..], frame(60, 4)));
}

#[test]
fn a_driver_without_merging_gets_what_fits_one_buffer() {
    let mut rig = Rig::new(0);
    rig.supply(&[1526, 1526]);
    assert_eq!(rig.device.deliver(&frame(1515, 0), PLAIN), Delivery::Dropped);
    assert_eq!(rig.device.deliver(&frame(1514, 1), PLAIN), Delivery::Delivered);
    assert_eq!(rig.receive().unwrap().1, frame(1514, 1));
    assert_eq!(rig.device.device().metrics().rx_dropped_unfit, 1);
}

#[test]
fn frames_that_the_driver_did_not_accept_are_dropped() {
    let mut rig = Rig::new(MERGE);
    rig.supply(&[1536; 4]);
    assert_eq!(rig.device.deliver(&frame(1000, 0), LONG), Delivery::Dropped);
    assert_eq!(rig.device.deliver(&frame(13, 0), PLAIN), Delivery::Dropped);
    assert_eq!(rig.device.deliver(&vec![0; 65_551], PLAIN), Delivery::Dropped);
    assert_eq!(rig.device.device().metrics().rx_dropped_unfit, 3);
    assert!(rig.receive().is_none());
}

#[test]
fn frames_wait_for_buffers_in_order_and_within_limits() {
    let mut rig = Rig::new(MERGE | 1 << VIRTIO_RING_F_EVENT_IDX);
    for n in 0..FRAMES_MAX {
        assert_eq!(rig.device.deliver(&frame(60 + n, n), PLAIN), Delivery::Waiting);
    }
    assert_eq!(rig.device.deliver(&frame(60, 0), PLAIN), Delivery::Dropped);
    assert_eq!(rig.device.device().metrics().rx_dropped_full, 1);
    let mut received = 0;
    while received < FRAMES_MAX {
        rig.supply(&[1536; 50]);
        rig.driver.notify(&mut rig.device, RX);
        while let Some((_, bytes)) = rig.receive() {
            assert_eq!(bytes, frame(60 + received, received));
            received += 1;
        }
    }
    assert_eq!(rig.device.device().waiting_rx_frames(), 0);
}

#[test]
fn buffers_too_few_for_a_frame_stay_and_the_next_one_completes_them() {
    let mut rig = Rig::new(MERGE | 1 << VIRTIO_RING_F_EVENT_IDX);
    rig.supply(&[1000, 1000]);
    assert_eq!(rig.device.deliver(&frame(2500, 0), PLAIN), Delivery::Waiting);
    assert!(rig.receive().is_none());
    // The device asks to hear of the third buffer, not of those that it has seen.
    assert_eq!(rig.driver.avail_event(RX), 2);
    rig.supply(&[1000]);
    rig.driver.notify(&mut rig.device, RX);
    assert_eq!(rig.receive().unwrap().1, frame(2500, 0));
}

#[test]
fn a_frame_longer_than_all_buffers_of_a_queue_does_not_block_it() {
    let mut rig = Rig::new(MERGE);
    rig.supply(&[100; 64]);
    assert_eq!(rig.device.deliver(&frame(10_000, 0), PLAIN), Delivery::Dropped);
    assert_eq!(rig.device.deliver(&frame(500, 1), PLAIN), Delivery::Delivered);
    assert_eq!(rig.receive().unwrap().1, frame(500, 1));
}

#[test]
fn frames_before_and_after_a_driver_are_dropped() {
    let mut rig = Rig::new(MERGE);
    assert_eq!(rig.device.deliver(&frame(60, 0), PLAIN), Delivery::Waiting);
    rig.driver.write_register(&mut rig.device, VIRTIO_MMIO_STATUS, 0);
    assert_eq!(rig.device.device().waiting_rx_frames(), 0);
    assert_eq!(rig.device.deliver(&frame(60, 0), PLAIN), Delivery::Dropped);
    assert_eq!(rig.device.device().metrics().rx_dropped_no_driver, 2);
}

#[test]
fn every_page_the_device_writes_is_dirty_and_no_other() {
    let mut rig = Rig::new(MERGE | OFFLOADS);
    let addresses = rig.supply(&[4096, 4096, 4096]);
    rig.ram.harvest().acknowledge();
    assert_eq!(rig.device.deliver(&frame(8000, 0), LONG), Delivery::Delivered);
    let used_ring = rig.driver.ring_addresses(RX)[2] / PAGE_BYTES;
    let harvest = rig.ram.harvest();
    let expected = [used_ring, addresses[0] / PAGE_BYTES, addresses[1] / PAGE_BYTES];
    assert_eq!(harvest.pages().collect::<Vec<_>>(), expected);
    harvest.acknowledge();
}

#[test]
fn a_restored_card_goes_on_where_it_was_saved() {
    let mut rig = Rig::new(MERGE | OFFLOADS | 1 << VIRTIO_RING_F_EVENT_IDX);
    rig.supply(&[1536]);
    assert_eq!(rig.device.deliver(&frame(60, 1), PLAIN), Delivery::Delivered);
    rig.supply(&[1536]);
    assert_eq!(rig.device.deliver(&frame(3000, 2), LONG), Delivery::Waiting);
    assert_eq!(rig.device.deliver(&frame(61, 3), PLAIN), Delivery::Waiting);
    rig.device.set_link(false);

    rig.restore();
    assert_eq!(rig.pins.levels(), 1 << 6);
    assert_eq!(rig.device.save().device.mac, "52:54:00:12:34:56".parse::<MacAddr>().unwrap());
    assert_eq!(rig.driver.read_register(&mut rig.device, VIRTIO_MMIO_CONFIG + 4) >> 16, 0);
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(rig.receive().unwrap().1, frame(60, 1));
    assert_eq!(rig.device.device().waiting_rx_frames(), 2);
    rig.supply(&[1536, 1536]);
    rig.driver.notify(&mut rig.device, RX);
    assert_eq!(rig.receive().unwrap().1, frame(3000, 2));
    assert_eq!(rig.receive().unwrap().1, frame(61, 3));
}

#[test]
fn a_receive_buffer_without_room_stops_the_card() {
    let mut rig = Rig::new(MERGE);
    rig.driver.post(RX, &[Buffer::Out(&[0; 100])]);
    assert_eq!(rig.device.deliver(&frame(60, 0), PLAIN), Delivery::Dropped);
    assert!(rig.device.fault().is_some());
    assert_eq!(rig.driver.take_interrupt(&mut rig.device), VIRTIO_MMIO_INT_CONFIG);
}
