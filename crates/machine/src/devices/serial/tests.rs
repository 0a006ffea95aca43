use std::sync::{Arc, Mutex};

use super::*;
use crate::devices::hostile::hammer;
use crate::irq::IrqPins;

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl ConsoleSink for Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

fn serial(state: &SerialState) -> (Serial, IrqPin, Screen) {
    let pin = IrqPin::new(&IrqPins::new(), 4);
    let screen = Screen::default();
    (Serial::new(state, pin.clone(), Box::new(screen.clone())), pin, screen)
}

/// As a driver leaves it: FIFOs on with trigger level 8, OUT2 set.
fn opened() -> (Serial, IrqPin, Screen) {
    let (mut serial, pin, screen) = serial(&SerialState::default());
    serial.write_register(2, 0x87);
    serial.write_register(4, 0x0b);
    (serial, pin, screen)
}

#[test]
fn a_driver_sends_with_interrupts() {
    let (mut serial, pin, screen) = opened();
    assert!(!pin.is_asserted());
    serial.write_register(1, ier::TRANSMITTER_EMPTY);
    assert!(pin.is_asserted(), "enabling the interrupt of an empty transmitter raises it");
    assert_eq!(serial.read_register(2), 0xc2);
    assert!(!pin.is_asserted(), "reading IIR acknowledges");
    for byte in *b"hello" {
        serial.write_register(0, byte);
    }
    assert!(pin.is_asserted());
    serial.write_register(1, 0);
    assert!(!pin.is_asserted());
    assert_eq!(*screen.0.lock().unwrap(), b"hello");
}

#[test]
fn input_waits_in_the_fifo_and_its_interrupt_stays_until_it_is_read() {
    let (mut serial, pin, _) = opened();
    serial.write_register(1, ier::RECEIVED);
    assert_eq!(serial.receive(b"0123456789abcdefXYZ"), FIFO_BYTES);
    assert_eq!(serial.receive(b"X"), 0);
    assert_eq!(serial.read_register(2), 0xc4);
    for byte in *b"0123456789abcde" {
        assert!(pin.is_asserted());
        assert_eq!(serial.read_register(0), byte);
    }
    assert_eq!(serial.read_register(2), 0xcc, "below the trigger level");
    assert_eq!(serial.read_register(5), 0x61);
    assert_eq!(serial.read_register(0), b'f');
    assert_eq!(serial.read_register(5), 0x60);
    assert!(!pin.is_asserted());
    assert_eq!(serial.receive(b"X"), 1);
}

#[test]
fn linux_detects_a_16550a() {
    // The probes of drivers/tty/serial/8250/8250_port.c, autoconfig().
    let (mut serial, _, _) = serial(&SerialState::default());
    for (value, expected) in [(0, 0), (0x0f, 0x0f)] {
        serial.write_register(1, value);
        assert_eq!(serial.read_register(1), expected);
    }
    serial.write_register(4, mcr::LOOPBACK | 0x0a);
    assert_eq!(serial.read_register(6) & 0xf0, 0x90);
    serial.write_register(4, 0);
    serial.write_register(2, fcr::ENABLE);
    assert_eq!(serial.read_register(2) >> 6, 3);
    serial.write_register(3, LCR_DIVISOR_LATCH);
    serial.write_register(0, 0x34);
    serial.write_register(1, 0x12);
    assert_eq!((serial.save().divisor, serial.read_register(0), serial.read_register(1)), (0x1234, 0x34, 0x12));
}

#[test]
fn loopback_returns_what_is_sent_and_keeps_it_from_the_world() {
    let (mut serial, pin, screen) = opened();
    serial.write_register(1, ier::RECEIVED);
    serial.write_register(4, mcr::LOOPBACK | mcr::OUT2);
    for byte in 0..=FIFO_BYTES as u8 {
        serial.write_register(0, byte);
    }
    assert!(!pin.is_asserted());
    assert_eq!(serial.read_register(5), 0x63, "one byte too many is an overrun");
    assert_eq!(serial.read_register(0), 0);
    assert_eq!(serial.receive(b"x"), 0);
    assert!(screen.0.lock().unwrap().is_empty());
}

#[test]
fn a_restored_uart_goes_on_where_the_saved_one_was() {
    let (mut original, pin, _) = opened();
    original.write_register(1, ier::RECEIVED | ier::TRANSMITTER_EMPTY);
    original.receive(b"ab");
    original.write_register(7, 0x5a);
    let (mut restored, restored_pin, _) = serial(&original.save());
    assert!(pin.is_asserted() && restored_pin.is_asserted());
    for register in [2, 0, 2, 0, 2, 2, 5, 6, 7, 1, 3, 4] {
        assert_eq!(original.read_register(register), restored.read_register(register), "register {register}");
        assert_eq!(pin.is_asserted(), restored_pin.is_asserted(), "register {register}");
    }
    assert_eq!(original.save(), restored.save());
}

#[test]
fn no_access_does_harm() {
    let (mut serial, _, _) = opened();
    hammer(&mut serial, 8, |serial, random| {
        serial.receive(&random.to_le_bytes());
        assert!(serial.save().received.len() <= FIFO_BYTES);
    });
    let oversized = SerialState { received: vec![1; 1000], ..SerialState::default() };
    assert_eq!(Serial::new(&oversized, IrqPin::new(&IrqPins::new(), 4), Box::<Screen>::default()).received.len(), 16);
}
