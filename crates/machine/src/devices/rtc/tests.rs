use super::*;
use crate::devices::hostile::hammer;

/// 2026-11-22 21:48:44 UTC, a Sunday.
const NOW: u64 = 1_795_384_124;

fn rtc() -> (Rtc, Arc<MachineClock>) {
    let clock = MachineClock::new(NOW * 1_000_000_000 + 999_999_999);
    (Rtc::new(&RtcState::default(), clock.clone()), clock)
}

fn read(rtc: &mut Rtc, index: u8) -> u8 {
    let mut data = [0xff];
    rtc.write(0, &[index]);
    rtc.read(1, &mut data);
    data[0]
}

fn write(rtc: &mut Rtc, index: u8, value: u8) {
    rtc.write(0, &[index]);
    rtc.write(1, &[value]);
}

fn read_all(rtc: &mut Rtc) -> [u8; 8] {
    [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| read(rtc, index))
}

#[test]
fn the_time_is_the_machines() {
    let (mut rtc, clock) = rtc();
    assert_eq!(read_all(&mut rtc), [0x20, 0x26, 0x11, 0x22, 1, 0x21, 0x48, 0x44]);
    clock.advance_to(11 * 60 * 1_000_000_000);
    assert_eq!(read(&mut rtc, register::MINUTES), 0x59);
    write(&mut rtc, register::B, BINARY);
    assert_eq!(read_all(&mut rtc), [20, 26, 11, 22, 1, 9 | PM, 59, 44]);
    assert_eq!([read(&mut rtc, register::A) & UPDATE_IN_PROGRESS, read(&mut rtc, register::D)], [0, VALID]);
}

#[test]
fn the_guest_sets_the_time_as_linux_does() {
    let (mut rtc, clock) = rtc();
    write(&mut rtc, register::B, HOURS_24 | SET);
    clock.advance_to(5_000_000_000);
    assert_eq!(read(&mut rtc, register::SECONDS), 0x44, "the clock stands still while it is set");
    for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)] {
        write(&mut rtc, index, value);
    }
    write(&mut rtc, register::B, HOURS_24);
    assert_eq!(read_all(&mut rtc), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58]);
    clock.advance_to(7_000_000_000);
    assert_eq!(read_all(&mut rtc), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
}

#[test]
fn hours_of_both_kinds_survive_being_set() {
    let (mut rtc, _) = rtc();
    for mode in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
        write(&mut rtc, register::B, mode);
        for hour in 0..24 {
            let value = rtc.encode_hour(hour);
            write(&mut rtc, register::HOURS, value);
            assert_eq!(rtc.time().hour, hour, "mode {mode}");
            assert_eq!(read(&mut rtc, register::HOURS), value);
        }
    }
}

#[test]
fn a_restored_clock_goes_on_where_the_saved_one_was() {
    let (mut original, clock) = rtc();
    write(&mut original, register::YEAR, 0x42);
    write(&mut original, 0x7f, 0x5a);
    write(&mut original, register::B, SET);
    write(&mut original, register::MONTH, 0x02);
    let mut restored = Rtc::new(&original.save(), clock.clone());
    for rtc in [&mut original, &mut restored] {
        write(rtc, register::DAY, 0x28);
        write(rtc, register::B, HOURS_24);
    }
    clock.advance_to(86_400_000_000_000);
    assert_eq!(read_all(&mut original), read_all(&mut restored));
    assert_eq!(read_all(&mut restored)[..4], [0x20, 0x42, 0x03, 0x01]);
    assert_eq!(read(&mut restored, 0x7f), 0x5a);
    assert_eq!(original.save().offset_seconds, restored.save().offset_seconds);
}

/// Replicas are restored at any instruction.
#[test]
fn a_date_that_is_half_set_survives_being_saved() {
    let (mut original, clock) = rtc();
    write(&mut original, register::B, HOURS_24 | SET);
    write(&mut original, register::MONTH, 0x02);
    write(&mut original, register::DAY, 0x31);
    let mut restored = Rtc::new(&original.save(), clock);
    for rtc in [&mut original, &mut restored] {
        write(rtc, register::MONTH, 0x03);
        write(rtc, register::B, HOURS_24);
        assert_eq!(read_all(rtc)[..4], [0x20, 0x26, 0x03, 0x31]);
    }
}

#[test]
fn no_access_does_harm() {
    let (mut rtc, clock) = rtc();
    hammer(&mut rtc, 2, |rtc, random| {
        clock.advance_to(random >> 20);
        let mut data = [0];
        rtc.read(1, &mut data);
    });
    let state = RtcState {
        index: 0xff,
        offset_seconds: i64::MAX,
        held: Some(CivilTime { second: 255, minute: 255, hour: 255, day: 255, month: 0, year: u16::MAX }),
        memory: vec![1; 1000],
        ..RtcState::default()
    };
    let mut rtc = Rtc::new(&state, clock.clone());
    write(&mut rtc, register::B, 0);
    read_all(&mut rtc);
}
