//! The tables of fixed form: FADT and MADT.

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, to_bytes};
use crate::devices::power;
use crate::map;

/// IAPC_BOOT_ARCH (ACPI specification 6.5, table 5.10): there is no VGA adapter. Left clear: "legacy devices", 8042;
/// "CMOS RTC not present", because one is.
const NO_VGA: u16 = 1 << 2;
/// The CMOS register of the century.
const CENTURY_REGISTER: u8 = 0x32;

/// The FADT (ACPI specification 6.5, 5.2.9).
pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Both buttons would be fixed events, which there are none of: the power button is a device in the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.century = CENTURY_REGISTER;
    fadt.reset_reg = power_register(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = power_register(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = power_register(power::SLEEP_STATUS);
    to_bytes(&fadt.finalize())
}

fn power_register(offset: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(map::POWER_PORT + offset))
}

/// The MADT (ACPI specification 6.5, 5.2.12). Interrupts need no overrides: each global system interrupt is the I/O
/// APIC pin of that number, and the DSDT says how it is triggered.
pub(super) fn madt(vcpus: u32) -> Vec<u8> {
    // Below 4 GiB, as the map asserts.
    let (local_apic, io_apic) = (map::LOCAL_APIC as u32, map::IO_APIC as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(local_apic));
    // At most 64, so identifiers fit.
    for id in 0..vcpus as u8 {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(map::IO_APIC_ID, io_apic, 0));
    to_bytes(&madt)
}
