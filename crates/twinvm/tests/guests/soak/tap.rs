//! The cards' ways out.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, OnceLock};

use network::{
    BackendError, FrameBackend, FrameOffload, InputPosition, LinkState, ReceiveOffloads, Received, SendOutcome,
};
use replication::lockstep::LogRecorder;

use crate::support::replay::Nowhere;

/// The frames that have left a guest, in order: how many, and a digest.
#[derive(Clone, Default)]
pub struct Output(Arc<Mutex<(u64, DefaultHasher)>>);

impl Output {
    fn add(&self, frame: &[u8], offload: FrameOffload) {
        let (frames, hasher) = &mut *self.0.lock().unwrap();
        *frames += 1;
        (frame, offload.to_header()).hash(hasher);
    }

    pub fn so_far(&self) -> (u64, u64) {
        let (frames, hasher) = &*self.0.lock().unwrap();
        (*frames, hasher.finish())
    }
}

/// A link that tells the recorder, once there is one, of each frame that leaves, as the gate of a protected VM does. So slices end where
/// they do there.
pub struct Tap {
    pub link: Box<dyn FrameBackend>,
    pub recorder: Arc<OnceLock<Arc<LogRecorder>>>,
    /// Since there is a recorder.
    pub output: Output,
}

/// A network that takes every frame of the replaying VM and has none.
pub struct Sink {
    pub link: Nowhere,
    pub output: Output,
}

impl FrameBackend for Tap {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        let outcome = self.link.send(frame, offload)?;
        if let Some(recorder) = self.recorder.get() {
            recorder.output_waits();
            if outcome == SendOutcome::Sent {
                self.output.add(frame, offload);
            }
        }
        Ok(outcome)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        self.link.recv(buffer)
    }

    fn accept(&mut self, offloads: ReceiveOffloads) -> Result<(), BackendError> {
        self.link.accept(offloads)
    }

    fn link_state(&self) -> LinkState {
        self.link.link_state()
    }

    fn position(&self) -> InputPosition {
        self.link.position()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.link.poll_fd()
    }
}

impl FrameBackend for Sink {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        self.output.add(frame, offload);
        self.link.send(frame, offload)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        self.link.recv(buffer)
    }

    fn accept(&mut self, offloads: ReceiveOffloads) -> Result<(), BackendError> {
        self.link.accept(offloads)
    }

    fn link_state(&self) -> LinkState {
        self.link.link_state()
    }

    fn position(&self) -> InputPosition {
        self.link.position()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.link.poll_fd()
    }
}
