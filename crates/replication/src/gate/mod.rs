//! The output gate: where a protected VM's frames wait for their commit, and where inbound frames are passed on.
//!
//! **Output rule.** No frame leaves a protected VM before the secondary holds what it needs to reproduce the state that
//! produced it. While the gate is [held](OutputGate::hold), a frame belongs to the epoch under way; a
//! [checkpoint](OutputGate::close_epoch) gives the epoch its number and takes copies of its frames along; its commit
//! [releases](OutputGate::release) them. Each card's frames leave in the order the guest sent them.
//!
//! Nothing can bypass the gate. A card reaches the world through the one [`FrameBackend`] that it was constructed with,
//! and [`OutputGate::wrap`] takes that backend over by value: the VM gets what it returns and nothing else. Behind it
//! there are two ways to the wrapped backend's `send`: the frame was marked as released, which only [`OutputGate::open`],
//! [`OutputGate::release`] and the two methods for takeovers do, or the gate was found open under a lock that
//! [`OutputGate::hold`] waits for before it returns.
//!
//! **No thread waits for the network.** A released frame that finds no room stays first in its card's queue; it leaves
//! as soon as the VM's thread finds the network end writable, or with the next release. What waits is bounded
//! ([`GATE_BYTES_MAX`], [`GATE_FRAMES_MAX`]); beyond that a card is told [`network::SendOutcome::Full`], keeps its frame
//! and offers it again.
//!
//! **What the run loop has to do** is what it does for any backend: while a card has frames that found no room, offer
//! them again whenever [`FrameBackend::poll_fd`] wakes it, and call [`FrameBackend::recv`] each time. The gate's
//! descriptor says everything by becoming readable: a frame for the guest, room in the network end, room in the gate.
//!
//! **Inbound**, the gate shows each frame to the [tap](OutputGate::set_input_tap) before the machine gets it, and knows
//! [how far](OutputGate::input_positions) the machine has come.

mod announce;
mod backend;
mod frame;
mod queue;
mod readiness;
mod status;
mod wait_times;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use network::{BackendError, FrameBackend, FrameOffload, InputPosition};
use protocol::{Epoch, left_through};
use spec::MacAddr;

pub(crate) use frame::bytes_of;
pub use frame::{GatedFrame, InboundFrame};
pub use queue::{GATE_BYTES_MAX, GATE_FRAMES_MAX};
pub use status::GateStatus;

use announce::announcement;
use backend::{Card, GatedBackend};
use queue::OutputQueue;

/// Called when the first output of an epoch begins to wait, in the thread of the vCPU that sent it and under its card's
/// lock: it must be quick and leave the VM's devices alone.
pub type OnWaiting = Box<dyn Fn() + Send + Sync>;

/// Called with a card's number and each frame for it, in the thread that feeds the VM.
pub type InputTap = Box<dyn Fn(usize, &InboundFrame) + Send + Sync>;

/// The gate of one VM. Clones are the same gate; all methods can be called from any thread, but not from the callbacks.
#[derive(Clone)]
pub struct OutputGate {
    shared: Arc<Shared>,
}

/// Locks are taken in the order card, `queue`; `cards` and `tap` are held alone, or below nothing.
struct Shared {
    on_waiting: OnWaiting,
    queue: Mutex<OutputQueue>,
    cards: Mutex<BTreeMap<usize, Arc<Card>>>,
    tap: RwLock<Option<InputTap>>,
}

