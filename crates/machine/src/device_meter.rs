//! [`DeviceMeter`]: what the disks and network cards of a VM did, read while it runs.

use std::sync::{Arc, Mutex};

use crate::bus::lock;
use crate::devices::virtio::block::BlockMetrics;
use crate::devices::virtio::net::NetMetrics;
use crate::platform::Platform;

/// Reads what devices did in this process. Never waits for one that is busy, as with a disk that hangs: what was read of it last stands then.
pub struct DeviceMeter {
    platform: Arc<Platform>,
    last: Mutex<DeviceMetrics>,
}

/// What a VM's devices did in this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceMetrics {
    /// Each disk, in the order of the spec.
    pub disks: Vec<BlockMetrics>,
    /// Each network card, in the order of the spec.
    pub cards: Vec<NetMetrics>,
}

impl DeviceMeter {
    pub(crate) fn new(platform: Arc<Platform>) -> Self {
        let last = DeviceMetrics {
            disks: vec![BlockMetrics::default(); platform.disk_metrics().len()],
            cards: vec![NetMetrics::default(); platform.card_metrics().len()],
        };
        Self { platform, last: Mutex::new(last) }
    }

    /// What they did until now.
    pub fn read(&self) -> DeviceMetrics {
        let mut last = lock(&self.last);
        update(&mut last.disks, self.platform.disk_metrics());
        update(&mut last.cards, self.platform.card_metrics());
        last.clone()
    }
}

fn update<T>(last: &mut [T], now: Vec<Option<T>>) {
    for (last, now) in last.iter_mut().zip(now) {
        if let Some(now) = now {
            *last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::update;

    #[test]
    fn of_a_device_that_is_busy_stands_what_was_read_last() {
        let mut last = [1, 2];
        update(&mut last, vec![None, Some(5)]);
        assert_eq!(last, [1, 5]);
    }
}
