//! The thread of the VM: it runs the guest, and does what the guest has to be paused for.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use machine::engine::RunEnd;
use machine::events::GuestEvent;
use machine::vm::{Vm, VmError};
use memory::encoding::CapturedPages;
use protocol::{
    Decision, DropReason, Epoch, Event, Farewell, FarewellStep, InputPath, LinkWatch, Patience, Standstill,
};
use spec::FtMode;

use super::super::capture::capture;
use super::super::clock;
use super::super::figures::Pause;
use super::super::message::Kind;
use super::super::outbox::Bulk;
use super::super::progress::Phase;
use super::super::session::Session;
use super::{Core, Course, PrimaryEnd, Shared, SwitchOverError};
use crate::disk::DiskWrite;

/// How long the VM's thread waits for the secondary before it looks around again.
const WAIT_INTERVAL: Duration = Duration::from_millis(2);

impl Shared {
    pub(super) fn run(self: &Arc<Self>, vm: &mut Vm) -> Result<PrimaryEnd, VmError> {
        loop {
            self.at_pause(vm)?;
            if let Some(end) = self.end(vm)? {
                return Ok(end);
            }
            if let Some(early) = &self.early {
                early.goes_on();
            }
            match vm.run(self.digest_due_at(vm))? {
                RunEnd::Paused => {}
                RunEnd::LimitReached => self.take_digest(vm)?,
                RunEnd::Guest(GuestEvent::PowerOff) => return self.leave(vm, PrimaryEnd::PoweredOff),
                RunEnd::Guest(GuestEvent::Reset) => return self.leave(vm, PrimaryEnd::Reset),
                RunEnd::Shutdown { vcpu } => {
                    // Noted also if another replica goes on: what crashed the guest here may have been of this host.
                    self.options.triple_faults.note(vm.triple_fault(vcpu));
                    return self.leave(vm, PrimaryEnd::Reset);
                }
                RunEnd::Guest(GuestEvent::Panicked) => tracing::warn!("the guest's kernel has panicked"),
                RunEnd::Guest(GuestEvent::CrashLoaded) => {}
            }
        }
    }

    fn end(&self, vm: &Vm) -> Result<Option<PrimaryEnd>, VmError> {
        let core = self.core();
        if let Some(reason) = core.stop {
            return Ok(Some(PrimaryEnd::Stopped(reason)));
        }
        if !core.plug_pulled {
            return Ok(None);
        }
        drop(core);
        Ok(Some(self.leave(vm, PrimaryEnd::PlugPulled)?))
    }

    /// Ends the run, if it is for this replica to say so, and parts from the secondary.
    fn leave(&self, vm: &Vm, end: PrimaryEnd) -> Result<PrimaryEnd, VmError> {
        let flushed = vm.platform().flush_disks();
        let mut core = self.core();
        if let Err(error) = flushed
            && core.stop.is_none()
        {
            if !core.plug_pulled {
                return Err(error.into());
            }
            tracing::warn!(%error, "the plug is pulled, and the disks cannot be flushed");
        }
        let mut farewell = Farewell::default();
        loop {
            if let Some(reason) = core.stop.filter(|_| !farewell.is_told()) {
                return Ok(PrimaryEnd::Stopped(reason));
            }
            let is_undecided = !core.plug_pulled && core.replica.is_undecided();
            match farewell.next(is_undecided, core.session.is_some(), clock::now()) {
                FarewellStep::Wait => core = self.wait(core),
                FarewellStep::Tell => {
                    core.course = Course::Leaving;
                    if let Some(session) = &core.session {
                        session.outbox.push_urgent(Kind::Ended, Vec::new());
                    }
                }
                FarewellStep::Leave => return Ok(end),
            }
        }
    }

    /// What there is to do while the VM stands still.
    fn at_pause(self: &Arc<Self>, vm: &mut Vm) -> Result<(), VmError> {
        let mut waiting_since = None;
        loop {
            self.pause.work(vm);
            let core = self.core();
            match Standstill::of(core.stop.is_some() || core.plug_pulled, core.is_handing_over, self.is_halted()) {
                Standstill::Over => return Ok(()),
                Standstill::HandOver => {
                    let session = core.session.as_ref().map(|session| session.id);
                    drop(self.wait(core));
                    if session.is_some() && self.patience().hands_over(clock::now()) {
                        self.event(session, Event::DropSecondary { reason: DropReason::TooSlow });
                    }
                    continue;
                }
                Standstill::DisksBroken => {
                    drop(self.wait(core));
                    continue;
                }
                Standstill::Epoch => {}
            }
            let Some(session) = core.session.clone() else { break };
            drop(core);
            match self.decide(&session) {
                Decision::Run => break,
                Decision::EndLog => {
                    self.end_log(vm, &session)?;
                    break;
                }
                Decision::Capture => {
                    self.take_checkpoint(vm, &session)?;
                    break;
                }
                Decision::Wait => {
                    if waiting_since.is_none() {
                        // What waits in the gate should not wait for this as well.
                        self.close_segment(vm, &session);
                    }
                    let from = clock::now();
                    waiting_since.get_or_insert(from);
                    drop(self.wait(self.core()));
                    let link = self.watch_link();
                    if self.patience().waited(from, clock::now()) {
                        self.core().failure = link.slow().map(|link| link.to_string());
                        self.event(Some(session.id), Event::DropSecondary { reason: DropReason::TooSlow });
                    }
                }
            }
        }
        if let Some(since) = waiting_since {
            self.meter.throttled(clock::now().since(since));
        }
        Ok(())
    }

