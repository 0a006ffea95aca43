//! When to take the next checkpoint.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machine::control::Control;
use protocol::{Decision, EpochBounds, Load};
use spec::FtMode;

use super::clock;
use super::early::EarlyCopier;
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
    /// Copies pages before a pause, for an engine that cannot have them copied after it.
    early: Option<Arc<EarlyCopier>>,
    session: Option<Arc<Session>>,
}

impl Trigger {
    pub(super) fn set_vm(&self, control: Arc<Control>, early: Option<Arc<EarlyCopier>>) {
        let mut target = self.target();
        (target.control, target.early) = (Some(control), early);
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
        match decision {
            Decision::Run => {}
            Decision::Capture => target.pause_soon(),
            // The guest has to stand still, the sooner the better.
            Decision::Wait | Decision::EndLog => target.pause(),
        }
        POLL
    }

    fn pause_if_room(target: &Target, session: &Session) {
        let sending = session.sending();
        let has_room = session.mirror().epochs.has_room(&sending);
        if has_room {
            target.pause_soon();
        }
    }
}

impl Target {
    fn pause(&self) {
        if let Some(control) = &self.control {
            control.pause();
        }
    }

    /// Pauses the VM for a checkpoint.
    fn pause_soon(&self) {
        match (&self.control, &self.early) {
            (Some(control), Some(early)) => early.pause_soon(control),
            _ => self.pause(),
        }
    }
}
