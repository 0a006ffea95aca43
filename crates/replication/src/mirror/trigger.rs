//! When to take the next checkpoint.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use machine::control::Control;

use super::session::{MirrorState, Session};

/// Most checkpoints that are captured and not acknowledged: bounds what either side holds in memory.
const IN_FLIGHT_MAX: usize = 3;

/// Bounds of an epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct EpochBounds {
    /// Its longest time while nothing waits for it.
    pub length_max: Duration,
    /// Pages written that end it.
    pub dirty_pages_max: u64,
    /// Bytes of disk writes that end it.
    pub log_bytes_max: u64,
}

/// How many times its bounds an epoch may be over before the guest has to wait for the secondary.
const PATIENCE: u32 = 4;

/// What the VM's thread should do with its paused VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Let the guest run on.
    Run,
    /// Take a checkpoint.
    Capture,
    /// Take checkpoints from now on in place of writing a log.
    EndLog,
    /// Wait: a checkpoint is overdue, and the secondary has not taken the last ones yet.
    Wait,
}

/// How far the epoch under way is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub dirty_pages: u64,
    pub log_bytes: u64,
}

impl EpochBounds {
    /// What to do, given that `idle` says whether the sender has nothing long to send.
    pub fn decide(&self, mirror: &MirrorState, load: Load, idle: bool, now: Instant) -> Decision {
        if !mirror.mirroring {
            return Decision::Run;
        }
        let age = mirror.epoch_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let over = |times: u32| {
            age >= self.length_max * times
                || load.dirty_pages > self.dirty_pages_max * u64::from(times)
                || load.log_bytes > self.log_bytes_max * u64::from(times)
        };
        if !mirror.output_waits && !over(1) {
            Decision::Run
        } else if idle && mirror.in_flight.len() < IN_FLIGHT_MAX {
            Decision::Capture
        } else if over(PATIENCE) {
            Decision::Wait
        } else {
            Decision::Run
        }
    }
}

/// Pauses the VM when a checkpoint should be taken. Shared by the vCPUs' thread, where output comes up, and the channel's threads, where
/// room for the next checkpoint does.
#[derive(Default)]
pub struct Trigger {
    target: Mutex<Target>,
}

#[derive(Default)]
struct Target {
    control: Option<Arc<Control>>,
    session: Option<Arc<Session>>,
}

impl Trigger {
    pub(super) fn set_control(&self, control: Arc<Control>) {
        self.target().control = Some(control);
    }

    pub(super) fn set_session(&self, session: Option<Arc<Session>>) {
        self.target().session = session;
    }

    fn target(&self) -> std::sync::MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first output of an epoch waits: what [`crate::gate::OutputGate::new`] is to call.
    pub fn output_waits(&self) {
        let target = self.target();
        if let Some(session) = &target.session {
            if let Some(log) = session.log().as_ref() {
                log.recorder.output_waits();
                return;
            }
            session.mirror().output_waits = true;
            Self::pause_if_room(&target, session);
        }
    }

    /// Something that a checkpoint waited for may have come: room, or time. Returns in how much time to ask again.
    pub(super) fn consider(&self, bounds: &EpochBounds, load: Load) -> Duration {
        const POLL: Duration = Duration::from_millis(5);
        let target = self.target();
        let Some(session) = &target.session else { return POLL };
        // Nothing has to be captured.
        if session.log().is_some() {
            return POLL;
        }
        let decision = bounds.decide(&session.mirror(), load, session.outbox.is_idle(), Instant::now());
        if decision != Decision::Run
            && let Some(control) = &target.control
        {
            control.pause();
        }
        POLL
    }

    fn pause_if_room(target: &Target, session: &Session) {
        let room = session.outbox.is_idle() && session.mirror().in_flight.len() < IN_FLIGHT_MAX;
        if room && let Some(control) = &target.control {
            control.pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: EpochBounds =
        EpochBounds { length_max: Duration::from_millis(100), dirty_pages_max: 1000, log_bytes_max: 1 << 20 };
    const IDLE: Load = Load { dirty_pages: 0, log_bytes: 0 };

    fn mirror(age: Duration, output_waits: bool) -> (MirrorState, Instant) {
        let since = Instant::now();
        let mirror = MirrorState { mirroring: true, output_waits, epoch_since: Some(since), ..MirrorState::default() };
        (mirror, since + age)
    }

    #[test]
    fn output_ends_an_epoch_as_soon_as_there_is_room() {
        let (mirror, now) = mirror(Duration::from_millis(1), true);
        assert_eq!(BOUNDS.decide(&mirror, IDLE, true, now), Decision::Capture);
        assert_eq!(BOUNDS.decide(&mirror, IDLE, false, now), Decision::Run);
    }

    #[test]
    fn time_pages_and_disk_writes_end_an_epoch_without_output() {
        let (young, now) = mirror(Duration::from_millis(1), false);
        assert_eq!(BOUNDS.decide(&young, IDLE, true, now), Decision::Run);
        assert_eq!(BOUNDS.decide(&young, Load { dirty_pages: 1001, ..IDLE }, true, now), Decision::Capture);
        assert_eq!(BOUNDS.decide(&young, Load { log_bytes: 2 << 20, ..IDLE }, true, now), Decision::Capture);
        let (old, now) = mirror(Duration::from_millis(101), false);
        assert_eq!(BOUNDS.decide(&old, IDLE, true, now), Decision::Capture);
    }

    #[test]
    fn a_slow_secondary_makes_the_guest_wait() {
        let (mirror, now) = mirror(Duration::from_millis(401), false);
        assert_eq!(BOUNDS.decide(&mirror, IDLE, false, now), Decision::Wait);
        let unprotected = MirrorState { mirroring: false, ..mirror };
        assert_eq!(BOUNDS.decide(&unprotected, IDLE, false, now), Decision::Run);
    }
}
