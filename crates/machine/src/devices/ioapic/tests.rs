use cpu::{ApicMessage, DeliveryMode};

use super::*;
use crate::devices::hostile::hammer;

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

fn ioapic() -> IoApic {
    IoApic::new(&IoApicState::default(), 0)
}

fn write(ioapic: &mut IoApic, register: u8, value: u32) {
    ioapic.write(IOREGSEL, &[register, 0, 0, 0]);
    ioapic.write(IOWIN, &value.to_le_bytes());
}

fn read(ioapic: &mut IoApic, register: u8) -> u32 {
    let mut data = [0xff; 4];
    ioapic.write(IOREGSEL, &[register, 0, 0, 0]);
    ioapic.read(IOWIN, &mut data);
    u32::from_le_bytes(data)
}

fn program(ioapic: &mut IoApic, pin: u8, low: u32, destination: u8) {
    write(ioapic, IOREDTBL + 2 * pin + 1, u32::from(destination) << 24);
    write(ioapic, IOREDTBL + 2 * pin, low);
}

fn vectors(ioapic: &mut IoApic) -> Vec<u8> {
    std::iter::from_fn(|| ioapic.next_message()).map(|message| message.vector).collect()
}

#[test]
fn registers_read_as_kvms_do() {
    let mut ioapic = ioapic();
    assert_eq!(read(&mut ioapic, IOAPICVER), 0x0017_0011);
    write(&mut ioapic, IOAPICID, 0xff12_3456);
    assert_eq!([read(&mut ioapic, IOAPICID), read(&mut ioapic, IOAPICARB)], [0x0f00_0000; 2]);
    assert_eq!([read(&mut ioapic, 0x10), read(&mut ioapic, 0x11), read(&mut ioapic, 0x40)], [0x1_0000, 0, 0]);
    program(&mut ioapic, 23, 0xffff_ffff, 0xab);
    assert_eq!([read(&mut ioapic, 0x3e), read(&mut ioapic, 0x3f)], [0x0001_afff, 0xab00_0000]);
}

#[test]
fn a_level_interrupt_repeats_until_its_line_falls() {
    let mut ioapic = ioapic();
    program(&mut ioapic, 5, LEVEL | 0x31 | 1 << 11, 3);
    ioapic.sync(1 << 5);
    let expected = ApicMessage { destination: 3, logical: true, mode: DeliveryMode::Fixed, vector: 0x31, level: true };
    assert_eq!(ioapic.next_message(), Some(expected));
    assert_eq!(ioapic.next_message(), None, "remote IRR holds it back");
    assert_eq!(read(&mut ioapic, 0x1a) & 1 << 14, 1 << 14);
    ioapic.end_of_interrupt(0x32);
    assert_eq!(ioapic.next_message(), None);
    ioapic.end_of_interrupt(0x31);
    assert_eq!(vectors(&mut ioapic), [0x31]);
    ioapic.sync(0);
    ioapic.end_of_interrupt(0x31);
    assert_eq!(vectors(&mut ioapic), [0; 0]);
}

#[test]
fn a_masked_level_waits_and_a_masked_edge_is_lost() {
    let mut ioapic = ioapic();
    program(&mut ioapic, 6, MASKED | LEVEL | 0x40, 0);
    program(&mut ioapic, 7, MASKED | 0x41, 0);
    ioapic.sync(0b11 << 6);
    assert_eq!(vectors(&mut ioapic), [0; 0]);
    program(&mut ioapic, 6, LEVEL | 0x40, 0);
    program(&mut ioapic, 7, 0x41, 0);
    assert_eq!(vectors(&mut ioapic), [0x40]);
    ioapic.sync(1 << 6);
    ioapic.sync(0b11 << 6);
    assert_eq!(vectors(&mut ioapic), [0x41]);
    assert_eq!(vectors(&mut ioapic), [0; 0], "an edge counts once");
}

#[test]
fn a_guest_clears_remote_irr_by_a_change_of_trigger_mode() {
    let mut ioapic = ioapic();
    program(&mut ioapic, 5, LEVEL | 0x31, 0);
    ioapic.sync(1 << 5);
    assert_eq!(vectors(&mut ioapic), [0x31]);
    // What Linux does: mask and edge, then as before.
    program(&mut ioapic, 5, MASKED | 0x31, 0);
    program(&mut ioapic, 5, LEVEL | 0x31, 0);
    assert_eq!(vectors(&mut ioapic), [0x31]);
}

#[test]
fn a_restored_ioapic_goes_on_where_the_saved_one_was() {
    let mut original = ioapic();
    program(&mut original, 5, LEVEL | 0x31, 0);
    program(&mut original, 6, LEVEL | 0x32, 1);
    program(&mut original, 7, 0x33, 2);
    original.sync(1 << 5);
    assert_eq!(vectors(&mut original), [0x31]);
    // Two more wait, undelivered, when the state is taken.
    original.sync(0b111 << 5);
    let mut restored = IoApic::new(&original.save(), 0b111 << 5);
    assert_eq!(original.save(), restored.save());
    for ioapic in [&mut original, &mut restored] {
        assert_eq!(vectors(ioapic), [0x32, 0x33]);
        ioapic.sync(0b111 << 5);
        assert_eq!(vectors(ioapic), [0; 0]);
        ioapic.end_of_interrupt(0x31);
        assert_eq!(vectors(ioapic), [0x31]);
    }
    assert_eq!(original.save(), restored.save());
}

#[test]
fn no_access_does_harm_and_deliveries_end() {
    let mut ioapic = ioapic();
    hammer(&mut ioapic, 0x20, |ioapic, random| {
        ioapic.write(IOREGSEL, &[random as u8 & 0x3f]);
        ioapic.sync((random >> 8) as u32);
        ioapic.end_of_interrupt((random >> 40) as u8);
        assert!(std::iter::from_fn(|| ioapic.next_message()).take(100).count() <= PINS as usize);
    });
    let state = IoApicState { ioregsel: u32::MAX, irr: u32::MAX, redirection: [u64::MAX; 24], ..Default::default() };
    assert_eq!(vectors(&mut IoApic::new(&state, u32::MAX)), [0; 0]);
}
