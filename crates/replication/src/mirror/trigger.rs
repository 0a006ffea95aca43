//! When to take the next checkpoint.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machine::control::Control;
use protocol::{Decision, EpochBounds, FtMode, Load};

use super::clock;
use super::session::Session;

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
            session.mirror().epochs.output_waits();
            Self::pause_if_room(&target, session);
        }
    }

    /// Something that a checkpoint waited for may have come: room, or time. Returns in how much time to ask again.
    pub(super) fn consider(&self, bounds: &EpochBounds, wanted: FtMode, load: Load) -> Duration {
        const POLL: Duration = Duration::from_millis(5);
        let target = self.target();
        let Some(session) = &target.session else { return POLL };
        // Nothing has to be captured.
        if session.log().is_some() {
            return POLL;
        }
        let sending = session.sending();
        let decision = session.mirror().epochs.decide(bounds, wanted, load, &sending, clock::now());
        if decision != Decision::Run
            && let Some(control) = &target.control
        {
            control.pause();
        }
        POLL
    }

    fn pause_if_room(target: &Target, session: &Session) {
        let sending = session.sending();
        if session.mirror().epochs.has_room(&sending)
            && let Some(control) = &target.control
        {
            control.pause();
        }
    }
}
