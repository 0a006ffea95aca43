//! Bare-metal programs: bytes at an address, entered in 64-bit mode.

use memory::GuestRam;

use super::{BootError, BootState, early_tables};
use crate::map;

/// Loads `program` at guest-physical `address` and enters at its first byte, with `rsi` in RSI.
///
/// The program must lie between [`map::BOOT_TABLES_END`] and the end of RAM below 3 GiB; its registers, stack and
/// page tables are those of [`BootState`].
pub fn load(ram: &GuestRam, program: &[u8], address: u64, rsi: u64) -> Result<BootState, BootError> {
    let end = ram.layout().low_bytes();
    let len = program.len() as u64;
    let fits = address.checked_add(len).is_some_and(|last| last <= end);
    if !fits || len == 0 || address < map::BOOT_TABLES_END {
        return Err(BootError::FlatRange { address, len, end });
    }
    early_tables::write(ram)?;
    ram.write_bytes(address, program)?;
    Ok(BootState::at(address, rsi))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_entered_where_it_lies() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let state = load(&ram, &[0xf4, 0xeb], 0x10_0000, 7).unwrap();
        assert_eq!((state.rip, state.rsi, state.cr3), (0x10_0000, 7, map::BOOT_PAGE_TABLES));
        assert_eq!(ram.load::<u16>(0x10_0000), Some(0xebf4));
        assert_eq!(ram.load::<u64>(state.gdt_base + u64::from(BootState::CODE_SELECTOR)), Some(0x00af_9b00_0000_ffff));
        let ram_end = ram.size_bytes();
        for (program, address) in
            [(&[0xf4][..], 0), (&[0xf4], 0xffff), (&[], 0x10_0000), (&[1, 2], ram_end - 1), (&[1], u64::MAX)]
        {
            assert!(matches!(load(&ram, program, address, 0), Err(BootError::FlatRange { .. })), "{address:#x}");
        }
    }
}
