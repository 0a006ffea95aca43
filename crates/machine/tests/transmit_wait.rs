//! A frame that finds no room outside, on a platform whose queues the VM's thread serves.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use machine::bus::BusDevice;
use machine::control::Control;
use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::net::NetConfig;
use machine::devices::virtio::rng::SeededEntropy;
use machine::devices::virtio::testing::{Buffer, GuestDriver};
use machine::map;
use machine::platform::{Parts, Platform};
use memory::GuestRam;
use network::{
    BackendError, FrameBackend, FrameOffload, HEADER_LEN, InputPosition, LinkState, ReceiveOffloads, Received,
    SendOutcome,
};
use spec::MacAddr;

/// How long to wait for room that is there. Only a defect waits so long.
const HUNG: Duration = Duration::from_secs(10);
const TRANSMIT_QUEUE: usize = 1;

/// A network of one socket's room: a byte stands for each frame.
struct Narrow(UnixStream);

impl FrameBackend for Narrow {
    fn send(&mut self, _frame: &[u8], _offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        match self.0.write(&[1]) {
            Ok(_) => Ok(SendOutcome::Sent),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(SendOutcome::Full),
            Err(error) => Err(error.into()),
        }
    }

    fn recv(&mut self, _buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        Ok(None)
    }

    fn accept(&mut self, _offloads: ReceiveOffloads) -> Result<(), BackendError> {
        Ok(())
    }

    fn link_state(&self) -> LinkState {
        LinkState::Up
    }

    fn position(&self) -> InputPosition {
        InputPosition::default()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Nobody;

impl ConsoleSink for Nobody {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// The window of the first virtio device.
struct Window<'a>(&'a Platform);

impl BusDevice for Window<'_> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.mmio_read(map::VIRTIO_MMIO + offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.mmio_write(map::VIRTIO_MMIO + offset, data);
    }
}

/// Reads until nothing is left; returns how much there was.
fn drain(socket: &mut UnixStream) -> usize {
    let (mut total, mut buffer) = (0, [0; 4096]);
    while let Ok(read @ 1..) = socket.read(&mut buffer) {
        total += read;
    }
    total
}

#[test]
fn a_frame_that_found_no_room_goes_when_there_is_some_though_nothing_comes_in() {
    let (mut here, mut there) = UnixStream::pair().unwrap();
    here.set_nonblocking(true).unwrap();
    there.set_nonblocking(true).unwrap();
    while here.write(&[0]).is_ok() {}
    let config = NetConfig { mac: MacAddr::for_vm("narrow", 0), mtu: 1500 };
    let parts = Parts {
        disks: Vec::new(),
        cards: vec![(config, Box::new(Narrow(here)))],
        console: Box::new(Nobody),
        entropy: Box::new(SeededEntropy::new(1, 0)),
    };
    let ram = GuestRam::new(8 << 20).unwrap();
    let mut platform = Platform::new(&ram, 0, parts).unwrap();
    platform.queue_requests().unwrap();
    let control = Control::new().unwrap();
    let mut driver = GuestDriver::new(&ram);
    driver.start(&mut Window(&platform), 0, 16);
    driver.post(TRANSMIT_QUEUE, &[Buffer::Out(&[0; HEADER_LEN]), Buffer::Out(&[2; 60])]);
    let queues = platform.notifications().iter();
    let notification = queues.clone().find(|notification| notification.queue == TRANSMIT_QUEUE as u32).unwrap();
    notification.event.write(1).unwrap();

    assert!(platform.wait_for_work(&control, Some(Duration::ZERO)).unwrap().queues);
    assert!(!platform.serve_queues());
    assert_eq!(platform.card_metrics()[0].unwrap().tx_waited, 1);
    assert!(!platform.wait_for_work(&control, Some(Duration::ZERO)).unwrap().inputs);

    drain(&mut there);
    assert!(platform.wait_for_work(&control, Some(HUNG)).unwrap().inputs, "nobody waits for room");
    platform.collect_inputs(&control, &mut Vec::new());
    assert_eq!((platform.card_metrics()[0].unwrap().tx_frames, drain(&mut there)), (1, 1));
}
