//! The GDT and the page tables a guest starts with.

use memory::{GuestRam, PAGE_BYTES};

use super::{BootError, BootState};
use crate::map;

/// Bytes of the GDT: two null descriptors, code, data, and a 16-byte TSS descriptor.
pub(super) const GDT_BYTES: u16 = 6 * 8;

/// Page directories of the identity map, 1 GiB each.
const DIRECTORIES: u64 = 4;
/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, large.
const LARGE_PAGE: u64 = 0b1000_0011;
const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// Writes the GDT of [`BootState`] and page tables that map the first 4 GiB to themselves. Pages of 2 MiB: those of
/// 1 GiB are not on every processor.
pub(super) fn write(ram: &GuestRam) -> Result<(), BootError> {
    const GDT: [u64; 6] = [0, 0, BootState::CODE_DESCRIPTOR, BootState::DATA_DESCRIPTOR, BootState::TASK_DESCRIPTOR, 0];
    write_entries(ram, map::BOOT_GDT, GDT)?;

    let pdpt = map::BOOT_PAGE_TABLES + PAGE_BYTES;
    let directories = pdpt + PAGE_BYTES;
    write_page(ram, map::BOOT_PAGE_TABLES, [pdpt | TABLE])?;
    write_page(ram, pdpt, (0..DIRECTORIES).map(|n| (directories + n * PAGE_BYTES) | TABLE))?;
    write_entries(ram, directories, (0..DIRECTORIES * 512).map(|n| (n * LARGE_PAGE_BYTES) | LARGE_PAGE))
}

/// Writes a page table whose remaining entries are not present.
fn write_page(ram: &GuestRam, address: u64, entries: impl IntoIterator<Item = u64>) -> Result<(), BootError> {
    write_entries(ram, address, entries.into_iter().chain(std::iter::repeat(0)).take(512))
}

fn write_entries(ram: &GuestRam, address: u64, entries: impl IntoIterator<Item = u64>) -> Result<(), BootError> {
    let bytes: Vec<u8> = entries.into_iter().flat_map(u64::to_le_bytes).collect();
    Ok(ram.write_bytes(address, &bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the page tables as a processor does (Intel SDM 3A 4.5).
    fn translate(ram: &GuestRam, address: u64) -> Option<u64> {
        let entry = |table: u64, shift: u32| -> Option<u64> {
            let entry = ram.load::<u64>((table & !0xfff) + (address >> shift & 0x1ff) * 8)?;
            (entry & 1 != 0).then_some(entry)
        };
        let pml4 = entry(map::BOOT_PAGE_TABLES, 39)?;
        let pdpt = entry(pml4, 30)?;
        let large = entry(pdpt, 21)?;
        (large & 0x80 != 0).then_some((large & !0x1f_ffff) | (address & 0x1f_ffff))
    }

    #[test]
    fn the_first_four_gib_map_to_themselves_and_nothing_else_is_mapped() {
        let ram = GuestRam::new(1 << 20).unwrap();
        ram.write_bytes(map::BOOT_PAGE_TABLES, &[0xff; 0x6000]).unwrap();
        write(&ram).unwrap();
        for address in (0..4u64 << 30).step_by(0x1ff_f123) {
            assert_eq!(translate(&ram, address), Some(address));
        }
        for address in [4 << 30, 1 << 39, 1 << 40, u64::MAX] {
            assert_eq!(translate(&ram, address), None, "{address:#x}");
        }
    }
}
