//! The ACPI tables as a guest walks them, and as Intel's disassembler reads them where it is installed.

use std::process::Command;

use machine::acpi::{AcpiConfig, AcpiError, write_tables};
use machine::map;
use memory::GuestRam;

fn config(vcpus: u32, virtio: usize) -> AcpiConfig {
    AcpiConfig { vcpus, virtio: (0..virtio).map(|index| map::virtio_slot(index).unwrap()).collect() }
}

fn bytes(ram: &GuestRam, address: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    ram.read_bytes(address, &mut bytes).unwrap();
    bytes
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// A table, its signature, length and checksum checked.
fn table(ram: &GuestRam, address: u64, signature: &[u8]) -> Vec<u8> {
    let len = ram.load::<u32>(address + 4).unwrap();
    let table = bytes(ram, address, len.into());
    assert_eq!(&table[..4], signature);
    assert_eq!(checksum(&table), 0, "checksum of {}", signature.escape_ascii());
    table
}

fn u64_at(table: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
}

/// FADT, MADT and DSDT.
fn walk(ram: &GuestRam, rsdp: u64) -> [Vec<u8>; 3] {
    let root = bytes(ram, rsdp, 36);
    assert_eq!((&root[..8], root[15]), (&b"RSD PTR "[..], 2));
    assert_eq!((checksum(&root[..20]), checksum(&root)), (0, 0));
    let xsdt = table(ram, u64_at(&root, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(ram, u64_at(&xsdt, 36), b"FACP");
    let madt = table(ram, u64_at(&xsdt, 44), b"APIC");
    let dsdt = table(ram, u64_at(&fadt, 140), b"DSDT");
    [fadt, madt, dsdt]
}

#[test]
fn the_guest_finds_every_table() {
    let ram = GuestRam::new(64 << 20).unwrap();
    let rsdp = write_tables(&ram, &config(3, 2)).unwrap();
    let [fadt, madt, _] = walk(&ram, rsdp);
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10, "hardware-reduced, reset register");
    // Generic addresses of one byte in I/O space.
    for (at, port) in [(116, 0x602), (244, 0x600), (256, 0x601)] {
        assert_eq!(fadt[at..at + 4], [1, 8, 0, 1]);
        assert_eq!(u64_at(&fadt, at + 4), port);
    }
    assert_eq!(u64_at(&madt, 36) as u32, map::LOCAL_APIC as u32);
    let local_apics: Vec<u8> = (0..3).flat_map(|id| [0, 8, id, id, 1, 0, 0, 0]).collect();
    assert_eq!(madt[44..44 + 24], local_apics);
    assert_eq!(madt[68..], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
}

#[test]
fn the_largest_machine_fits_and_a_larger_one_is_refused() {
    let ram = GuestRam::new(64 << 20).unwrap();
    let rsdp = write_tables(&ram, &config(spec::VCPUS_MAX, map::VIRTIO_SLOTS)).unwrap();
    walk(&ram, rsdp);
    let last_used = (rsdp..2 << 20).rev().find(|address| ram.load::<u8>(*address) != Some(0));
    assert!(last_used.unwrap() < map::ACPI_TABLES_END);
    for vcpus in [0, spec::VCPUS_MAX + 1] {
        assert!(matches!(write_tables(&ram, &config(vcpus, 0)), Err(AcpiError::Vcpus(_))));
    }
    let mut far = config(1, 1);
    far.virtio[0].base = 1 << 32;
    assert!(matches!(write_tables(&ram, &far), Err(AcpiError::VirtioAddress(_))));
    let mut many = config(1, 1);
    many.virtio = vec![many.virtio[0]; map::VIRTIO_SLOTS + 1];
    assert!(matches!(write_tables(&ram, &many), Err(AcpiError::VirtioDevices(_))));
    assert!(matches!(write_tables(&GuestRam::new(4096).unwrap(), &config(1, 1)), Err(AcpiError::Memory(_))));
}

/// Runs `iasl` (package acpica-tools) over the tables: what it disassembles must compile again without an error.
#[test]
fn intels_compiler_accepts_the_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: iasl is not installed");
        return;
    }
    let ram = GuestRam::new(64 << 20).unwrap();
    let rsdp = write_tables(&ram, &config(4, map::VIRTIO_SLOTS)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, table) in ["fadt", "madt", "dsdt"].into_iter().zip(walk(&ram, rsdp)) {
        std::fs::write(folder.path().join(format!("{name}.aml")), table).unwrap();
        let source = format!("{name}.dsl");
        for arguments in [vec!["-d", &format!("{name}.aml")], vec!["-p", "again", "-we", &source]] {
            let output = Command::new("iasl").args(&arguments).current_dir(folder.path()).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "iasl {arguments:?}: {text}");
        }
    }
    let dsdt = std::fs::read_to_string(folder.path().join("dsdt.dsl")).unwrap();
    for expected in [
        "Device (V015)",
        "\"LNRO0005\"",
        "0xD000F000",
        "ResourceConsumer, Level, ActiveHigh, Exclusive",
        "Name (\\_S5, Package (0x04)",
        "Notify (\\_SB.PWRB, 0x80)",
        "Notify (\\_SB.VGEN, 0x80)",
        "\"VMGENCTR\"",
        "Method (ADDR, 0, Serialized)",
        "GED0.ESEL = 0x02",
        "Return (Package (0x02)",
        "0x000FE000",
        "PNP0501",
        "PNP0B00",
        "\"QEMU0001\"",
    ] {
        assert!(dsdt.contains(expected), "{expected} is missing from:\n{dsdt}");
    }
}
