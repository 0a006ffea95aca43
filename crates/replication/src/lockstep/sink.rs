//! Where the cards of a secondary lead.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::rng::EntropySource;
use network::{
    BackendError, FrameBackend, FrameOffload, InputPosition, LinkState, ReceiveOffloads, Received, SendOutcome,
};
use rustix::event::{EventfdFlags, eventfd};

use crate::gate::{GATE_FRAMES_MAX, GatedFrame};

/// What the guest of a secondary has sent, in order, until somebody takes it: no more than a gate holds, of which the oldest are forgotten
/// first. Clones are the same sink.
#[derive(Clone, Debug, Default)]
pub(super) struct OutputSink(Arc<Mutex<VecDeque<GatedFrame>>>);

impl OutputSink {
    fn frames(&self) -> MutexGuard<'_, VecDeque<GatedFrame>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was sent since the last call.
    pub fn take(&self) -> Vec<GatedFrame> {
        std::mem::take(&mut *self.frames()).into()
    }

    /// The end of a card.
    pub fn card(&self, number: u32) -> std::io::Result<SinkCard> {
        Ok(SinkCard {
            number,
            sink: self.clone(),
            never_ready: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }
}

/// A network that takes every frame and has none: what the guest receives comes from the log.
#[derive(Debug)]
pub(super) struct SinkCard {
    number: u32,
    sink: OutputSink,
    never_ready: OwnedFd,
}

impl FrameBackend for SinkCard {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        let frame = GatedFrame::new(self.number, frame, offload)?;
        let mut frames = self.sink.frames();
        if frames.len() == GATE_FRAMES_MAX {
            frames.pop_front();
        }
        frames.push_back(frame);
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
        self.never_ready.as_fd()
    }
}

/// A console that nobody reads.
#[derive(Debug)]
pub(super) struct NoConsole;

impl ConsoleSink for NoConsole {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// A source of entropy that has none: what the guest took is in the log.
#[derive(Debug)]
pub(super) struct NoEntropy;

impl EntropySource for NoEntropy {
    fn fill(&mut self, _buf: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::Error::other("the log holds no more of it"))
    }
}
