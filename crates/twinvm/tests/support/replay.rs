//! What a VM is replayed with.

use std::io;
use std::os::fd::BorrowedFd;

use memory::{GuestRam, PAGE_BYTES};
use network::{
    BackendError, CableEnd, FrameBackend, FrameOffload, InputPosition, LinkState, ReceiveOffloads, Received,
    SendOutcome,
};

/// A network that nobody is on: takes every frame and has none.
pub struct Nowhere(CableEnd);

impl Nowhere {
    pub fn new() -> io::Result<Self> {
        Ok(Self(network::pair()?.0))
    }
}

impl FrameBackend for Nowhere {
    fn send(&mut self, _frame: &[u8], _offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        Ok(SendOutcome::Sent)
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
        self.0.poll_fd()
    }
}

/// Memory of its own with the same content.
pub fn copy_of(ram: &GuestRam) -> GuestRam {
    let copy = GuestRam::new(ram.size_bytes()).unwrap();
    let mut page = vec![0; PAGE_BYTES as usize];
    for number in 0..ram.pages() {
        ram.read_offset(number * PAGE_BYTES, &mut page);
        if page.iter().any(|&byte| byte != 0) {
            copy.write_offset(number * PAGE_BYTES, &page);
        }
    }
    copy
}
