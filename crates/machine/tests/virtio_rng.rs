//! virtio-rng as a guest's driver sees it.

use std::io;

use machine::devices::virtio::rng::{EntropySource, Rng, SeededEntropy};
use machine::devices::virtio::testing::{Buffer, GuestDriver};
use machine::devices::virtio::{MmioTransport, QueueError};
use machine::irq::{IrqPin, IrqPins};
use memory::GuestRam;

const SEED: u64 = 42;

fn start(source: impl EntropySource + 'static) -> (GuestRam, MmioTransport<Rng>, GuestDriver) {
    let ram = GuestRam::new(4 << 20).unwrap();
    let mut device = MmioTransport::new(Rng::new(Box::new(source)), ram.dma().clone(), IrqPin::new(&IrqPins::new(), 7));
    let mut driver = GuestDriver::new(&ram);
    driver.start(&mut device, 0, 16);
    (ram, device, driver)
}

fn ask(device: &mut MmioTransport<Rng>, driver: &mut GuestDriver, len: u32) -> Vec<u8> {
    driver.post(0, &[Buffer::In(len)]);
    driver.notify(device, 0);
    let (posted, written) = driver.take_used(0).expect("request is answered");
    let mut bytes = vec![0; written as usize];
    driver.read(posted.addresses[0], &mut bytes);
    bytes
}

fn stream(position: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SeededEntropy::new(SEED, position).fill(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_source_s_bytes_arrive_in_order_and_a_restored_device_continues_them() {
    let (ram, mut device, mut driver) = start(SeededEntropy::new(SEED, 0));
    assert_eq!(ask(&mut device, &mut driver, 64), stream(0, 64));
    assert_eq!(ask(&mut device, &mut driver, 3), stream(64, 3));
    // A large buffer is filled in part.
    assert_eq!(ask(&mut device, &mut driver, 10_000), stream(67, 4096));

    let state = device.save();
    assert_eq!(state.device.taken_bytes, 67 + 4096);
    let source = SeededEntropy::new(SEED, state.device.taken_bytes);
    let pin = IrqPin::new(&IrqPins::new(), 7);
    let rng = Rng::restore(state.device, Box::new(source));
    let mut device = MmioTransport::restore(state.transport, rng, ram.dma().clone(), pin).unwrap();
    assert_eq!(ask(&mut device, &mut driver, 16), stream(67 + 4096, 16));
}

#[test]
fn a_guest_without_entropy_is_not_given_zeros() {
    struct Dry;
    impl EntropySource for Dry {
        fn fill(&mut self, _buf: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
    let (_ram, mut device, mut driver) = start(Dry);
    driver.post(0, &[Buffer::In(64)]);
    driver.notify(&mut device, 0);
    assert!(driver.take_used(0).is_none());
    assert_eq!(device.fault(), Some(QueueError::NoEntropy));
    assert_eq!(device.device().metrics().source_errors, 1);
}

#[test]
fn a_buffer_without_room_stops_the_device() {
    let (_ram, mut device, mut driver) = start(SeededEntropy::new(SEED, 0));
    driver.post(0, &[Buffer::Out(&[1; 64])]);
    driver.notify(&mut device, 0);
    assert_eq!(device.fault(), Some(QueueError::ShortChain));
}
