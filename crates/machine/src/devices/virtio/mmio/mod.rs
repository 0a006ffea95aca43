//! The memory-mapped transport, register layout version 2 (virtio 1.2, section 4.2).

mod interrupt;
mod registers;
mod state;
mod status;

use std::sync::Arc;

use memory::DmaMemory;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device::{Progress, VirtioDevice};
use super::queue::{QueueError, QueueSetup, QueueState, RingPositions, VirtQueue};
use crate::bus::BusDevice;
use crate::irq::IrqPin;

pub use interrupt::Interrupt;
pub use registers::{RegisterPage, RegisterPages};
pub use state::{MmioState, RestoreError, TransportState};
pub use status::{DeviceStatus, Phase};

/// Bytes of a device's window: registers, then from 0x100 on its configuration space.
pub const WINDOW_BYTES: u64 = 0x200;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR_ID: u32 = u32::from_le_bytes(*b"TWIN");
/// What a register that this device does not have reads as; in particular the length of every shared-memory region,
/// which says that there is none (virtio 1.2, 4.2.2.1).
const ABSENT: u32 = u32::MAX;

/// Features of queues and transport, offered with every device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// One queue of a device: what the driver wrote about it, and the queue itself once it is ready.
struct QueueSlot {
    setup: QueueSetup,
    queue: Option<VirtQueue>,
}

impl QueueSlot {
    fn new(size_max: u16) -> Self {
        let setup = QueueSetup { size: size_max, descriptor_table: 0, driver_area: 0, device_area: 0 };
        Self { setup, queue: None }
    }
}

/// A virtio device on the machine's bus.
pub struct MmioTransport<D> {
    device: D,
    memory: DmaMemory,
    interrupt: Arc<Interrupt>,
    status: DeviceStatus,
    config_generation: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSlot>,
    unfinished_queues: u32,
    notified_queues: u32,
    fault: Option<QueueError>,
    /// Where the registers are shown to the guest, if they are: the device is then served by another thread than the vCPUs'.
    shown: Option<RegisterPage>,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// A device as after power-on. `memory` is where it finds its queues and buffers, `pin` its interrupt.
    pub fn new(device: D, memory: DmaMemory, pin: IrqPin) -> Self {
        Self {
            device,
            memory,
            interrupt: Arc::new(Interrupt::new(pin, 0)),
            status: DeviceStatus::default(),
            config_generation: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: D::QUEUE_SIZES_MAX.iter().map(|&size| QueueSlot::new(size)).collect(),
            unfinished_queues: 0,
            notified_queues: 0,
            fault: None,
            shown: None,
        }
    }

