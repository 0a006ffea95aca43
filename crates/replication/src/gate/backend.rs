//! A card's way through the gate.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use network::{
    BackendError, FrameBackend, FrameOffload, InputPosition, LinkState, ReceiveOffloads, Received, SendOutcome,
};

use super::Shared;
use super::frame::InboundFrame;
use super::queue::Offer;
use super::readiness::Readiness;

/// One card's network end, behind the gate.
pub(super) struct Card {
    number: usize,
    /// None once another backend was wrapped for the same card.
    inner: Mutex<Option<Inner>>,
    pub readiness: Readiness,
}

struct Inner {
    backend: Box<dyn FrameBackend>,
    /// The last frame found no room, and the descriptor is watched for some.
    blocked: bool,
}

impl Card {
    pub fn new(number: usize, backend: Box<dyn FrameBackend>) -> std::io::Result<Self> {
        let readiness = Readiness::new(backend.poll_fd())?;
        Ok(Self { number, inner: Mutex::new(Some(Inner { backend, blocked: false })), readiness })
    }

    /// Whoever still holds the card finds it disconnected.
    pub fn disconnect(&self) {
        *self.inner() = None;
    }

    pub fn position(&self) -> InputPosition {
        self.inner().as_ref().map(|inner| inner.backend.position()).unwrap_or_default()
    }

    /// Returns when no frame passes any more that was found to need no commit before.
    pub fn wait_for_passing(&self) {
        drop(self.inner());
    }

    /// Sends what may leave, as far as there is room. The lock is given up between frames, so that the VM's thread does
    /// not wait for all of them.
    pub fn send_released(&self, shared: &Shared) {
        loop {
            let mut guard = self.inner();
            let Some(inner) = guard.as_mut() else { return };
            if !self.send_one_released(inner, shared) {
                return;
            }
        }
    }

    /// Whether it was sent. Frames are taken out only under the lock of the card, so they keep their order.
    fn send_one_released(&self, inner: &mut Inner, shared: &Shared) -> bool {
        let Some(waiting) = shared.queue().take_released(self.number) else { return false };
        let outcome = inner.backend.send(waiting.frame.bytes(), waiting.frame.offload());
        let mut queue = shared.queue();
        match &outcome {
            Ok(SendOutcome::Sent) => queue.left(&waiting),
            Ok(SendOutcome::Full) => queue.put_back(waiting),
            Err(error) => {
                queue.dropped();
                tracing::debug!(card = self.number, %error, "released frame not sent");
            }
        }
        drop(queue);
        let full = matches!(outcome, Ok(SendOutcome::Full));
        self.set_blocked(inner, full);
        !full
    }

    fn set_blocked(&self, inner: &mut Inner, blocked: bool) {
        if inner.blocked != blocked {
            inner.blocked = blocked;
            self.readiness.watch_room_of(inner.backend.poll_fd(), blocked);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Option<Inner>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a card is given in place of its backend.
pub(super) struct GatedBackend {
    pub card: Arc<Card>,
    pub shared: Arc<Shared>,
}

impl GatedBackend {
    /// Sends a frame at once, unless the gate is held meanwhile.
    fn pass(&self, bytes: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        let card = &*self.card;
        let mut guard = card.inner();
        let inner = guard.as_mut().ok_or(BackendError::Disconnected)?;
        while card.send_one_released(inner, &self.shared) {}
        // Asked again under the lock that `hold` waits for.
        let offer = self.shared.queue().offer(card.number, bytes, offload)?;
        if offer != Offer::Passes {
            if offer == Offer::Behind {
                self.shared.queue().refuse(card.number);
            }
            drop(guard);
            return Ok(self.outcome(offer));
        }
        let outcome = inner.backend.send(bytes, offload)?;
        card.set_blocked(inner, outcome == SendOutcome::Full);
        if outcome == SendOutcome::Sent {
            self.shared.queue().passed();
        }
        Ok(outcome)
    }

    /// What the card is told of a frame that was not passed.
    fn outcome(&self, offer: Offer) -> SendOutcome {
        match offer {
            Offer::Waits { first } => {
                if first {
                    (self.shared.on_waiting)();
                }
                SendOutcome::Sent
            }
            Offer::Full | Offer::Behind | Offer::Passes => SendOutcome::Full,
        }
    }
}

impl FrameBackend for GatedBackend {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        self.card.readiness.acknowledge_room();
        let offer = self.shared.queue().offer(self.card.number, frame, offload)?;
        match offer {
            Offer::Waits { .. } | Offer::Full => Ok(self.outcome(offer)),
            Offer::Behind | Offer::Passes => self.pass(frame, offload),
        }
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        let mut guard = self.card.inner();
        let inner = guard.as_mut().ok_or(BackendError::Disconnected)?;
        let was_blocked = inner.blocked;
        if was_blocked {
            while self.card.send_one_released(inner, &self.shared) {}
        }
        let received = inner.backend.recv(buffer)?;
        let position = inner.backend.position();
        drop(guard);
        if was_blocked {
            self.shared.wake_refused();
        }
        if let Some(Received { len, offload }) = received
            && let Some(tap) = &*self.shared.tap()
        {
            let bytes = buffer.get(..len).unwrap_or_default().to_vec();
            tap(self.card.number, &InboundFrame { position, header: offload.to_header(), bytes });
        }
        Ok(received)
    }

    fn accept(&mut self, offloads: ReceiveOffloads) -> Result<(), BackendError> {
        self.card.inner().as_mut().ok_or(BackendError::Disconnected)?.backend.accept(offloads)
    }

    fn link_state(&self) -> LinkState {
        self.card.inner().as_ref().map_or(LinkState::Down, |inner| inner.backend.link_state())
    }

    fn position(&self) -> InputPosition {
        self.card.position()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.card.readiness.as_fd()
    }
}
