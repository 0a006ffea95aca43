//! What a device type has to say to its transport.

use memory::DmaMemory;

use super::queue::{QueueError, VirtQueue};

/// How far a device got with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// It has taken everything that it can take now.
    Done,
    /// More is available, but the device stopped at its limit (as many chains as the queue has descriptors, or 8 MiB of
    /// buffers), so that a guest cannot keep a vCPU thread inside a device. The transport interrupts the guest and comes
    /// back to the queue when that is acknowledged.
    Unfinished,
}

/// A virtio device type.
pub trait VirtioDevice: Send {
    /// What [`VirtioDevice::save`] returns: everything of the device that the transport does not hold.
    type State;

    /// The device type (virtio 1.2, section 5).
    const DEVICE_ID: u32;

    /// The largest size of each queue, in descriptors; powers of 2.
    const QUEUE_SIZES_MAX: &'static [u16];

    /// Feature bits 0 to 23 and 50 to 63 that the device offers; those of transport and queues are not its business.
    fn offered_features(&self) -> u64;

    /// The device's configuration space, as the driver reads it. The devices here have no fields that drivers write.
    fn config(&self) -> &[u8];

    /// The driver is ready (`DRIVER_OK`) and has accepted `features`.
    fn activate(&mut self, features: u64);

    /// The driver has made buffers available in a queue of an active device.
    ///
    /// # Errors
    /// When the queue cannot be used any more; the transport then demands a reset.
    fn process(
        &mut self,
        queue_index: usize,
        queue: &mut VirtQueue,
        memory: &DmaMemory,
    ) -> Result<Progress, QueueError>;

    /// The driver has reset the device.
    fn reset(&mut self);

    /// The device's state, from which its constructor `restore` builds it again.
    fn save(&self) -> Self::State;
}
