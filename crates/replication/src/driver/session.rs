//! The primary's connection to one secondary, from the first message to the last.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machine::clock::ClockReading;
use protocol::{
    Ack, AckSays, Epoch, Epochs, Generation, GuestClock, Heartbeats, Look, MonotonicTime, NotSent, PeerClock, Sending,
    Silence, Suspicion, Watched,
};
use spec::ReplicaId;

use super::capture::InFlight;
use super::clock;
use super::console::ConsoleInput;
use super::intake::Intake;
use super::message::{Inbound, Kind};
use super::outbox::Outbox;
use super::progress::Progress;
use crate::channel::Closer;
use crate::gate::InboundFrame;
use crate::lockstep::{EvidenceRing, LogProgress, LogRecorder};

pub(super) struct Session {
    /// Tells this session's events from those of earlier ones.
    pub id: u64,
    pub secondary: ReplicaId,
    /// It could execute the log.
    pub executes: bool,
    pub outbox: Outbox,
    pub suspicion: Suspicion,
    closer: Closer,
    heartbeats: Mutex<Heartbeats>,
    progress: Mutex<Progress>,
    /// What the secondary has of the first copy.
    pub intake: Intake,
    mirror: Mutex<MirrorState>,
    log: Mutex<Option<ActiveLog>>,
    silence: Mutex<Silence>,
    clocks: Mutex<Clocks>,
    reaches_network: AtomicBool,
}

/// What the thread of the VM and those of the channel share about epochs.
#[derive(Default)]
pub(super) struct MirrorState {
    pub epochs: Epochs,
    /// Of checkpoints that were captured and not acknowledged, oldest first.
    in_flight: VecDeque<InFlight>,
}

impl MirrorState {
    /// A checkpoint was captured, and `epochs` know it.
    pub fn push(&mut self, in_flight: InFlight) {
        self.in_flight.push_back(in_flight);
    }

    /// Takes what is kept of checkpoints that the secondary holds.
    fn take_held(&mut self, through: Epoch) -> Vec<InFlight> {
        let count = self.in_flight.iter().take_while(|in_flight| in_flight.epoch <= through).count();
        self.in_flight.drain(..count).collect()
    }
}

/// What the secondary has to know to let the guest's clock go on.
#[derive(Clone, Copy, Default)]
struct Clocks {
    /// The guest's, once it was captured: it goes with this host's.
    guest: Option<GuestClock>,
    /// The secondary's.
    secondary: PeerClock,
}

/// The log of what the guest does, while that is what the secondary follows.
pub(super) struct ActiveLog {
    pub recorder: Arc<LogRecorder>,
    pub progress: LogProgress,
    /// States that the secondary has not compared with its own yet.
    pub evidence: EvidenceRing,
}

impl Session {
    pub fn new(id: u64, secondary: ReplicaId, executes: bool, suspicion: Suspicion, closer: Closer) -> Self {
        Self {
            id,
            secondary,
            executes,
            outbox: Outbox::default(),
            suspicion,
            closer,
            heartbeats: Mutex::new(Heartbeats::new(suspicion)),
            progress: Mutex::default(),
            intake: Intake::default(),
            mirror: Mutex::default(),
            log: Mutex::default(),
            silence: Mutex::new(Silence::new(suspicion, clock::now())),
            clocks: Mutex::default(),
            reaches_network: AtomicBool::new(true),
        }
    }

    pub fn mirror(&self) -> MutexGuard<'_, MirrorState> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never held while a frame is sent or the core is looked at.
    pub fn log(&self) -> MutexGuard<'_, Option<ActiveLog>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heartbeats(&self) -> MutexGuard<'_, Heartbeats> {
        self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers a message that counts as a heartbeat and is sent right away.
    pub fn number_heartbeat(&self) -> u64 {
        self.heartbeats().number_next(clock::now())
    }

    /// What an ack says, and what was kept of checkpoints that it commits.
    pub fn hear_ack(&self, ack: &Ack) -> Result<(AckSays, Vec<InFlight>), NotSent> {
        let (heartbeats, mut mirror) = (self.heartbeats(), self.mirror());
        let says = ack.says(&heartbeats, &mut mirror.epochs, clock::now())?;
        let held = match (&says, ack.epoch) {
            (AckSays::Commits(_), Some(epoch)) => mirror.take_held(epoch),
            _ => Vec::new(),
        };
        Ok((says, held))
    }

    fn silence(&self) -> MutexGuard<'_, Silence> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the secondary lives.
    pub fn heard(&self) {
        self.silence().heard(clock::now());
    }

    /// What the way to the secondary is like.
    pub fn watched(&self) -> Watched {
        self.silence().watched(clock::now())
    }

    fn clocks(&self) -> MutexGuard<'_, Clocks> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the clock of the guest shows, which was just captured.
    pub fn set_guest_clock(&self, reading: ClockReading) {
        self.clocks().guest = Some(clock::of_guest(reading));
    }

    /// Notes what the secondary says of its own clock.
    pub fn heard_clock(&self, sent_at: MonotonicTime) {
        self.clocks().secondary.heard(sent_at, clock::now());
    }

    /// What the guest's clock shows, by that of the secondary.
    pub fn guest_clock(&self) -> Option<GuestClock> {
        let Clocks { guest, secondary } = *self.clocks();
        guest?.seen_by(&secondary, clock::now())
    }

    /// Notes whether the secondary says that it reaches its network ends.
    pub fn set_reaches_network(&self, reaches: bool) {
        self.reaches_network.store(reaches, Ordering::Release);
    }

    pub fn reaches_network(&self) -> bool {
        self.reaches_network.load(Ordering::Acquire)
    }

    /// How to look for its next message.
    pub fn look(&self) -> Look {
        self.silence().look(clock::now())
    }

    /// What takes what is sent to the secondary.
    pub fn sending(&self) -> Sending {
        let lag = self.log().as_ref().map_or(Duration::ZERO, |log| log.progress.lag());
        Sending { is_idle: self.outbox.is_idle(), is_full: self.outbox.is_full(), lag }
    }

    pub fn tell_released(&self, through: Epoch) {
        // A secondary that does not hear of it sends a little too much again at takeover.
        self.outbox.push_in_passing(Kind::Released, through.number().to_le_bytes().to_vec());
    }

    pub fn tell_entitled(&self, generation: Generation) {
        self.outbox.push_urgent(Kind::Entitled, generation.number().to_le_bytes().to_vec());
    }

    /// `input` is what was typed on the console up to what the secondary holds, if that is known.
    pub fn ask_to_take_over(&self, input: Option<&ConsoleInput>) {
        // A structure of integers and bytes always serializes.
        let payload = input.and_then(|input| postcard::to_stdvec(input).ok());
        self.outbox.push_urgent(Kind::HandOver, payload.unwrap_or_default());
    }

    /// Passes a frame on that the guest has not seen yet.
    pub fn forward(&self, card: usize, frame: &InboundFrame) {
        let inbound = Inbound { card: u32::try_from(card).unwrap_or(u32::MAX), frame: frame.clone() };
        if let Ok(payload) = postcard::to_stdvec(&inbound)
            && !self.outbox.push_urgent(Kind::Inbound, payload)
        {
            tracing::debug!(card, "an inbound frame was not passed on to the secondary");
        }
    }

    /// Ends the connection, on both sides.
    pub fn close(&self) {
        if let Some(log) = self.log().as_ref() {
            log.recorder.stop();
        }
        self.outbox.close();
        self.closer.close();
    }
}
