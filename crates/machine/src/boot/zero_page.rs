//! `struct boot_params`, the "zero page" (`Documentation/arch/x86/zero-page.rst`, `boot.rst`).

use memory::{GuestRam, HIGH_START};

use super::bzimage::{SETUP_HEADER, SETUP_HEADER_END_MAX};
use crate::map;

/// What the kernel is told.
#[derive(Debug)]
pub(super) struct BootParams<'a> {
    /// The setup header of a bzImage; a vmlinux has none.
    pub setup_header: Option<&'a [u8]>,
    /// Where the protected-mode part lies, if that is what starts.
    pub code32_start: u32,
    /// Address and length of the initrd.
    pub initrd: Option<(u32, u32)>,
    /// Address of the RSDP, 0 for none.
    pub rsdp: u64,
}

/// `loadflags`: the kernel lies above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `type_of_loader`: none that has a number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `vid_mode`: "normal".
const VIDEO_NORMAL: u16 = 0xffff;

/// Kind of a range in the memory map (ACPI specification 6.5, 15.1).
#[derive(Clone, Copy)]
enum Kind {
    Ram = 1,
    Reserved = 2,
    Acpi = 3,
}

impl BootParams<'_> {
    /// The page for a VM with this RAM.
    pub fn bytes(&self, ram: &GuestRam) -> Vec<u8> {
        let mut page = vec![0; memory::PAGE_BYTES as usize];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);

        put(0x070, &self.rsdp.to_le_bytes());
        match self.setup_header {
            Some(header) => put(SETUP_HEADER, &header[..header.len().min(SETUP_HEADER_END_MAX - SETUP_HEADER)]),
            None => {
                put(0x1fe, &[0x55, 0xaa]);
                put(0x202, b"HdrS");
                put(0x206, &0x020cu16.to_le_bytes());
                put(0x230, &0x0100_0000u32.to_le_bytes()); // kernel_alignment
                put(0x238, &(map::COMMAND_LINE_BYTES_MAX as u32 - 1).to_le_bytes());
            }
        }
        put(0x1fa, &VIDEO_NORMAL.to_le_bytes());
        put(0x210, &[LOADER_UNDEFINED]);
        put(0x211, &[LOADED_HIGH]);
        put(0x214, &self.code32_start.to_le_bytes());
        let (initrd, initrd_bytes) = self.initrd.unwrap_or((0, 0));
        put(0x218, &initrd.to_le_bytes());
        put(0x21c, &initrd_bytes.to_le_bytes());
        put(0x228, &(map::COMMAND_LINE as u32).to_le_bytes());

        let ranges = memory_map(ram);
        put(0x1e8, &[ranges.len() as u8]);
        for (index, (start, end, kind)) in ranges.into_iter().enumerate() {
            let at = 0x2d0 + index * 20;
            put(at, &start.to_le_bytes());
            put(at + 8, &(end - start).to_le_bytes());
            put(at + 16, &(kind as u32).to_le_bytes());
        }
        page
    }
}

/// The memory map: start, end and kind of each range, ascending. At most six ranges.
fn memory_map(ram: &GuestRam) -> Vec<(u64, u64, Kind)> {
    const LEGACY_HOLE: u64 = 0xa_0000;
    let layout = ram.layout();
    let mut ranges = vec![
        (0, map::CONVENTIONAL_END, Kind::Ram),
        (map::CONVENTIONAL_END, LEGACY_HOLE, Kind::Reserved),
        (map::ACPI_TABLES, map::ACPI_TABLES_END, Kind::Acpi),
        (map::GENERATION_ID, map::GENERATION_ID_END, Kind::Reserved),
    ];
    if layout.low_bytes() > map::HIGH_MEMORY {
        ranges.push((map::HIGH_MEMORY, layout.low_bytes(), Kind::Ram));
    }
    if layout.high_bytes() > 0 {
        ranges.push((HIGH_START, HIGH_START + layout.high_bytes(), Kind::Ram));
    }
    ranges
}
