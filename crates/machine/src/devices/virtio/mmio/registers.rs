//! What the registers of virtio devices read as, in memory: an engine can show it to the guest, which then reads without leaving for it.
//! Writes do not reach it; the devices keep it up to date.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a page.
const PAGE_BYTES: usize = 4096;

#[repr(C, align(4096))]
struct Page([AtomicU32; PAGE_BYTES / 4]);

/// A page for each virtio slot, one behind the other.
#[derive(Clone)]
pub struct RegisterPages(Arc<[Page]>);

impl RegisterPages {
    /// So many pages of zeros.
    pub fn new(count: usize) -> Self {
        let page = |_| Page([const { AtomicU32::new(0) }; PAGE_BYTES / 4]);
        Self((0..count).map(page).collect())
    }

    /// The page of a slot, for its device.
    pub fn page(&self, slot: usize) -> RegisterPage {
        RegisterPage { pages: self.clone(), slot }
    }

    /// Address of the first page in this process.
    pub fn host_address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Length of all pages.
    pub fn len_bytes(&self) -> u64 {
        (self.0.len() * PAGE_BYTES) as u64
    }
}

/// The page of one device.
#[derive(Clone)]
pub struct RegisterPage {
    pages: RegisterPages,
    slot: usize,
}

impl RegisterPage {
    /// Sets what the register at `offset`, a multiple of 4, reads as. Beyond the page there is nothing to set.
    pub(super) fn store(&self, offset: u32, value: u32) {
        if let Some(register) = self.register(offset) {
            register.store(value.to_le(), Ordering::Release);
        }
    }

    /// What the register at `offset` reads as.
    #[cfg(test)]
    pub fn load(&self, offset: u32) -> Option<u32> {
        Some(u32::from_le(self.register(offset)?.load(Ordering::Acquire)))
    }

    fn register(&self, offset: u32) -> Option<&AtomicU32> {
        self.pages.0.get(self.slot)?.0.get(offset as usize / 4)
    }
}

impl std::fmt::Debug for RegisterPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegisterPage({})", self.slot)
    }
}

#[cfg(test)]
mod tests {
    use memory::GuestRam;
    use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_SEL;

    use crate::bus::BusDevice;
    use crate::devices::virtio::block::Block;
    use crate::devices::virtio::net::{Net, NetConfig};
    use crate::devices::virtio::testing::{Buffer, GuestDriver, MemoryDisk, MemoryNetwork};
    use crate::devices::virtio::{MmioTransport, NotifiedDevice, VirtioDevice};
    use crate::irq::{IrqPin, IrqPins};

    use super::*;

    fn assert_same<D: VirtioDevice>(device: &mut MmioTransport<D>, page: &RegisterPage)
    where
        MmioTransport<D>: BusDevice,
    {
        for offset in (0..0x200).step_by(4) {
            let mut data = [0xff; 4];
            device.read(u64::from(offset), &mut data);
            assert_eq!(page.load(offset), Some(u32::from_le_bytes(data)), "register {offset:#x}");
        }
    }

    #[test]
    fn what_the_guest_reads_in_memory_is_what_the_device_answers() {
        let (ram, pages) = (GuestRam::new(8 << 20).unwrap(), RegisterPages::new(2));
        assert_eq!((pages.host_address() % 4096, pages.len_bytes()), (0, 8192));
        let page = pages.page(1);
        let config = NetConfig { mac: spec::MacAddr::for_vm("test", 0), mtu: 1500 };
        let net = Net::new(config, Box::new(MemoryNetwork::default()));
        let mut device = MmioTransport::new(net, ram.dma().clone(), IrqPin::new(&IrqPins::new(), 5));
        let interrupt = device.detach(page.clone());
        let mut driver = GuestDriver::new(&ram);
        assert_same(&mut device, &page);
        for queue in 0..3 {
            driver.write_register(&mut device, VIRTIO_MMIO_QUEUE_SEL, queue);
            assert_same(&mut device, &page);
        }
        driver.offered_features(&mut device);
        assert_same(&mut device, &page);
        driver.start(&mut device, 0, 16);
        assert_same(&mut device, &page);
        device.set_link(false);
        assert_same(&mut device, &page);
        driver.post(1, &[Buffer::Out(&[0; 100])]);
        device.notified(1);
        assert!(!device.serve_notified());
        assert_eq!(page.load(0x60), Some(3));
        assert_same(&mut device, &page);
        interrupt.acknowledge(1);
        assert_same(&mut device, &page);
        // A chain that names itself breaks the device.
        let [table, ..] = driver.ring_addresses(1);
        driver.post(1, &[Buffer::Out(&[0; 100])]);
        driver.write(table + 16 + 12, &[1, 0, 1, 0]);
        device.notified(1);
        device.serve_notified();
        assert!(device.fault().is_some());
        assert_same(&mut device, &page);
        device.reset();
        assert_same(&mut device, &page);
    }

    #[test]
    fn a_queue_to_come_back_to_needs_no_acknowledgement_that_reaches_the_device() {
        let (ram, disk) = (GuestRam::new(8 << 20).unwrap(), MemoryDisk::new(1 << 20, false));
        let pin = IrqPin::new(&IrqPins::new(), 5);
        let mut device = MmioTransport::new(Block::new(Box::new(disk.clone()), ""), ram.dma().clone(), pin.clone());
        let mut driver = GuestDriver::new(&ram);
        driver.start(&mut device, 0, 16);
        driver.post(0, &[Buffer::Out(&[0; 16]), Buffer::In(512), Buffer::In(1)]);
        let mut state = device.save();
        state.transport.unfinished_queues = 1;
        let block = Block::restore(state.device, Box::new(disk)).unwrap();
        let mut device = MmioTransport::restore(state.transport, block, ram.dma().clone(), pin).unwrap();
        device.detach(RegisterPages::new(1).page(0)).acknowledge(1);
        assert!(!device.serve_notified());
        assert!(driver.take_used(0).is_some());
        assert_eq!(device.save().transport.unfinished_queues, 0);
    }
}
