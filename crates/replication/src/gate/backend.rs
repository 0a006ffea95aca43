//! A card's way through the gate.

use std::io;
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
    slot: Mutex<Slot>,
    pub readiness: Readiness,
}

struct Slot {
    end: End,
    /// What the guest takes, once it has said so: the next end is told.
    accepted: Option<ReceiveOffloads>,
    /// How far the guest has come, while there is no end.
    position: InputPosition,
    /// The run loop is to look, as the end has come or gone.
    has_changed: bool,
}

enum End {
    /// None yet, as at a takeover before it is decided: what may leave waits.
    Awaited,
    Plugged(Inner),
    /// It is gone, and another one may come. Frames are lost meanwhile, as on any network.
    Unplugged,
    /// Another backend was wrapped for the same card.
    Replaced,
}

struct Inner {
    backend: Box<dyn FrameBackend>,
    /// The last frame found no room, and the descriptor is watched for some.
    blocked: bool,
}

impl Card {
    pub fn new(number: usize, backend: Box<dyn FrameBackend>) -> io::Result<Self> {
        let card = Self::awaiting(number)?;
        card.readiness.watch(backend.poll_fd())?;
        card.slot().end = End::Plugged(Inner { backend, blocked: false });
        Ok(card)
    }

    /// A card whose network end comes later.
    pub fn awaiting(number: usize) -> io::Result<Self> {
        let slot = Slot { end: End::Awaited, accepted: None, position: InputPosition::default(), has_changed: false };
        Ok(Self { number, slot: Mutex::new(slot), readiness: Readiness::new()? })
    }

    /// Whoever still holds the card finds it disconnected.
    pub fn disconnect(&self) {
        self.slot().end = End::Replaced;
    }

    /// Gives the card a network end, in place of the one that it had.
    pub fn plug(&self, mut backend: Box<dyn FrameBackend>) -> Result<(), BackendError> {
        let mut slot = self.slot();
        if let Some(accepted) = slot.accepted {
            backend.accept(accepted)?;
        }
        match &slot.end {
            End::Replaced => return Err(BackendError::Disconnected),
            End::Plugged(inner) => self.readiness.forget(inner.backend.poll_fd()),
            End::Awaited | End::Unplugged => {}
        }
        self.readiness.watch(backend.poll_fd())?;
        slot.end = End::Plugged(Inner { backend, blocked: false });
        self.note_change(&mut slot);
        Ok(())
    }

    /// Says how far the machine has taken frames, if there is no end that knows.
    pub fn resume_at(&self, position: InputPosition) {
        self.slot().position = position;
    }

    /// Whether it has a network end.
    pub fn is_plugged(&self) -> bool {
        matches!(self.slot().end, End::Plugged(_))
    }

    pub fn position(&self) -> InputPosition {
        self.slot().position()
    }

    /// Returns when no frame passes any more that was found to need no commit before.
    pub fn wait_for_passing(&self) {
        drop(self.slot());
    }

    /// Sends what may leave, as far as there is room. The lock is given up between frames, so that the VM's thread does
    /// not wait for all of them.
    pub fn send_released(&self, shared: &Shared) {
        while self.send_one_released(&mut self.slot(), shared) {}
    }

    /// Whether it was sent, or lost. Frames are taken out only under the lock of the card, so they keep their order.
    fn send_one_released(&self, slot: &mut Slot, shared: &Shared) -> bool {
        if matches!(slot.end, End::Awaited | End::Replaced) {
            return false;
        }
        let Some(waiting) = shared.queue().take_released(self.number) else { return false };
        let outcome = match &mut slot.end {
            End::Plugged(inner) => inner.backend.send(waiting.frame.bytes(), waiting.frame.offload()),
            End::Awaited | End::Unplugged | End::Replaced => Err(BackendError::Disconnected),
        };
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
        self.set_blocked(slot, full);
        self.note_loss(slot, &outcome);
        !full
    }

