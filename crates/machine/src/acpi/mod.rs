//! The ACPI tables: how the guest learns what the machine has.
//!
//! The machine is "hardware-reduced" (ACPI specification 6.5, 4.1): no power management timer, no fixed events, no
//! legacy interrupt controllers or timers. Devices are in the DSDT, processors and the I/O APIC in the MADT, power and
//! reset registers in the FADT.

mod dsdt;
mod fixed;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use memory::{GuestRam, MemoryError};

use crate::map::{self, VirtioSlot};

/// What differs from VM to VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Number of vCPUs, 1 to [`spec::VCPUS_MAX`]. Local APIC identifiers are 0 to `vcpus - 1`.
    pub vcpus: u32,
    /// The virtio devices, in the order in which the guest shall find them.
    pub virtio: Vec<VirtioSlot>,
}

/// Why the tables cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// No vCPU, or too many.
    #[error("{0} vCPUs; a VM has 1 to {max}", max = spec::VCPUS_MAX)]
    Vcpus(u32),
    /// More virtio devices than slots.
    #[error("{0} virtio devices; a VM has up to {max}", max = map::VIRTIO_SLOTS)]
    VirtioDevices(usize),
    /// A virtio device beyond the 32-bit address space.
    #[error("a virtio device at {0:#x} is beyond 4 GiB")]
    VirtioAddress(u64),
    /// No RAM where the tables belong.
    #[error("no memory for the ACPI tables: {0}")]
    Memory(#[from] MemoryError),
}

/// The manufacturer that the tables name.
const OEM_ID: [u8; 6] = *b"TWINVM";
/// The model that the tables name.
const OEM_TABLE_ID: [u8; 8] = *b"TWINVMPC";
const OEM_REVISION: u32 = 1;
/// Tables begin at multiples of this.
const ALIGNMENT: u64 = 16;

/// Writes the tables to [`map::ACPI_TABLES`] and gives the guest-physical address of the RSDP.
pub fn write_tables(ram: &GuestRam, config: &AcpiConfig) -> Result<u64, AcpiError> {
    let (rsdp, bytes) = build(config)?;
    ram.write_bytes(rsdp, &bytes)?;
    Ok(rsdp)
}

/// The address of the tables, and the tables as one piece of memory with the RSDP first.
fn build(config: &AcpiConfig) -> Result<(u64, Vec<u8>), AcpiError> {
    if !(1..=spec::VCPUS_MAX).contains(&config.vcpus) {
        return Err(AcpiError::Vcpus(config.vcpus));
    }
    if config.virtio.len() > map::VIRTIO_SLOTS {
        return Err(AcpiError::VirtioDevices(config.virtio.len()));
    }
    // The RSDP's place is fixed, its contents depend on the others'.
    let mut bytes = vec![0; Rsdp::len()];
    let mut place = |table: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        let address = map::ACPI_TABLES + bytes.len() as u64;
        bytes.extend(table);
        address
    };

    let dsdt = place(dsdt::table(config)?);
    let fadt = place(fixed::fadt(dsdt));
    let madt = place(fixed::madt(config.vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(to_bytes(&xsdt));
    let rsdp = to_bytes(&Rsdp::new(OEM_ID, xsdt));
    bytes[..rsdp.len()].copy_from_slice(&rsdp);

    Ok((map::ACPI_TABLES, bytes))
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