    /// A device that goes on where `state` was saved. `device` was restored from the other half of the saved state,
    /// and guest memory is that of the same moment. Sets the level of `pin`.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore(state: TransportState, device: D, memory: DmaMemory, pin: IrqPin) -> Result<Self, RestoreError> {
        if state.device_id != D::DEVICE_ID {
            return Err(RestoreError::DeviceId { saved: state.device_id, expected: D::DEVICE_ID });
        }
        let expected = D::QUEUE_SIZES_MAX.len();
        if state.queues.len() != expected {
            return Err(RestoreError::QueueCount { saved: state.queues.len(), expected });
        }
        let missing = state.driver_features & !(device.offered_features() | TRANSPORT_FEATURES);
        if state.status.has(DeviceStatus::FEATURES_OK) && missing != 0 {
            return Err(RestoreError::MissingFeatures(missing));
        }
        let event_idx = state.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let restore_queue = |(index, (saved, &size_max)): (usize, (&QueueState, &u16))| {
            let queue = saved
                .positions
                .map(|positions| VirtQueue::new(&saved.setup, positions, size_max, event_idx, &memory))
                .transpose()
                .map_err(|source| RestoreError::Queue { index, source })?;
            Ok(QueueSlot { setup: saved.setup, queue })
        };
        let queues = state.queues.iter().zip(D::QUEUE_SIZES_MAX).enumerate().map(restore_queue);
        let queues = queues.collect::<Result<_, _>>()?;
        let interrupt = Arc::new(Interrupt::new(pin, state.interrupt_status));
        interrupt.carry();
        Ok(Self {
            device,
            memory,
            interrupt,
            status: state.status,
            config_generation: state.config_generation,
            device_features_sel: state.device_features_sel,
            driver_features_sel: state.driver_features_sel,
            driver_features: state.driver_features,
            queue_sel: state.queue_sel,
            queues,
            unfinished_queues: state.unfinished_queues,
            notified_queues: state.notified_queues,
            fault: None,
            shown: None,
        })
    }

    /// Device and transport, as they are between two accesses of the guest.
    pub fn save(&self) -> MmioState<D::State> {
        let queues = self
            .queues
            .iter()
            .map(|slot| QueueState { setup: slot.setup, positions: slot.queue.as_ref().map(VirtQueue::positions) });
        MmioState {
            transport: TransportState {
                device_id: D::DEVICE_ID,
                device_features_sel: self.device_features_sel,
                driver_features_sel: self.driver_features_sel,
                driver_features: self.driver_features,
                queue_sel: self.queue_sel,
                status: self.status,
                interrupt_status: self.interrupt.status(),
                config_generation: self.config_generation,
                unfinished_queues: self.unfinished_queues,
                notified_queues: self.notified_queues,
                queues: queues.collect(),
            },
            device: self.device.save(),
        }
    }

    /// The device behind the transport.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device behind the transport, for what the guest does not see, such as its backend.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The device status field.
    pub fn status(&self) -> DeviceStatus {
        self.status
    }

    /// Why the device stopped with `DEVICE_NEEDS_RESET`, if it did in this process and the driver has not reset it.
    pub fn fault(&self) -> Option<QueueError> {
        self.fault
    }

    /// Lets the host's side do something with the device and one of its queues, if the device is live and the queue
    /// ready; then interrupts the guest if it wants that. `None` if they are not.
    pub(super) fn with_queue<T>(
        &mut self,
        index: usize,
        work: impl FnOnce(&mut D, &mut VirtQueue, &DmaMemory) -> Result<T, QueueError>,
    ) -> Option<T> {
        if self.status.phase() != Phase::Live {
            return None;
        }
        let queue = self.queues.get_mut(index)?.queue.as_mut()?;
        let result = work(&mut self.device, queue, &self.memory);
        let result = result.and_then(|value| Ok((value, queue.take_interrupt(&self.memory)?)));
        match result {
            Ok((value, interrupt)) => {
                if interrupt {
                    self.raise(VIRTIO_MMIO_INT_VRING);
                }
                Some(value)
            }
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    /// Tells the driver that the configuration space has changed.
    pub(super) fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        self.show();
        if self.status.has(DeviceStatus::DRIVER_OK) {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn look_at(&mut self, index: usize) -> Option<Progress> {
        self.with_queue(index, |device, queue, memory| device.process(index, queue, memory))
    }

    fn process(&mut self, index: usize) {
        if self.look_at(index) == Some(Progress::Unfinished) {
            // The driver need not notify again, but it must acknowledge an interrupt: come back then.
            self.unfinished_queues |= 1 << index;
            self.raise(VIRTIO_MMIO_INT_VRING);
        }
    }

    fn raise(&mut self, bits: u32) {
        self.interrupt.raise(bits);
    }

    fn acknowledge(&mut self, bits: u32) {
        self.interrupt.acknowledge(bits);
        let unfinished = std::mem::take(&mut self.unfinished_queues);
        for index in (0..self.queues.len()).filter(|index| unfinished >> index & 1 != 0) {
            self.process(index);
        }
    }

    fn fail(&mut self, error: QueueError) {
        tracing::warn!(device_id = D::DEVICE_ID, %error, "virtio device needs a reset");
        self.fault = Some(error);
        self.status.insert(DeviceStatus::NEEDS_RESET);
        self.show();
        // Virtio 1.2, 2.1.2: a live driver is told by a configuration change.
        if self.status.has(DeviceStatus::DRIVER_OK) {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// What the driver does by writing 0 to the status, and the machine when the guest reboots: device and transport are
    /// as after power-on.
    pub fn reset(&mut self) {
        self.device.reset();
        self.status = DeviceStatus::default();
        self.interrupt.acknowledge(u32::MAX);
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues = D::QUEUE_SIZES_MAX.iter().map(|&size| QueueSlot::new(size)).collect();
        self.unfinished_queues = 0;
        self.notified_queues = 0;
        self.fault = None;
        self.show();
    }

    /// Writes to the page that the guest reads what the registers read as. Of the configuration space one word changes at most, so a
    /// driver cannot find a mixture.
    fn show(&self) {
        let Some(page) = &self.shown else { return };
        for register in (0..VIRTIO_MMIO_CONFIG).step_by(4) {
            // The interrupt's status is shown by itself.
            if register != VIRTIO_MMIO_INTERRUPT_STATUS {
                page.store(register, self.read_register(register));
            }
        }
        for (offset, bytes) in (VIRTIO_MMIO_CONFIG..).step_by(4).zip(self.device.config().chunks(4)) {
            let mut word = [0; 4];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            page.store(offset, u32::from_le_bytes(word));
        }
    }

    fn offered_features(&self) -> u64 {
        self.device.offered_features() | TRANSPORT_FEATURES
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // The driver must not clear bits (virtio 1.2, 2.1.1), nor set one out of turn; what it may not do is not done.
        let wanted = |bits: u8| value & u32::from(bits) != 0;
        self.status.insert(value as u8 & (DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FAILED));
        if self.status.phase() == Phase::Negotiating && wanted(DeviceStatus::FEATURES_OK) {
            let known = self.driver_features & !self.offered_features() == 0;
            if known && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0 {
                self.status.insert(DeviceStatus::FEATURES_OK);
            }
        }
        if self.status.phase() == Phase::QueueSetup && wanted(DeviceStatus::DRIVER_OK) {
            self.status.insert(DeviceStatus::DRIVER_OK);
            self.device.activate(self.driver_features);
        }
    }

    fn write_queue_ready(&mut self, value: u32) {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let index = self.queue_sel as usize;
        let Some((slot, &size_max)) = self.queues.get_mut(index).zip(D::QUEUE_SIZES_MAX.get(index)) else { return };
        if value == 0 {
            slot.queue = None;
        } else if self.status.phase() == Phase::QueueSetup && slot.queue.is_none() {
            match VirtQueue::new(&slot.setup, RingPositions::default(), size_max, event_idx, &self.memory) {
                Ok(queue) => slot.queue = Some(queue),
                Err(error) => self.fail(error),
            }
        }
    }

    /// Changes what the driver says about the selected queue, while it may.
    fn set_up_queue(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        if self.status.phase() == Phase::QueueSetup
            && let Some(slot) = self.queues.get_mut(self.queue_sel as usize)
            && slot.queue.is_none()
        {
            change(&mut slot.setup);
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => D::DEVICE_ID,
            VIRTIO_MMIO_VENDOR_ID => VENDOR_ID,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered_features(), self.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                D::QUEUE_SIZES_MAX.get(self.queue_sel as usize).map_or(0, |&size| u32::from(size))
            }
            VIRTIO_MMIO_QUEUE_READY => {
                self.queues.get(self.queue_sel as usize).map_or(0, |slot| u32::from(slot.queue.is_some()))
            }
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => u32::from(self.status.bits()),
            VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation,
            _ => ABSENT,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.status.phase() == Phase::Negotiating => {
                set_half(&mut self.driver_features, self.driver_features_sel, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            // A size beyond 16 bits is as bad as 0, and becomes it.
            VIRTIO_MMIO_QUEUE_NUM => self.set_up_queue(|setup| setup.size = u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => return self.process(value as usize),
            VIRTIO_MMIO_INTERRUPT_ACK => return self.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_QUEUE_DESC_LOW => self.set_up_queue(|setup| set_half(&mut setup.descriptor_table, 0, value)),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => self.set_up_queue(|setup| set_half(&mut setup.descriptor_table, 1, value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => self.set_up_queue(|setup| set_half(&mut setup.driver_area, 0, value)),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => self.set_up_queue(|setup| set_half(&mut setup.driver_area, 1, value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => self.set_up_queue(|setup| set_half(&mut setup.device_area, 0, value)),
            VIRTIO_MMIO_QUEUE_USED_HIGH => self.set_up_queue(|setup| set_half(&mut setup.device_area, 1, value)),
            _ => {}
        }
        self.show();
    }
}

/// The lower or upper 32 bits; there are no others.
fn half(value: u64, selector: u32) -> u32 {
    match selector {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, selector: u32, bits: u32) {
    match selector {
        0 => *value = *value & !u64::from(u32::MAX) | u64::from(bits),
        1 => *value = *value & u64::from(u32::MAX) | u64::from(bits) << 32,
        _ => {}
    }
}

/// A device whose queues are looked at by another thread than that of the vCPU that notifies of them.
pub trait NotifiedDevice: Send {
    /// From now on this is such a device. What its registers read as is in `page` too, and its interrupt can be acknowledged by what is
    /// returned, without the device.
    fn detach(&mut self, page: RegisterPage) -> Arc<Interrupt>;

    /// The driver has notified of a queue: [`NotifiedDevice::serve_notified`] looks at it.
    fn notified(&mut self, queue: u32);

    /// Looks at all queues that were notified of. True if there is more to do than may be done at once: call it again.
    fn serve_notified(&mut self) -> bool;
}

impl<D: VirtioDevice> NotifiedDevice for MmioTransport<D> {
    fn detach(&mut self, page: RegisterPage) -> Arc<Interrupt> {
        // There will be no acknowledgement that reaches the device.
        self.notified_queues |= std::mem::take(&mut self.unfinished_queues);
        self.interrupt.show(page.clone());
        self.shown = Some(page);
        self.show();
        self.interrupt.clone()
    }

    fn notified(&mut self, queue: u32) {
        self.notified_queues |= 1_u32.checked_shl(queue).unwrap_or(0);
    }

    fn serve_notified(&mut self) -> bool {
        let notified = std::mem::take(&mut self.notified_queues);
        for index in (0..self.queues.len()).filter(|index| notified >> index & 1 != 0) {
            if self.look_at(index) == Some(Progress::Unfinished) {
                self.notified_queues |= 1 << index;
            }
        }
        self.notified_queues != 0
    }
}

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            // Beyond its end the configuration space reads as zero.
            let space = usize::try_from(at).ok().and_then(|at| self.device.config().get(at..)).unwrap_or_default();
            let rest = space.iter().copied().chain(std::iter::repeat(0));
            data.iter_mut().zip(rest).for_each(|(to, from)| *to = from);
        } else if let Some((register, data)) = register(offset).zip(<&mut [u8; 4]>::try_from(data).ok()) {
            *data = self.read_register(register).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((register, &data)) = register(offset).zip(<&[u8; 4]>::try_from(data).ok()) {
            self.write_register(register, u32::from_le_bytes(data));
        }
    }
}

/// Registers are accessed as aligned 32-bit words (virtio 1.2, 4.2.2.2); other accesses have no effect.
fn register(offset: u64) -> Option<u32> {
    (offset < u64::from(VIRTIO_MMIO_CONFIG) && offset.is_multiple_of(4)).then_some(offset as u32)
}