    fn set_blocked(&self, slot: &mut Slot, blocked: bool) {
        if let End::Plugged(inner) = &mut slot.end
            && inner.blocked != blocked
        {
            inner.blocked = blocked;
            self.readiness.watch_room_of(inner.backend.poll_fd(), blocked);
        }
    }

    /// Lets go of its end, which is there and of no use.
    pub fn unplug(&self) {
        self.note_loss(&mut self.slot(), &Err::<(), _>(BackendError::Disconnected));
    }

    /// Unplugs an end that has turned out to be gone.
    fn note_loss<T>(&self, slot: &mut Slot, outcome: &Result<T, BackendError>) {
        if !matches!(outcome, Err(BackendError::Disconnected)) {
            return;
        }
        if let End::Plugged(inner) = &slot.end {
            tracing::warn!(card = self.number, "the network end is gone");
            slot.position = inner.backend.position();
            self.readiness.forget(inner.backend.poll_fd());
            slot.end = End::Unplugged;
            self.note_change(slot);
        }
    }

    fn note_change(&self, slot: &mut Slot) {
        slot.has_changed = true;
        self.readiness.signal_change();
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn position(&self) -> InputPosition {
        match &self.end {
            End::Plugged(inner) => inner.backend.position(),
            End::Awaited | End::Unplugged | End::Replaced => self.position,
        }
    }

    fn is_blocked(&self) -> bool {
        matches!(&self.end, End::Plugged(Inner { blocked: true, .. }))
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
        let mut slot = card.slot();
        while card.send_one_released(&mut slot, &self.shared) {}
        if !matches!(slot.end, End::Plugged(_)) {
            return Err(BackendError::Disconnected);
        }
        // Asked again under the lock that `hold` waits for.
        let offer = self.shared.queue().offer(card.number, bytes, offload)?;
        if offer != Offer::Passes {
            if offer == Offer::Behind {
                self.shared.queue().refuse(card.number);
            }
            drop(slot);
            return Ok(self.outcome(offer));
        }
        let outcome = match &mut slot.end {
            End::Plugged(inner) => inner.backend.send(bytes, offload),
            End::Awaited | End::Unplugged | End::Replaced => Err(BackendError::Disconnected),
        };
        card.note_loss(&mut slot, &outcome);
        let outcome = outcome?;
        card.set_blocked(&mut slot, outcome == SendOutcome::Full);
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
        let mut slot = self.card.slot();
        if std::mem::take(&mut slot.has_changed) {
            self.card.readiness.acknowledge_change();
        }
        let was_blocked = slot.is_blocked();
        if was_blocked {
            while self.card.send_one_released(&mut slot, &self.shared) {}
        }
        let received = match &mut slot.end {
            End::Plugged(inner) => inner.backend.recv(buffer),
            End::Awaited | End::Unplugged => Ok(None),
            End::Replaced => Err(BackendError::Disconnected),
        };
        let is_replaced = matches!(slot.end, End::Replaced);
        self.card.note_loss(&mut slot, &received);
        let received = match received {
            // The link shows it.
            Err(BackendError::Disconnected) if !is_replaced => None,
            received => received?,
        };
        let position = slot.position();
        drop(slot);
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
        let mut slot = self.card.slot();
        slot.accepted = Some(offloads);
        let accepted = match &mut slot.end {
            End::Plugged(inner) => inner.backend.accept(offloads),
            End::Awaited | End::Unplugged => Ok(()),
            End::Replaced => Err(BackendError::Disconnected),
        };
        self.card.note_loss(&mut slot, &accepted);
        accepted
    }

    fn link_state(&self) -> LinkState {
        match &self.card.slot().end {
            End::Plugged(inner) => inner.backend.link_state(),
            End::Awaited | End::Unplugged | End::Replaced => LinkState::Down,
        }
    }

    fn position(&self) -> InputPosition {
        self.card.position()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.card.readiness.as_fd()
    }
}
