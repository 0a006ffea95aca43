//! The primary's connection to one secondary, from the first message to the last.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::capture::InFlight;
use super::message::{ENTITLED, INBOUND, Inbound, RELEASED};
use super::outbox::Outbox;
use super::progress::Progress;
use crate::channel::Closer;
use crate::gate::InboundFrame;
use crate::lockstep::{EvidenceRing, LogProgress, LogRecorder};
use protocol::{Epoch, Generation, ReplicaId};

/// Heartbeats whose time of sending is remembered; older ones are stale whatever the suspicion time is.
const HEARTBEATS_KEPT: usize = 4096;

/// So much of the suspicion time a heartbeat counts as fresh: the rest is for clocks of hosts that do not run at the same rate.
const FRESH_EIGHTHS: u32 = 7;

/// Heartbeats per suspicion time.
pub(super) const HEARTBEATS_PER_SUSPICION: u32 = 5;

pub(super) struct Session {
    /// Tells this session's events from those of earlier ones.
    pub id: u64,
    pub secondary: ReplicaId,
    /// It could execute the log.
    pub executes: bool,
    pub outbox: Outbox,
    pub suspicion: Duration,
    closer: Closer,
    heartbeats: Mutex<Heartbeats>,
    progress: Mutex<Progress>,
    mirror: Mutex<MirrorState>,
    log: Mutex<Option<ActiveLog>>,
    last_heard: Mutex<Instant>,
}

/// What the thread of the VM and those of the channel share about epochs.
#[derive(Default)]
pub(super) struct MirrorState {
    /// Checkpoints are being taken.
    pub mirroring: bool,
    /// Captured and not acknowledged, oldest first.
    pub in_flight: VecDeque<InFlight>,
    /// Epochs that segments of the log have ended and that are not acknowledged, oldest first, and since when.
    pub segments: VecDeque<(Epoch, Instant)>,
    /// Last epoch whose checkpoint or segment was sent, or is being sent: no later one can be acknowledged.
    pub sent_through: Epoch,
    /// The guest sent something since the last capture, and it waits.
    pub output_waits: bool,
    /// When the epoch under way began.
    pub epoch_since: Option<Instant>,
}

/// The log of what the guest does, while that is what the secondary follows.
pub(super) struct ActiveLog {
    pub recorder: Arc<LogRecorder>,
    pub progress: LogProgress,
    /// States that the secondary has not compared with its own yet.
    pub evidence: EvidenceRing,
}

struct Heartbeats {
    sent: VecDeque<Instant>,
    /// Number of the first of `sent`.
    first: u64,
}

impl Session {
    pub fn new(id: u64, secondary: ReplicaId, executes: bool, suspicion: Duration, closer: Closer) -> Self {
        Self {
            id,
            secondary,
            executes,
            outbox: Outbox::default(),
            suspicion,
            closer,
            heartbeats: Mutex::new(Heartbeats { sent: VecDeque::new(), first: 1 }),
            progress: Mutex::default(),
            mirror: Mutex::default(),
            log: Mutex::default(),
            last_heard: Mutex::new(Instant::now()),
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
        let mut heartbeats = self.heartbeats();
        heartbeats.sent.push_back(Instant::now());
        if heartbeats.sent.len() > HEARTBEATS_KEPT {
            heartbeats.sent.pop_front();
            heartbeats.first += 1;
        }
        heartbeats.first + heartbeats.sent.len() as u64 - 1
    }

    /// Whether the secondary, having heard this heartbeat, cannot have suspected the primary yet: it was sent clearly less than the
    /// suspicion time ago. Zero, which no heartbeat has, is never fresh.
    pub fn is_fresh(&self, heard: u64) -> bool {
        let heartbeats = self.heartbeats();
        let index = heard.checked_sub(heartbeats.first).and_then(|index| usize::try_from(index).ok());
        index
            .and_then(|index| heartbeats.sent.get(index))
            .is_some_and(|sent| sent.elapsed() < self.suspicion * FRESH_EIGHTHS / 8)
    }

    /// Notes that the secondary lives.
    pub fn heard(&self) {
        *self.last_heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// For how long nothing has come.
    pub fn silence(&self) -> Duration {
        self.last_heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    pub fn tell_released(&self, through: Epoch) {
        // A secondary that does not hear of it sends a little too much again at takeover.
        self.outbox.push_in_passing(RELEASED, through.to_le_bytes().to_vec());
    }

    pub fn tell_entitled(&self, generation: Generation) {
        self.outbox.push_urgent(ENTITLED, generation.to_le_bytes().to_vec());
    }

    /// Passes a frame on that the guest has not seen yet.
    pub fn forward(&self, card: usize, frame: &InboundFrame) {
        let inbound = Inbound { card: u32::try_from(card).unwrap_or(u32::MAX), frame: frame.clone() };
        if let Ok(payload) = postcard::to_stdvec(&inbound)
            && !self.outbox.push_urgent(INBOUND, payload)
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
