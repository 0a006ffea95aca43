//! The device status field (virtio 1.2, 2.1).

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// Device status: a set of bits, because the driver writes it as one. What a device may do follows from the phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus(u8);

/// How far driver and device have come with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The driver has not said that it can drive the device.
    Reset,
    /// The driver may choose features.
    Negotiating,
    /// Features are settled; the driver may set up queues.
    QueueSetup,
    /// The device works.
    Live,
    /// The driver or the device gave up: only a reset helps.
    Broken,
}

impl DeviceStatus {
    /// `ACKNOWLEDGE`: the guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
    /// `DRIVER`: the guest knows how to drive it.
    pub const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
    /// `DRIVER_OK`: the driver is ready.
    pub const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
    /// `FEATURES_OK`: features are settled.
    pub const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
    /// `DEVICE_NEEDS_RESET`: the device gave up.
    pub const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
    /// `FAILED`: the driver gave up.
    pub const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;

    /// The bits as the driver reads them.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `bits` are set.
    pub fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// Adds bits.
    pub(super) fn insert(&mut self, bits: u8) {
        self.0 |= bits;
    }

    /// What may happen next.
    pub fn phase(self) -> Phase {
        if self.0 & (Self::NEEDS_RESET | Self::FAILED) != 0 {
            Phase::Broken
        } else if self.has(Self::DRIVER_OK) {
            Phase::Live
        } else if self.has(Self::FEATURES_OK) {
            Phase::QueueSetup
        } else if self.has(Self::ACKNOWLEDGE | Self::DRIVER) {
            Phase::Negotiating
        } else {
            Phase::Reset
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_the_initialisation_sequence() {
        let mut status = DeviceStatus::default();
        assert_eq!(status.phase(), Phase::Reset);
        status.insert(DeviceStatus::ACKNOWLEDGE);
        assert_eq!(status.phase(), Phase::Reset);
        for (bit, phase) in [
            (DeviceStatus::DRIVER, Phase::Negotiating),
            (DeviceStatus::FEATURES_OK, Phase::QueueSetup),
            (DeviceStatus::DRIVER_OK, Phase::Live),
            (DeviceStatus::NEEDS_RESET, Phase::Broken),
        ] {
            status.insert(bit);
            assert_eq!(status.phase(), phase);
        }
        assert_eq!(status.bits(), 0x4f);
    }
}
