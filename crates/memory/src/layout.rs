//! Where guest RAM lies in the guest-physical address space.

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page: the unit of dirty tracking.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// First guest-physical address after low RAM; from here to [`HIGH_START`] lie device windows and the APICs.
pub const LOW_END: u64 = 0xc000_0000;
/// Guest-physical address at which RAM continues when there is more of it than fits below [`LOW_END`].
pub const HIGH_START: u64 = 0x1_0000_0000;

/// One contiguous piece of guest-physical RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// First guest-physical address.
    pub guest_address: u64,
    /// Offset of that address in the RAM mapping, in bytes.
    pub offset: u64,
    /// Length in bytes, a multiple of [`PAGE_BYTES`], never 0.
    pub len_bytes: u64,
}

/// The map from guest-physical addresses to offsets in the RAM mapping: RAM below 3 GiB, and the rest from 4 GiB up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    size_bytes: u64,
}

impl Layout {
    /// The layout of `size_bytes` of RAM (the caller has checked that it is a non-zero multiple of the page size).
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self { size_bytes }
    }

    /// All of RAM, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of RAM below [`LOW_END`].
    pub fn low_bytes(&self) -> u64 {
        self.size_bytes.min(LOW_END)
    }

    /// Bytes of RAM from [`HIGH_START`] up.
    pub fn high_bytes(&self) -> u64 {
        self.size_bytes - self.low_bytes()
    }

    /// The pieces of RAM in ascending order of address: one or two.
    pub fn slots(&self) -> Vec<Slot> {
        let mut slots = vec![Slot { guest_address: 0, offset: 0, len_bytes: self.low_bytes() }];
        if self.high_bytes() > 0 {
            slots.push(Slot { guest_address: HIGH_START, offset: LOW_END, len_bytes: self.high_bytes() });
        }
        slots
    }

    /// Offset of `guest_address` in the RAM mapping, or `None` where there is no RAM.
    #[inline]
    pub fn offset_of(&self, guest_address: u64) -> Option<u64> {
        if guest_address < self.low_bytes() {
            Some(guest_address)
        } else if guest_address >= HIGH_START && guest_address - HIGH_START < self.high_bytes() {
            Some(guest_address - HIGH_START + LOW_END)
        } else {
            None
        }
    }

    /// Like [`Layout::offset_of`] for `len` bytes that must all lie in the same slot.
    pub fn offset_of_range(&self, guest_address: u64, len: u64) -> Option<u64> {
        let last = guest_address.checked_add(len.max(1) - 1)?;
        let offset = self.offset_of(guest_address)?;
        (self.offset_of(last)? == offset + (last - guest_address)).then_some(offset)
    }

    /// The guest-physical address of an offset in the RAM mapping.
    #[inline]
    pub fn guest_address_of(&self, offset: u64) -> u64 {
        if offset < LOW_END { offset } else { offset - LOW_END + HIGH_START }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ram_is_one_slot() {
        let layout = Layout::new(64 << 20);
        assert_eq!(layout.slots().len(), 1);
        assert_eq!(layout.offset_of(0), Some(0));
        assert_eq!(layout.offset_of((64 << 20) - 1), Some((64 << 20) - 1));
        assert_eq!(layout.offset_of(64 << 20), None);
        assert_eq!(layout.offset_of(HIGH_START), None);
    }

    #[test]
    fn large_ram_continues_above_the_device_hole() {
        let layout = Layout::new(LOW_END + (1 << 30));
        assert_eq!(layout.slots().len(), 2);
        assert_eq!(layout.offset_of(LOW_END), None);
        assert_eq!(layout.offset_of(HIGH_START), Some(LOW_END));
        assert_eq!(layout.guest_address_of(LOW_END), HIGH_START);
        assert_eq!(layout.offset_of(HIGH_START + (1 << 30)), None);
    }

    #[test]
    fn ranges_do_not_run_over_an_edge() {
        let layout = Layout::new(LOW_END + PAGE_BYTES);
        assert_eq!(layout.offset_of_range(LOW_END - 4, 4), Some(LOW_END - 4));
        assert_eq!(layout.offset_of_range(LOW_END - 4, 5), None);
        assert_eq!(layout.offset_of_range(u64::MAX - 1, 8), None);
        assert_eq!(layout.offset_of_range(HIGH_START, PAGE_BYTES + 1), None);
    }
}
