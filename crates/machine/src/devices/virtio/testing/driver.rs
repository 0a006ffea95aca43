//! A guest's driver, as simple as can be: memory is never reused.

use std::collections::HashMap;

use memory::GuestRam;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::bus::BusDevice;
use crate::devices::virtio::mmio::DeviceStatus;

/// Guest-physical address of the first queue; each has a stride of its own.
const QUEUES_AT: u64 = 0x1_0000;
const QUEUE_STRIDE: u64 = 0x1_0000;
const AVAIL_OFFSET: u64 = 0x4000;
const USED_OFFSET: u64 = 0x8000;
/// Where buffers start.
const BUFFERS_AT: u64 = 0x10_0000;
/// Each buffer has pages of its own, in bytes.
const BUFFER_ALIGNMENT: u64 = 4096;

/// A part of a request.
#[derive(Clone, Copy, Debug)]
pub enum Buffer<'a> {
    /// The device reads these bytes.
    Out(&'a [u8]),
    /// The device may write so many bytes.
    In(u32),
}

/// A request that was made available.
#[derive(Clone, Debug)]
pub struct Posted {
    /// Its name in the used ring.
    pub head: u16,
    /// Guest-physical address of each buffer.
    pub addresses: Vec<u64>,
}

#[derive(Default)]
struct Ring {
    size: u16,
    next_descriptor: u16,
    avail: u16,
    used: u16,
}

/// A driver and its guest memory.
pub struct GuestDriver {
    ram: GuestRam,
    rings: Vec<Ring>,
    next_buffer: u64,
    /// Whether chains go through an indirect table.
    pub indirect: bool,
    posted: HashMap<(usize, u16), Posted>,
}

impl GuestDriver {
    /// A driver for a guest with this RAM: at least 2 MiB.
    pub fn new(ram: &GuestRam) -> Self {
        Self { ram: ram.clone(), rings: Vec::new(), next_buffer: BUFFERS_AT, indirect: false, posted: HashMap::new() }
    }

