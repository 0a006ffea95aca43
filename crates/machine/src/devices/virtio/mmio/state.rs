//! Saved state of the transport.

use serde::{Deserialize, Serialize};

use super::status::DeviceStatus;
use crate::devices::virtio::queue::{QueueError, QueueState};

/// A virtio device with its transport: what is saved of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState<S> {
    /// The transport.
    pub transport: TransportState,
    /// The device; restored first, by the constructor of its type.
    pub device: S,
}

/// The registers and queues of a [`super::MmioTransport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Device type, as a check.
    pub device_id: u32,
    /// `DeviceFeaturesSel`
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`
    pub driver_features_sel: u32,
    /// Features that the driver has written; settled once the status says `FEATURES_OK`.
    pub driver_features: u64,
    /// `QueueSel`
    pub queue_sel: u32,
    /// `Status`
    pub status: DeviceStatus,
    /// `InterruptStatus`: bit 0 used buffers, bit 1 configuration change.
    pub interrupt_status: u32,
    /// `ConfigGeneration`
    pub config_generation: u32,
    /// Queues to come back to at the next interrupt acknowledgement, one bit each.
    pub unfinished_queues: u32,
    /// Queues that the driver has notified of and that nobody has looked at since, one bit each.
    pub notified_queues: u32,
    /// The queues in order.
    pub queues: Vec<QueueState>,
}

/// Why a transport cannot be built from a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The state belongs to another type of device.
    #[error("saved state is of virtio device type {saved}, not {expected}")]
    DeviceId {
        /// In the state.
        saved: u32,
        /// Of this device.
        expected: u32,
    },
    /// The number of queues is another.
    #[error("saved state has {saved} queues, not {expected}")]
    QueueCount {
        /// In the state.
        saved: usize,
        /// Of this device.
        expected: usize,
    },
    /// The guest uses features that this device does not offer.
    #[error("the guest uses virtio features {0:#x}, which this device does not offer")]
    MissingFeatures(u64),
    /// A queue does not fit this machine.
    #[error("saved state of queue {index}: {source}")]
    Queue {
        /// Number of the queue.
        index: usize,
        /// Why the queue cannot be restored.
        source: QueueError,
    },
}
