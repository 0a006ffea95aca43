//! A card that is served by another thread than the vCPU's.

use std::time::Duration;

use memory::GuestRam;
use spec::MacAddr;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_QUEUE_NOTIFY};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::*;
use crate::bus::BusDevice;
use crate::devices::serial::ConsoleSink;
use crate::devices::virtio::net::NetConfig;
use crate::devices::virtio::rng::SeededEntropy;
use crate::devices::virtio::testing::{Buffer, GuestDriver, MemoryNetwork};
use crate::map;
use crate::platform::Parts;

/// Number of the queue of frames from the guest.
const TRANSMIT_QUEUE: usize = 1;

struct Silent;

impl ConsoleSink for Silent {
    fn write(&mut self, _: &[u8]) {}
}

/// The registers of the card, which is the first virtio device.
struct Window<'a>(&'a Platform);

impl BusDevice for Window<'_> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.mmio_read(map::VIRTIO_MMIO + offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.mmio_write(map::VIRTIO_MMIO + offset, data);
    }
}

struct Rig {
    network: MemoryNetwork,
    platform: Platform,
    driver: GuestDriver,
    control: Arc<Control>,
}

impl Rig {
    fn new() -> Self {
        let (network, ram) = (MemoryNetwork::default(), GuestRam::new(8 << 20).unwrap());
        let config = NetConfig { mac: MacAddr::for_vm("test", 0), mtu: 1500 };
        let parts = Parts {
            disks: Vec::new(),
            cards: vec![(config, Box::new(network.clone()))],
            console: Box::new(Silent),
            entropy: Box::new(SeededEntropy::new(1, 0)),
        };
        let mut platform = Platform::new(&ram, 0, parts).unwrap();
        platform.queue_requests().unwrap();
        let mut driver = GuestDriver::new(&ram);
        driver.start(&mut Window(&platform), 1 << VIRTIO_RING_F_EVENT_IDX, 16);
        Self { network, platform, driver, control: Control::new().unwrap() }
    }

    /// A frame of so many bytes, which the VM's thread takes.
    fn send(&mut self, len: usize) {
        self.driver.post(TRANSMIT_QUEUE, &[Buffer::Out(&vec![0; network::HEADER_LEN + len])]);
        let notifications = self.platform.notifications();
        let is_card = |notification: &&Notification| {
            notification.address == map::VIRTIO_MMIO + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY)
                && notification.queue == TRANSMIT_QUEUE as u32
        };
        notifications.iter().find(is_card).unwrap().event.write(1).unwrap();
        assert!(self.platform.wait_for_work(&self.control, Some(Duration::ZERO)).unwrap().queues);
        assert!(!self.platform.serve_queues());
        assert_eq!(self.network.content().sent.len(), 1);
    }

    fn status(&self) -> u32 {
        self.driver.read_register(&mut Window(&self.platform), VIRTIO_MMIO_INTERRUPT_STATUS)
    }
}

#[test]
fn an_interrupt_is_acknowledged_while_the_card_is_at_work() {
    let mut rig = Rig::new();
    rig.send(100);
    let device = lock(&rig.platform.cards[0].device);
    assert_ne!(rig.platform.pins().levels(), 0);
    let register = map::VIRTIO_MMIO + u64::from(VIRTIO_MMIO_INTERRUPT_ACK);
    assert!(rig.platform.acknowledge_interrupt(register, &1_u32.to_le_bytes()));
    assert_eq!(rig.platform.pins().levels(), 0);
    drop(device);
    assert_eq!(rig.status(), 0);
}

#[test]
fn what_is_no_acknowledgement_is_left_to_the_device() {
    let mut rig = Rig::new();
    rig.send(100);
    let register = map::VIRTIO_MMIO + u64::from(VIRTIO_MMIO_INTERRUPT_ACK);
    let is_taken = |address: u64, data: &[u8]| rig.platform.acknowledge_interrupt(address, data);
    assert!(!is_taken(register + 4, &[1, 0, 0, 0]), "another register");
    assert!(!is_taken(register, &[1, 0]), "not all of it");
    assert!(!is_taken(register + 7 * map::VIRTIO_MMIO_LEN, &[1, 0, 0, 0]), "no device");
    assert_eq!(rig.status(), 1);
}
