//! The DSDT: devices, and what they are called.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt,
    Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Return,
    Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiConfig, AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID, to_bytes};
use crate::devices::power;
use crate::map::{self, VirtioSlot};

const HEADER_BYTES: u32 = 36;
/// Integers of 64 bits.
const REVISION: u8 = 2;
/// Notification of a press of a button (ACPI specification 6.5, table 5.156).
const BUTTON_PRESSED: u8 = 0x80;
/// Notification of a change of the generation ID (Microsoft, "Virtual Machine Generation ID", 2012).
const GENERATION_CHANGED: u8 = 0x80;

/// The DSDT.
pub(super) fn table(config: &AcpiConfig) -> Result<Vec<u8>, AcpiError> {
    let mut devices = Vec::new();
    for uid in 0..config.vcpus {
        devices.extend(processor(uid));
    }
    devices.extend(serial());
    devices.extend(rtc());
    devices.extend(panic_notifier());
    devices.extend(power_button());
    devices.extend(generation_id());
    devices.extend(generic_events());
    for (uid, slot) in (0..).zip(&config.virtio) {
        devices.extend(virtio(uid, slot)?);
    }

    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&Scope::raw("\\_SB_".into(), devices));
    dsdt.append_slice(&to_bytes(&Name::new(
        "\\_S5_".into(),
        &Package::new(vec![&power::SLEEP_TYPE_OFF, &power::SLEEP_TYPE_OFF, &ZERO, &ZERO]),
    )));
    Ok(dsdt.as_slice().to_vec())
}

/// A processor: the identifier in the MADT that this object's `_UID` names.
fn processor(uid: u32) -> Vec<u8> {
    to_bytes(&Device::new(
        Path::new(&format!("C{uid:03}")),
        vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &uid)],
    ))
}

fn serial() -> Vec<u8> {
    to_bytes(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports(map::SERIAL_PORT, map::SERIAL_PORTS), &interrupt(map::SERIAL_GSI)]),
            ),
        ],
    ))
}

/// Without an interrupt, as the clock has none; Linux then polls (`cmos_pnp_probe()`).
fn rtc() -> Vec<u8> {
    to_bytes(&Device::new(
        "RTC0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports(map::RTC_PORT, map::RTC_PORTS)])),
        ],
    ))
}

/// What QEMU calls it, for Linux's pvpanic-mmio driver, which takes ports too.
fn panic_notifier() -> Vec<u8> {
    to_bytes(&Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &0x0fu8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports(map::PANIC_NOTIFIER_PORT, 1)])),
        ],
    ))
}

fn power_button() -> Vec<u8> {
    to_bytes(&Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    ))
}

/// The VM generation ID, by the names that Microsoft's specification gives it: the second one fits into what ACPI allows, and is the one that
/// Linux' vmgenid driver finds. `ADDR` is where the ID lies, its lower half first; it tells the machine that somebody wants to know.
fn generation_id() -> Vec<u8> {
    const NAMES: [&str; 2] = ["VM_Gen_Counter", "VMGENCTR"];
    // Below 4 GiB, as the map has it.
    let address = map::GENERATION_ID as u32;
    to_bytes(&Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"TWVM0001"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CID".into(), &Package::new(vec![&NAMES[0], &NAMES[1]])),
            &Name::new("_DDN".into(), &NAMES[0]),
            &Method::new(
                "ADDR".into(),
                0,
                true,
                vec![
                    &Store::new(&Path::new("\\_SB_.GED0.ESEL"), &power::EVENT_GENERATION),
                    &Return::new(&Package::new(vec![&address, &ZERO])),
                ],
            ),
        ],
    ))
}

/// The Generic Event Device (ACPI specification 6.5, 5.6.9): turns the power device's interrupt into notifications of
/// the power button and of the generation ID.
fn generic_events() -> Vec<u8> {
    let register = map::POWER_PORT + power::EVENT;
    to_bytes(&Device::new(
        "GED0".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt(map::POWER_GSI)])),
            &OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &register, &1u8),
            &Field::new(
                "EREG".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"ESEL", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &Path::new("ESEL")),
                    &And::new(&Local(1), &Local(0), &power::EVENT_POWER_BUTTON),
                    &If::new(&Local(1), vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &BUTTON_PRESSED)]),
                    &And::new(&Local(1), &Local(0), &power::EVENT_GENERATION),
                    &If::new(&Local(1), vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &GENERATION_CHANGED)]),
                ],
            ),
        ],
    ))
}

/// A virtio device behind memory-mapped registers; the name is the one Linux's virtio-mmio driver knows.
fn virtio(uid: u32, slot: &VirtioSlot) -> Result<Vec<u8>, AcpiError> {
    let out_of_reach = |_| AcpiError::VirtioAddress(slot.base);
    let base = u32::try_from(slot.base).map_err(out_of_reach)?;
    let len = u32::try_from(slot.len).map_err(out_of_reach)?;
    Ok(to_bytes(&Device::new(
        Path::new(&format!("V{uid:03}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CCA".into(), &acpi_tables::aml::ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, base, len), &interrupt(slot.gsi)]),
            ),
        ],
    )))
}

/// Level-triggered, active high, exclusive: as all pins are.
fn interrupt(gsi: u32) -> impl Aml {
    Interrupt::new(true, false, false, false, gsi)
}

/// A fixed range of at most 255 ports.
fn ports(first: u16, len: u16) -> impl Aml {
    IO::new(first, first, 1, len.min(u8::MAX.into()) as u8)
}
