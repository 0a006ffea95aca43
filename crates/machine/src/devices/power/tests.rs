use super::*;
use crate::devices::hostile::hammer;
use crate::irq::IrqPins;

fn power(state: &PowerState) -> (Power, IrqPin, Arc<GuestEvents>) {
    let pin = IrqPin::new(&IrqPins::new(), 9);
    let events = GuestEvents::new();
    (Power::new(state, pin.clone(), events.clone()), pin, events)
}

fn read(device: &mut impl BusDevice, offset: u16) -> u8 {
    let mut data = [0xff];
    device.read(offset.into(), &mut data);
    data[0]
}

#[test]
fn soft_off_and_reset_reach_the_run_loop() {
    let (mut power, _, events) = power(&PowerState::default());
    // What ACPICA writes: wake status cleared, then type and enable.
    power.write(SLEEP_STATUS.into(), &[0x80]);
    power.write(SLEEP_CONTROL.into(), &[SLEEP_TYPE_OFF << 2]);
    assert_eq!(events.take(), None);
    power.write(SLEEP_CONTROL.into(), &[SLEEP_TYPE_OFF << 2 | 0x20]);
    assert_eq!(events.take(), Some(GuestEvent::PowerOff));
    power.write(SLEEP_CONTROL.into(), &[3 << 2 | 0x20]);
    power.write(RESET.into(), &[0]);
    assert_eq!(events.take(), None, "suspend is not offered");
    power.write(RESET.into(), &[RESET_VALUE]);
    assert_eq!(events.take(), Some(GuestEvent::Reset));
}

#[test]
fn the_power_button_interrupts_until_it_is_read_also_after_a_restore() {
    let (mut original, pin, _) = power(&PowerState::default());
    assert!(!pin.is_asserted());
    original.press_power_button();
    original.press_power_button();
    let (mut restored, restored_pin, _) = power(&original.save());
    for (power, pin) in [(&mut original, pin), (&mut restored, restored_pin)] {
        assert!(pin.is_asserted());
        assert_eq!(read(power, EVENT), EVENT_POWER_BUTTON);
        assert!(!pin.is_asserted());
        assert_eq!(read(power, EVENT), 0);
    }
}

#[test]
fn a_new_generation_is_announced_beside_the_power_button_also_after_a_restore() {
    let (mut original, pin, _) = power(&PowerState::default());
    original.announce_generation();
    assert!(pin.is_asserted());
    let (mut restored, pin, _) = power(&original.save());
    restored.press_power_button();
    assert!(pin.is_asserted());
    assert_eq!(read(&mut restored, EVENT), EVENT_GENERATION | EVENT_POWER_BUTTON);
    assert!(!pin.is_asserted());
    assert_eq!(read(&mut restored, EVENT), 0);
}

#[test]
fn a_guest_that_asks_for_its_generation_id_heeds_it_also_after_a_restore() {
    let (mut original, ..) = power(&PowerState::default());
    original.write(EVENT.into(), &[EVENT_POWER_BUTTON]);
    original.write(RESET.into(), &[EVENT_GENERATION]);
    read(&mut original, EVENT);
    assert!(!original.heeds_generation());
    original.write(EVENT.into(), &[EVENT_GENERATION]);
    let (restored, pin, events) = power(&original.save());
    assert!(restored.heeds_generation());
    assert!(!pin.is_asserted() && events.take().is_none());
}

#[test]
fn reset_control_resets_on_a_rising_edge_also_after_a_restore() {
    let events = GuestEvents::new();
    let mut control = ResetControl::new(&ResetControlState::default(), events.clone());
    control.write(0, &[0x02]);
    assert_eq!((read(&mut control, 0), events.take()), (0x02, None));
    control.write(0, &[0x06]);
    assert_eq!(events.take(), Some(GuestEvent::Reset));
    let mut restored = ResetControl::new(&control.save(), events.clone());
    restored.write(0, &[0x06]);
    assert_eq!(events.take(), None);
    restored.write(0, &[0x02]);
    restored.write(0, &[0x06]);
    assert_eq!(events.take(), Some(GuestEvent::Reset));
}

#[test]
fn the_keyboard_controller_is_ready_and_resets() {
    let events = GuestEvents::new();
    let mut keyboard = KeyboardReset::new(events.clone());
    assert_eq!(read(&mut keyboard, 0) & 0x02, 0);
    keyboard.write(0, &[0xd1]);
    assert_eq!(events.take(), None);
    keyboard.write(0, &[0xfe]);
    assert_eq!(events.take(), Some(GuestEvent::Reset));
}

#[test]
fn no_access_does_harm() {
    let (mut power, pin, events) = power(&PowerState::default());
    hammer(&mut power, 4, |power, random| {
        if random & 1 == 0 {
            power.press_power_button();
        }
        assert_eq!(pin.is_asserted(), power.save().events != 0);
    });
    hammer(&mut ResetControl::new(&ResetControlState::default(), events.clone()), 1, |_, _| {});
    hammer(&mut KeyboardReset::new(events.clone()), 1, |_, _| {});
    assert!(events.any());
}
