//! Cards behind an output gate, with the network ends of tests.

mod flow;
mod inbound;
mod rule;
mod saved;

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use network::{
    BackendError, FrameBackend, FrameOffload, InputPosition, LinkState, ReceiveOffloads, Received, SendOutcome,
};
use replication::gate::OutputGate;

/// What a [`TestEnd`] took and has.
#[derive(Default)]
struct Content {
    sent: Vec<Vec<u8>>,
    /// Frames it still takes.
    room: usize,
    inbound: VecDeque<Vec<u8>>,
    taken: u64,
    accepted: Option<ReceiveOffloads>,
}

/// A network end whose insides tests can see. Clones share them.
#[derive(Clone)]
struct TestEnd {
    content: Arc<Mutex<Content>>,
    fd: Arc<UnixStream>,
    /// Makes `fd` readable.
    peer: Arc<UnixStream>,
}

impl TestEnd {
    fn new(room: usize) -> Self {
        let (fd, peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        let content = Arc::new(Mutex::new(Content { room, ..Content::default() }));
        Self { content, fd: Arc::new(fd), peer: Arc::new(peer) }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    /// The first bytes of the frames it took, as numbers.
    fn sent(&self) -> Vec<u64> {
        self.content().sent.iter().map(|frame| number_of(frame)).collect()
    }

    fn push_inbound(&self, frame: Vec<u8>) {
        self.content().inbound.push_back(frame);
        // One that is full is readable already.
        let _ = (&*self.peer).write(&[1]);
    }
}

impl FrameBackend for TestEnd {
    fn send(&mut self, frame: &[u8], _offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        let mut content = self.content();
        if content.room == 0 {
            return Ok(SendOutcome::Full);
        }
        content.room -= 1;
        content.sent.push(frame.to_vec());
        Ok(SendOutcome::Sent)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        let mut content = self.content();
        let Some(frame) = content.inbound.pop_front() else { return Ok(None) };
        content.taken += 1;
        buffer[..frame.len()].copy_from_slice(&frame);
        Ok(Some(Received { len: frame.len(), offload: FrameOffload::default() }))
    }

    fn accept(&mut self, offloads: ReceiveOffloads) -> Result<(), BackendError> {
        self.content().accepted = Some(offloads);
        Ok(())
    }

    fn link_state(&self) -> LinkState {
        LinkState::Up
    }

    fn position(&self) -> InputPosition {
        InputPosition { end: 77, frames: self.content().taken }
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A gate, and how often it said that output waits.
fn counting_gate() -> (OutputGate, Arc<AtomicUsize>) {
    let waits = Arc::new(AtomicUsize::new(0));
    let counter = waits.clone();
    let gate = OutputGate::new(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    (gate, waits)
}

fn frame(number: u64) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..8].copy_from_slice(&number.to_le_bytes());
    frame
}

fn number_of(frame: &[u8]) -> u64 {
    u64::from_le_bytes(frame[..8].try_into().unwrap())
}

/// Offers a numbered frame; whether it was taken.
fn send(card: &mut Box<dyn FrameBackend>, number: u64) -> bool {
    card.send(&frame(number), FrameOffload::default()).unwrap() == SendOutcome::Sent
}

/// Whether a run loop that polls the card for reading, and nothing else, would wake within `timeout`.
fn wakes(card: &dyn FrameBackend, timeout: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(card.poll_fd(), PollFlags::IN)];
    let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
    poll(&mut fds, Some(&timeout)).unwrap() == 1
}
