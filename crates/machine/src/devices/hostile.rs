//! Random accesses, for the tests that no guest can make a device panic.

use crate::bus::BusDevice;

/// Hits a device with 20,000 random accesses of 0 to 8 bytes, mostly within its `range` bytes, and calls `between`
/// after each. The same sequence every time.
pub(crate) fn hammer<D: BusDevice>(device: &mut D, range: u64, mut between: impl FnMut(&mut D, u64)) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..20_000 {
        let choice = next();
        let offset = match choice & 0xf {
            0 => next(),
            1 => u64::MAX - (next() & 7),
            _ => next() % range,
        };
        let len = (choice >> 8) as usize % 9;
        if choice & 0x10 == 0 {
            device.write(offset, &next().to_le_bytes()[..len]);
        } else {
            device.read(offset, &mut [0; 8][..len]);
        }
        between(device, next());
    }
}
