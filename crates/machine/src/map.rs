//! The machine's fixed addresses, ports and interrupts, all in one place.
//!
//! Guest-physical memory (see also [`memory::Layout`]):
//!
//! | range | what |
//! | --- | --- |
//! | `0x500` to `0xf000` | what the loader leaves for the kernel: GDT, `boot_params`, first stack, page tables |
//! | `0x2_0000` | kernel command line |
//! | `0xa_0000` to `0xf_ffff` | no RAM according to the memory map; from [`ACPI_TABLES`] on the ACPI tables, then [`GENERATION_ID`] |
//! | [`HIGH_MEMORY`] to 3 GiB | RAM: kernel, initrd |
//! | [`VIRTIO_MMIO`] | a window of [`VIRTIO_MMIO_LEN`] bytes for each virtio slot |
//! | [`IO_APIC`], [`LOCAL_APIC`] | the interrupt controllers |
//! | from 4 GiB | the rest of RAM |
//!
//! The guest learns every device address from the ACPI tables ([`crate::acpi`]); nothing here is probed for. These
//! numbers are part of what a snapshot relies on: a change makes older snapshots unusable.

use memory::LOW_END;

/// GDT of the boot vCPU (entries in [`crate::boot::BootState`]).
pub const BOOT_GDT: u64 = 0x500;
/// `struct boot_params`, the "zero page" of the Linux boot protocol; one page.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Top of the boot vCPU's first stack, which has the page below it.
pub const BOOT_STACK_TOP: u64 = 0x9000;
/// First of the boot vCPU's six page-table pages: PML4, PDPT, four page directories.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// First address after everything the loader puts into the lowest 64 KiB.
pub const BOOT_TABLES_END: u64 = 0x1_0000;
/// The kernel command line, NUL-terminated.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line, NUL included.
pub const COMMAND_LINE_BYTES_MAX: u64 = 0x1_0000;
/// End of conventional memory in the memory map, where an extended BIOS data area would begin.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// The ACPI tables, RSDP first.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// First address after the ACPI tables.
pub const ACPI_TABLES_END: u64 = GENERATION_ID;
/// The VM generation ID, 16 bytes, in a page that nothing else is in and that no kernel takes for its own.
pub const GENERATION_ID: u64 = 0xf_e000;
/// First address after what is reserved from the generation ID on: its page, and the one with [`RESET_VECTOR`].
pub const GENERATION_ID_END: u64 = 0x10_0000;
/// Where a PC's processors start, and where a kernel that knows no other way to reset jumps to in real mode.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// First address above the legacy hole: where kernels may load.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The I/O APIC's registers.
pub const IO_APIC: u64 = 0xfec0_0000;
/// Bytes of the I/O APIC's window.
pub const IO_APIC_LEN: u64 = 0x1000;
/// Identifier of the I/O APIC: what its register says at power-on.
pub const IO_APIC_ID: u8 = 0;
/// The local APICs' registers (xAPIC mode), one page.
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// Window of virtio slot 0; slot n lies n * [`VIRTIO_MMIO_LEN`] above.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes of one virtio-mmio window.
pub const VIRTIO_MMIO_LEN: u64 = 0x1000;
/// Number of virtio slots.
pub const VIRTIO_SLOTS: usize = VIRTIO_GSIS.len();
/// The global system interrupt of each virtio slot: those that no other device has. Pin 23 stays free.
const VIRTIO_GSIS: [u32; 16] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22];

// Local APIC identifiers are 0 to `vcpus - 1`, which have to be valid in xAPIC and x2APIC mode alike.
const _: () = assert!(spec::VCPUS_MAX <= 0xff);
// One slot is the entropy device's.
const _: () = assert!(spec::DEVICES_MAX + 1 == VIRTIO_SLOTS);
const _: () = assert!(spec::MEMORY_BYTES_MAX == memory::GuestRam::SIZE_BYTES_MAX);
const _: () = assert!(VIRTIO_MMIO >= LOW_END && VIRTIO_MMIO + VIRTIO_MMIO_LEN * VIRTIO_SLOTS as u64 <= IO_APIC);

/// Where a virtio device is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// First address of its register window.
    pub base: u64,
    /// Bytes of its register window.
    pub len: u64,
    /// Its interrupt, level-triggered and active high, shared with nobody.
    pub gsi: u32,
}

/// Virtio slot `index`, or `None` from [`VIRTIO_SLOTS`] on.
pub fn virtio_slot(index: usize) -> Option<VirtioSlot> {
    let gsi = *VIRTIO_GSIS.get(index)?;
    Some(VirtioSlot { base: VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_LEN, len: VIRTIO_MMIO_LEN, gsi })
}

/// First port of the serial console (COM1).
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of the serial console.
pub const SERIAL_PORTS: u16 = 8;
/// Interrupt of the serial console, level-triggered and active high.
pub const SERIAL_GSI: u32 = 4;

/// Index port of the real-time clock; the data port follows. It has no interrupt.
pub const RTC_PORT: u16 = 0x70;
/// Ports of the real-time clock.
pub const RTC_PORTS: u16 = 2;

/// Command port of the keyboard controller, of which only the reset pulse exists.
pub const KEYBOARD_RESET_PORT: u16 = 0x64;
/// The reset control register of PC chipsets.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;
/// The panic notifier.
pub const PANIC_NOTIFIER_PORT: u16 = 0x505;

/// First port of the power device; its registers are in [`crate::devices::power`].
pub const POWER_PORT: u16 = 0x600;
/// Ports of the power device.
pub const POWER_PORTS: u16 = 4;
/// Interrupt of the power device (ACPI Generic Event Device), level-triggered and active high.
pub const POWER_GSI: u32 = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::PINS;

    #[test]
    fn every_interrupt_has_one_owner() {
        let mut owned = vec![SERIAL_GSI, POWER_GSI];
        owned.extend((0..VIRTIO_SLOTS).filter_map(virtio_slot).map(|slot| slot.gsi));
        assert_eq!(owned.len(), VIRTIO_SLOTS + 2);
        owned.sort_unstable();
        owned.dedup();
        assert_eq!(owned.len(), VIRTIO_SLOTS + 2);
        assert!(owned.iter().all(|gsi| *gsi < PINS));
        assert_eq!(virtio_slot(VIRTIO_SLOTS), None);
    }
}