impl OutputGate {
    /// An open gate without cards.
    pub fn new(on_waiting: OnWaiting) -> Self {
        let shared = Shared { on_waiting, queue: Mutex::default(), cards: Mutex::default(), tap: RwLock::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Puts the gate between card number `card` and its backend. If the card had one before, as before a reset of the
    /// VM, that one is disconnected, and frames that wait leave through the new one.
    ///
    /// # Errors
    /// When the process may open no more descriptors, or the backend's cannot be polled.
    pub fn wrap(&self, card: usize, inner: Box<dyn FrameBackend>) -> io::Result<Box<dyn FrameBackend>> {
        Ok(self.insert(Card::new(card, inner)?, card))
    }

    /// A card whose network end comes later, by [`Self::plug`]; until then its link is down, and committed output waits.
    ///
    /// # Errors
    /// As [`Self::wrap`].
    pub fn await_end(&self, card: usize) -> io::Result<Box<dyn FrameBackend>> {
        Ok(self.insert(Card::awaiting(card)?, card))
    }

    /// Gives a card its network end: the first one, or another in place of one that is gone. The machine sees its link come up.
    ///
    /// # Errors
    /// [`BackendError`]; the card is as before then.
    pub fn plug(&self, card: usize, end: Box<dyn FrameBackend>) -> Result<(), BackendError> {
        let gated = self.shared.cards_by_number().get(&card).cloned().ok_or(BackendError::Disconnected)?;
        gated.plug(end)?;
        gated.send_released(&self.shared);
        self.shared.wake_refused();
        Ok(())
    }

    /// Lets go of a card's network end, which does not answer: the machine sees its link go down until another one is plugged.
    pub fn unplug(&self, card: usize) {
        // Nobody waits for the card meanwhile.
        let gated = self.shared.cards_by_number().get(&card).cloned();
        if let Some(gated) = gated {
            gated.unplug();
        }
    }

    /// At takeover, says how far the machine has taken each card's frames, in the order of the cards: its network end goes on there.
    pub fn resume_at(&self, positions: &[InputPosition]) {
        for (card, position) in self.shared.cards().iter().zip(positions) {
            card.resume_at(*position);
        }
    }

    /// The cards that have no network end now, and how far the machine has taken their frames.
    pub fn unplugged(&self) -> Vec<(usize, InputPosition)> {
        let cards = self.shared.cards_by_number().clone();
        let unplugged = cards.into_iter().filter(|(_, card)| !card.is_plugged());
        unplugged.map(|(number, card)| (number, card.position())).collect()
    }

    fn insert(&self, gated: Card, number: usize) -> Box<dyn FrameBackend> {
        let gated = Arc::new(gated);
        self.shared.queue().add_card(number);
        let before = self.shared.cards_by_number().insert(number, gated.clone());
        if let Some(before) = before {
            before.disconnect();
        }
        Box::new(GatedBackend { card: gated, shared: self.shared.clone() })
    }

    /// From now on output waits for its commit. When this returns no frame is under way that did not.
    pub fn hold(&self) {
        self.shared.queue().hold();
        for card in self.shared.cards() {
            card.wait_for_passing();
        }
    }

    /// Lets all leave that waits, and from now on lets everything pass: for a replica that is alone legitimately.
    pub fn open(&self) {
        self.shared.queue().open();
        self.shared.send_released();
    }

    /// Ends the epoch under way: its output waits for the commit of `epoch`. Returns copies, each card's frames in order,
    /// which share their bytes with what waits. To be called while the guest is paused.
    pub fn close_epoch(&self, epoch: Epoch) -> Vec<GatedFrame> {
        self.shared.queue().close_epoch(epoch)
    }

    /// The epochs up to `through` are committed: their output leaves. An epoch that was never closed, or was released
    /// before, does no harm: what is closed later waits all the same. Returns the epoch through which all output has left by now: a
    /// frame that finds no room in its network end leaves later.
    pub fn release(&self, through: Epoch) -> Epoch {
        self.shared.queue().release(through);
        self.shared.send_released();
        let oldest_waiting = self.shared.queue().oldest_released();
        left_through(through, oldest_waiting)
    }

    /// At takeover, sends committed output of the replica before that may not have left. To be called before the guest
    /// runs. Frames beyond what a gate holds, and those for unknown cards, are dropped and counted.
    pub fn send_again(&self, frames: &[GatedFrame]) {
        let mut queue = self.shared.queue();
        for frame in frames {
            queue.insert_released(frame.clone());
        }
        drop(queue);
        self.shared.send_released();
    }

    /// At takeover, tells the networks at which port the cards are now; `macs` in the order of the cards.
    pub fn announce(&self, macs: &[MacAddr]) {
        let frames = macs.iter().zip(0..).filter_map(|(mac, card)| {
            // It is short and leaves nothing open.
            GatedFrame::new(card, &announcement(*mac), FrameOffload::default()).ok()
        });
        self.send_again(&frames.collect::<Vec<_>>());
    }

    /// Has each inbound frame shown to `tap`, or to nobody, before the machine gets it. When this returns, the tap before
    /// is not called any more.
    pub fn set_input_tap(&self, tap: Option<InputTap>) {
        *self.shared.tap.write().unwrap_or_else(PoisonError::into_inner) = tap;
    }

    /// How far the machine has taken each card's frames; cards that were not wrapped have the default position.
    pub fn input_positions(&self) -> Vec<InputPosition> {
        let cards = self.shared.cards_by_number().clone();
        let count = cards.keys().next_back().map_or(0, |last| last + 1);
        (0..count).map(|number| cards.get(&number).map(|card| card.position()).unwrap_or_default()).collect()
    }

    /// What waits, and what has passed.
    pub fn status(&self) -> GateStatus {
        self.shared.queue().status()
    }
}

impl fmt::Debug for OutputGate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OutputGate").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, OutputQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cards_by_number(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<Card>>> {
        self.cards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cards(&self) -> Vec<Arc<Card>> {
        self.cards_by_number().values().cloned().collect()
    }

    fn tap(&self) -> RwLockReadGuard<'_, Option<InputTap>> {
        self.tap.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what may leave, as far as there is room.
    fn send_released(&self) {
        for card in self.cards() {
            card.send_released(self);
        }
        self.wake_refused();
    }

    /// Lets cards try again that found no room in the gate, if there is some now.
    fn wake_refused(&self) {
        let refused = self.queue().take_refused();
        if refused.is_empty() {
            return;
        }
        let cards = self.cards_by_number();
        for card in refused.iter().filter_map(|number| cards.get(number)) {
            card.readiness.signal_room();
        }
    }
}
