//! The card's way out.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use network::{
    BackendError, FrameBackend, FrameOffload, InputPosition, LinkState, ReceiveOffloads, Received, SendOutcome,
};
use replication::lockstep::LogRecorder;

/// A link that tells the recorder, once there is one, of each frame that leaves, as the gate of a protected VM does. So slices end where
/// they do there.
pub struct Tap {
    pub link: Box<dyn FrameBackend>,
    pub recorder: Arc<OnceLock<Arc<LogRecorder>>>,
}

impl FrameBackend for Tap {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        if let Some(recorder) = self.recorder.get() {
            recorder.output_waits();
        }
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
