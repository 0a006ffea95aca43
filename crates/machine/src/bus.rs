//! The buses: which device answers a port or a guest-physical address.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device on a bus. Accesses come from the guest: any offset within the claimed range, 1 to 8 bytes.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` from the start of the device's range. What the device leaves
    /// untouched reads as all ones, as on a bus that nobody drives.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that is shared between the bus and the code that feeds it input or saves it.
pub type Shared<D> = Arc<Mutex<D>>;

/// Wraps a device for sharing.
pub fn shared<D>(device: D) -> Shared<D> {
    Arc::new(Mutex::new(device))
}

/// Locks a shared device. A panic elsewhere does not take the device away from the VM.
pub fn lock<D: ?Sized>(device: &Mutex<D>) -> MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a range cannot be claimed.
#[derive(Debug, thiserror::Error)]
#[error("bus range {first:#x}..+{len:#x} is empty or overlaps another device")]
pub struct RangeTaken {
    first: u64,
    len: u64,
}

struct Range {
    first: u64,
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// One address space of devices, ports or memory-mapped.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

impl Bus {
    /// Claims `len` addresses from `first` on for a device.
    pub fn insert(&mut self, first: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), RangeTaken> {
        let taken = RangeTaken { first, len };
        let Some(last) = len.checked_sub(1).and_then(|len| first.checked_add(len)) else {
            return Err(taken);
        };
        let at = self.ranges.partition_point(|range| range.last < first);
        if self.ranges.get(at).is_some_and(|next| next.first <= last) {
            return Err(taken);
        }
        self.ranges.insert(at, Range { first, last, device });
        Ok(())
    }

    /// Reads for the guest; addresses that no device claims read as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(range) = self.find(address) {
            lock(&range.device).read(address - range.first, data);
        }
    }

    /// Writes for the guest; addresses that no device claims swallow it.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some(range) = self.find(address) {
            lock(&range.device).write(address - range.first, data);
        }
    }

    fn find(&self, address: u64) -> Option<&Range> {
        let at = self.ranges.partition_point(|range| range.last < address);
        self.ranges.get(at).filter(|range| range.first <= address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u64);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = self.0 as u8 + offset as u8;
        }

        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = u64::from(data[0]);
        }
    }

    #[test]
    fn devices_answer_their_own_range_only() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, shared(Echo(1))).unwrap();
        bus.insert(0x108, 8, shared(Echo(40))).unwrap();
        bus.insert(0x10, 1, shared(Echo(90))).unwrap();
        let read = |address| {
            let mut data = [0; 1];
            bus.read(address, &mut data);
            data[0]
        };
        assert_eq!([read(0xff), read(0x100), read(0x107), read(0x108), read(0x110)], [0xff, 1, 8, 40, 0xff]);
        bus.write(0x10, &[5]);
        assert_eq!(read(0x10), 5);
    }

    #[test]
    fn overlapping_and_empty_ranges_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, shared(Echo(0))).unwrap();
        for (first, len) in [(0x100, 1), (0xf9, 8), (0x107, 100), (0x50, 0), (u64::MAX, 2)] {
            assert!(bus.insert(first, len, shared(Echo(0))).is_err(), "{first:#x} {len}");
        }
    }
}