    /// Reads a register.
    pub fn read_register(&self, device: &mut dyn BusDevice, register: u32) -> u32 {
        let mut data = [0xff; 4];
        device.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write_register(&self, device: &mut dyn BusDevice, register: u32, value: u32) {
        device.write(u64::from(register), &value.to_le_bytes());
    }

    /// The features that the device offers.
    pub fn offered_features(&self, device: &mut dyn BusDevice) -> u64 {
        self.write_register(device, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        let high = self.read_register(device, VIRTIO_MMIO_DEVICE_FEATURES);
        self.write_register(device, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(self.read_register(device, VIRTIO_MMIO_DEVICE_FEATURES))
    }

    /// Initialises the device (virtio 1.2, 3.1.1) with `features` beside those of a modern device, every queue with
    /// `queue_size` descriptors.
    pub fn start(&mut self, device: &mut dyn BusDevice, features: u64, queue_size: u16) {
        let features = features | 1 << VIRTIO_F_VERSION_1;
        self.write_register(device, VIRTIO_MMIO_STATUS, 0);
        let mut status = 0;
        for bit in [DeviceStatus::ACKNOWLEDGE, DeviceStatus::DRIVER] {
            status |= u32::from(bit);
            self.write_register(device, VIRTIO_MMIO_STATUS, status);
        }
        for selector in 0..2 {
            self.write_register(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
            self.write_register(device, VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * selector)) as u32);
        }
        status |= u32::from(DeviceStatus::FEATURES_OK);
        self.write_register(device, VIRTIO_MMIO_STATUS, status);
        assert_eq!(self.read_register(device, VIRTIO_MMIO_STATUS), status, "features {features:#x} refused");
        self.rings.clear();
        self.posted.clear();
        for queue in 0.. {
            self.write_register(device, VIRTIO_MMIO_QUEUE_SEL, queue);
            if self.read_register(device, VIRTIO_MMIO_QUEUE_NUM_MAX) == 0 {
                break;
            }
            let base = QUEUES_AT + u64::from(queue) * QUEUE_STRIDE;
            self.write(base, &[0; QUEUE_STRIDE as usize]);
            self.write_register(device, VIRTIO_MMIO_QUEUE_NUM, u32::from(queue_size));
            for (low, high, address) in [
                (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, base),
                (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, base + AVAIL_OFFSET),
                (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, base + USED_OFFSET),
            ] {
                self.write_register(device, low, address as u32);
                self.write_register(device, high, (address >> 32) as u32);
            }
            self.write_register(device, VIRTIO_MMIO_QUEUE_READY, 1);
            assert_eq!(self.read_register(device, VIRTIO_MMIO_QUEUE_READY), 1, "queue {queue} refused");
            self.rings.push(Ring { size: queue_size, ..Ring::default() });
        }
        status |= u32::from(DeviceStatus::DRIVER_OK);
        self.write_register(device, VIRTIO_MMIO_STATUS, status);
        assert_eq!(self.read_register(device, VIRTIO_MMIO_STATUS), status);
    }

    /// Address of a queue's descriptor table, available ring and used ring.
    pub fn ring_addresses(&self, queue: usize) -> [u64; 3] {
        let base = QUEUES_AT + queue as u64 * QUEUE_STRIDE;
        [base, base + AVAIL_OFFSET, base + USED_OFFSET]
    }

    /// Makes a request available without notifying the device.
    pub fn post(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> Posted {
        let [table, avail, _] = self.ring_addresses(queue);
        let count = buffers.len() as u16;
        let indirect = self.indirect.then(|| self.allocate(u64::from(count) * 16));
        let (table, size) = (indirect.unwrap_or(table), self.rings[queue].size);
        let first = if indirect.is_some() { 0 } else { self.rings[queue].next_descriptor };
        let slot = |n: u16| if indirect.is_some() { n } else { (first + n) % size };
        let mut addresses = Vec::new();
        for (n, buffer) in (0..).zip(buffers) {
            let (len, write) = match buffer {
                Buffer::Out(bytes) => (bytes.len() as u32, 0),
                Buffer::In(len) => (*len, VRING_DESC_F_WRITE),
            };
            let address = self.allocate(u64::from(len));
            if let Buffer::Out(bytes) = buffer {
                self.write(address, bytes);
            }
            addresses.push(address);
            let next = if n + 1 < count { VRING_DESC_F_NEXT } else { 0 };
            self.write_descriptor(table + u64::from(slot(n)) * 16, address, len, write | next, slot(n + 1));
        }
        let head = self.rings[queue].next_descriptor;
        let taken = if let Some(table) = indirect {
            let at = self.ring_addresses(queue)[0] + u64::from(head) * 16;
            self.write_descriptor(at, table, u32::from(count) * 16, VRING_DESC_F_INDIRECT, 0);
            1
        } else {
            count
        };
        let ring = &mut self.rings[queue];
        ring.next_descriptor = (head + taken) % size;
        let entry = avail + 4 + u64::from(ring.avail % size) * 2;
        ring.avail = ring.avail.wrapping_add(1);
        let index = ring.avail;
        self.write(entry, &head.to_le_bytes());
        self.write(avail + 2, &index.to_le_bytes());
        let posted = Posted { head, addresses };
        self.posted.insert((queue, head), posted.clone());
        posted
    }

    fn write_descriptor(&self, at: u64, address: u64, len: u32, flags: u32, next: u16) {
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &(flags as u16).to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// Notifies the device of new requests.
    pub fn notify(&self, device: &mut dyn BusDevice, queue: usize) {
        self.write_register(device, VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// The device's event index: it wants to be notified of the request with this number, modulo 2^16.
    pub fn avail_event(&self, queue: usize) -> u16 {
        let size = self.rings[queue].size;
        self.read_u16(self.ring_addresses(queue)[2] + 4 + u64::from(size) * 8)
    }

    /// Asks for an interrupt when entry `index` of the used ring is written.
    pub fn set_used_event(&self, queue: usize, index: u16) {
        let size = self.rings[queue].size;
        self.write(self.ring_addresses(queue)[1] + 4 + u64::from(size) * 2, &index.to_le_bytes());
    }

    /// Takes the next request that the device is done with, and how many bytes it says it wrote.
    pub fn take_used(&mut self, queue: usize) -> Option<(Posted, u32)> {
        let used = self.ring_addresses(queue)[2];
        let (next, size) = (self.rings[queue].used, self.rings[queue].size);
        if next == self.read_u16(used + 2) {
            return None;
        }
        self.rings[queue].used = next.wrapping_add(1);
        let entry = used + 4 + u64::from(next % size) * 8;
        let head = self.read_u16(entry);
        let mut len = [0; 4];
        self.read(entry + 4, &mut len);
        let posted = self.posted.remove(&(queue, head)).expect("used entry names a request that was posted");
        Some((posted, u32::from_le_bytes(len)))
    }

    /// Reads the interrupt causes and acknowledges them.
    pub fn take_interrupt(&self, device: &mut dyn BusDevice) -> u32 {
        let causes = self.read_register(device, VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write_register(device, VIRTIO_MMIO_INTERRUPT_ACK, causes);
        causes
    }

    /// Reads guest memory.
    pub fn read(&self, address: u64, buf: &mut [u8]) {
        self.ram.read_bytes(address, buf).expect("address in RAM");
    }

    /// Writes guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.write_bytes(address, bytes).expect("address in RAM");
    }

    fn read_u16(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Sets aside memory for a buffer.
    pub fn allocate(&mut self, len: u64) -> u64 {
        let address = self.next_buffer;
        self.next_buffer += len.max(1).next_multiple_of(BUFFER_ALIGNMENT);
        address
    }
}