    fn decide(&self, session: &Session) -> Decision {
        let (wanted, sending) = (self.wanted(), session.sending());
        session.mirror().epochs.decide(&self.bounds, wanted, self.load(), &sending, clock::now())
    }

    fn wait<'a>(&self, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        self.changed.wait_timeout(core, WAIT_INTERVAL).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Looks at the link to the secondary while the guest waits for it.
    fn watch_link(&self) -> LinkWatch {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.is_busy(self.meter.sent_bytes(), clock::now());
        *link
    }

    pub(super) fn patience(&self) -> MutexGuard<'_, Patience> {
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer for copies of pages, empty.
    pub(super) fn buffer(&self) -> CapturedPages {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Captures the paused VM and gives the checkpoint to the sender. In lockstep, the log follows it.
    fn take_checkpoint(self: &Arc<Self>, vm: &mut Vm, session: &Arc<Session>) -> Result<(), VmError> {
        let paused_at = clock::now();
        let Some((epoch, writes)) = self.begin_checkpoint(session) else { return Ok(()) };
        let then = self.wanted();
        let early = self.early.as_ref().map(|early| early.take()).unwrap_or_default();
        let (checkpoint, in_flight) = capture(vm, epoch, then, &self.gate, writes, early, || self.buffer())?;
        session.set_guest_clock(vm.clock()?);
        let (dirty_pages, times) = (in_flight.harvest.len(), in_flight.times);
        let inputs = checkpoint.inputs.clone();
        let mut mirror = session.mirror();
        mirror.push(in_flight);
        let epoch_length = mirror.epochs.captured(epoch, then, paused_at, clock::now());
        drop(mirror);
        session.outbox.push_bulk(Bulk::Checkpoint(Box::new(checkpoint)));
        if then == FtMode::Lockstep {
            self.begin_log(vm, session, epoch, &inputs)?;
        }
        let pause = Pause { stop: vm.stop_time(), stood_still: clock::now().since(paused_at) };
        self.meter.captured(epoch, epoch_length, pause, &times, dirty_pages);
        Ok(())
    }

    /// The number of the next checkpoint, and what it has to say of disks; `None` if the session has ended.
    fn begin_checkpoint(&self, session: &Session) -> Option<(Epoch, Vec<DiskWrite>)> {
        let mut core = self.core();
        // Checked and taken under one lock: the log may be a later session's in a moment.
        core.session.as_ref().filter(|current| current.id == session.id)?;
        core.epoch = core.epoch.next();
        Some((core.epoch, self.disks.take_log()))
    }

    /// The end of the first copy, with the guest paused: output waits from now on, and the first checkpoint is taken.
    pub fn begin_mirroring(self: &Arc<Self>, vm: &mut Vm, session: &Arc<Session>) -> Result<(), VmError> {
        self.event(Some(session.id), Event::SyncFinished { secondary: session.secondary.clone() });
        let core = self.core();
        if core.session.as_ref().is_none_or(|current| current.id != session.id) {
            return Ok(());
        }
        session.mirror().epochs.begin(clock::now());
        // Before another session can have its own passed on.
        self.pass_inputs_on(session);
        drop(core);
        self.meter.reset();
        *self.patience() = Patience::new(self.options.too_slow_after);
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = LinkWatch::default();
        if let Some(early) = &self.early {
            early.begin();
        }
        session.progress().phase = Phase::FirstCheckpoint;
        self.take_checkpoint(vm, session)
    }

    /// The guest is too fast for the first copy of session `id`, which is given up.
    pub fn give_up_copy(self: &Arc<Self>, id: u64, why: &str) {
        if !self.has_session(id) {
            return;
        }
        tracing::warn!(%why, "the secondary is given up");
        self.core().failure = Some(why.to_owned());
        self.event(Some(id), Event::DropSecondary { reason: DropReason::TooSlow });
    }

    /// Has inbound frames passed on to the secondary from now on, or not, as the protocol wants it at this point of the session. The guest is
    /// paused.
    pub(super) fn pass_inputs_on(&self, session: &Arc<Session>) {
        let path = session.mirror().epochs.input_path();
        self.gate.set_input_tap(match path {
            InputPath::Forwarded => {
                let session = session.clone();
                Some(Box::new(move |card, frame| session.forward(card, frame)))
            }
            InputPath::Unshared | InputPath::Logged => None,
        });
    }

    pub(super) fn begin_hand_over(self: &Arc<Self>, vm: &mut Vm) -> Result<(), SwitchOverError> {
        let mut core = self.core();
        let session = core.session.clone().filter(|_| core.replica.status().is_protected());
        let session = session.ok_or(SwitchOverError::NotProtected)?;
        core.is_handing_over = true;
        core.is_switching_over = true;
        let last = core.epoch.next();
        drop(core);
        // Known before the checkpoint is sent: its ack may be here before this thread goes on. If the secondary is lost by now, the guest
        // is let go on.
        self.event(None, Event::SwitchOver { last });
        if session.log().is_some() {
            self.close_segment(vm, &session);
            return Ok(());
        }
        if let Err(error) = self.take_checkpoint(vm, &session) {
            self.event(None, Event::SwitchOverFailed);
            return Err(error.into());
        }
        Ok(())
    }
}
