//! [`Primary`]: the replica that runs the guest.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use machine::control::Control;
use machine::engine::{EngineKind, RunEnd};
use machine::events::GuestEvent;
use machine::vm::{Vm, VmConfig, VmError};
use memory::GuestRam;
use memory::encoding::CapturedPages;

use super::capture::capture;
use super::figures::{Figures, Meter};
use super::pause_queue::{PauseQueue, VmStopped};
use super::progress::{Phase, Progress};
use super::session::Session;
use super::slowness::Slowness;
use super::trigger::{Decision, EpochBounds, Load, Trigger};
use super::{MirrorOptions, RETRY_INTERVAL};
use crate::disk::{DiskSet, DiskWrite};
use crate::gate::{GateStatus, OutputGate};
use crate::protocol::{
    Arbiter, Command, DropReason, Epoch, Event, Generation, LossReason, Replica, Status, StopReason, Verdict,
};

/// How long the VM's thread waits for the secondary before it looks around again.
const WAIT_INTERVAL: Duration = Duration::from_millis(2);
/// Buffers for captured pages that are kept for the next checkpoints.
const BUFFERS_MAX: usize = 4;

/// What a primary is made of.
pub struct PrimaryParts {
    /// The protocol's state, in the role of the primary.
    pub replica: Replica,
    /// The last epoch of the state that the VM starts from.
    pub epoch: Epoch,
    /// The hardware.
    pub config: VmConfig,
    /// What executes the vCPUs.
    pub engine: EngineKind,
    /// The VM's memory.
    pub ram: GuestRam,
    /// Every card's backend is wrapped by it.
    pub gate: OutputGate,
    /// What [`OutputGate`] calls when output waits.
    pub trigger: Arc<Trigger>,
    /// The disks.
    pub disks: DiskSet,
    /// How others reach the VM.
    pub control: Arc<Control>,
    /// Who decides which replica goes on alone.
    pub arbiter: Arc<dyn Arbiter>,
    /// Times and bounds.
    pub options: MirrorOptions,
}

/// Why the guest does not run here any more.
#[derive(Debug)]
pub enum PrimaryEnd {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// Somebody asked for it.
    PlugPulled,
    /// Another replica goes on, or may.
    Stopped(StopReason),
}

/// What a primary says of itself.
#[derive(Clone, Debug)]
pub struct PrimaryStatus {
    /// Role, generation and state.
    pub protocol: Status,
    /// The host of the secondary, or of the one that is being made.
    pub secondary: Option<String>,
    /// How far the first copy is, while there is a secondary.
    pub progress: Option<Progress>,
    /// Why the last secondary was given up or could not join.
    pub failure: Option<String>,
    /// What it costs.
    pub figures: Figures,
    /// What waits.
    pub gate: GateStatus,
}

/// The replica that runs the guest. Clones are the same replica.
#[derive(Clone)]
pub struct Primary {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    core: Mutex<Core>,
    changed: Condvar,
    pub config: VmConfig,
    pub engine: EngineKind,
    pub ram: GuestRam,
    pub gate: OutputGate,
    trigger: Arc<Trigger>,
    pub disks: DiskSet,
    pub control: Arc<Control>,
    arbiter: Arc<dyn Arbiter>,
    pub options: MirrorOptions,
    bounds: EpochBounds,
    pub pause: PauseQueue,
    pub meter: Meter,
    buffers: Mutex<Vec<CapturedPages>>,
    slowness: Mutex<Slowness>,
    next_session: AtomicU64,
}

struct Core {
    replica: Replica,
    session: Option<Arc<Session>>,
    epoch: Epoch,
    stop: Option<StopReason>,
    plug_pulled: bool,
    /// The guest is paused for a hand-over, whose last checkpoint is that of this epoch.
    hand_over: Option<Epoch>,
    failure: Option<String>,
}

impl Primary {
    /// A primary without a secondary. Its output passes.
    pub fn new(parts: PrimaryParts) -> Self {
        let PrimaryParts { replica, epoch, config, engine, ram, gate, trigger, disks, control, arbiter, options } =
            parts;
        trigger.set_control(control.clone());
        let core =
            Core { replica, session: None, epoch, stop: None, plug_pulled: false, hand_over: None, failure: None };
        let bounds = EpochBounds {
            length_max: options.epoch_length_max,
            dirty_pages_max: options.dirty_pages_max,
            log_bytes_max: options.log_bytes_max,
        };
        let shared = Shared {
            core: Mutex::new(core),
            changed: Condvar::new(),
            config,
            engine,
            ram,
            gate,
            trigger,
            disks,
            control,
            arbiter,
            options,
            bounds,
            pause: PauseQueue::new(),
            meter: Meter::default(),
            buffers: Mutex::default(),
            slowness: Mutex::default(),
            next_session: AtomicU64::new(1),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Runs the guest until it ends here, taking checkpoints on the way.
    ///
    /// # Errors
    /// [`VmError`] if the VM cannot go on; the secondary, if there is one, takes over when this process ends.
    pub fn run(&self, vm: &mut Vm) -> Result<PrimaryEnd, VmError> {
        let result = self.shared.run(vm);
        self.shared.pause.close();
        self.shared.trigger.set_session(None);
        result
    }

    /// Copies the VM to the replica that listens at `address` on host `secondary`, and protects it from then on. Returns when the two have
    /// agreed on what the VM is; the copy goes on in the background.
    ///
    /// # Errors
    /// [`super::ProtectError`].
    pub fn protect(
        &self,
        secondary: crate::protocol::ReplicaId,
        address: SocketAddr,
        identity: &crate::channel::Identity,
    ) -> Result<(), super::ProtectError> {
        super::first_copy::start(&self.shared, secondary, address, identity)
    }

    /// Gives the secondary up, and lets output pass once the store has taken note.
    pub fn unprotect(&self, reason: DropReason) {
        self.shared.event(None, Event::DropSecondary { reason });
        // A secondary that has not joined yet is unknown to the protocol.
        let session = self.shared.core().session.clone();
        if let Some(session) = session.filter(|session| !session.mirror().mirroring) {
            self.shared.end_session(session.id, LossReason::Closed, "it was given up");
        }
    }

    /// Pauses the guest and asks the secondary to take over. If it does not, the guest goes on here.
    ///
    /// # Errors
    /// When there is no secondary that could, or the VM has stopped.
    pub fn switch_over(&self) -> Result<(), SwitchOverError> {
        let shared = self.shared.clone();
        self.shared.pause.run(&self.shared.control, move |vm| shared.begin_hand_over(vm))?
    }

    /// Ends the run at once. The disks are flushed first; a secondary is told that the VM is off.
    pub fn pull_the_plug(&self) {
        self.shared.core().plug_pulled = true;
        self.shared.changed.notify_all();
        self.shared.control.pause();
    }

    /// Does something with the VM paused.
    ///
    /// # Errors
    /// [`VmStopped`].
    pub fn while_paused<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Vm) -> R + Send + 'static,
    ) -> Result<R, VmStopped> {
        self.shared.pause.run(&self.shared.control, job)
    }

    /// How it is.
    pub fn status(&self) -> PrimaryStatus {
        let core = self.shared.core();
        let session = core.session.clone();
        let (protocol, failure) = (core.replica.status(), core.failure.clone());
        drop(core);
        let gate = self.shared.gate.status();
        let mut figures = self.shared.meter.figures();
        figures.lag_epochs = session.as_ref().map_or(0, |session| session.mirror().in_flight.len() as u64);
        let secondary = session.as_ref().map(|session| session.secondary.to_string());
        let progress = session.map(|session| *session.progress());
        PrimaryStatus { protocol, secondary, progress, failure, figures, gate }
    }
}

/// Why a planned takeover does not begin.
#[derive(Debug, thiserror::Error)]
pub enum SwitchOverError {
    /// Nobody to hand over to.
    #[error("the VM is not protected: there is no secondary that could take over")]
    NotProtected,
    /// Nothing to hand over.
    #[error(transparent)]
    Stopped(#[from] VmStopped),
    /// The last checkpoint could not be taken.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation that this replica acts in.
    pub fn generation(&self) -> Generation {
        self.core().replica.status().generation
    }

    fn run(self: &Arc<Self>, vm: &mut Vm) -> Result<PrimaryEnd, VmError> {
        loop {
            self.at_pause(vm)?;
            if let Some(end) = self.end(vm)? {
                return Ok(end);
            }
            match vm.run(None)? {
                RunEnd::Paused | RunEnd::LimitReached => {}
                RunEnd::Guest(GuestEvent::PowerOff) => {
                    vm.platform().flush_disks()?;
                    self.say_goodbye();
                    return Ok(PrimaryEnd::PoweredOff);
                }
                RunEnd::Guest(GuestEvent::Reset) | RunEnd::Shutdown { .. } => {
                    vm.platform().flush_disks()?;
                    self.say_goodbye();
                    return Ok(PrimaryEnd::Reset);
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
        vm.platform().flush_disks()?;
        self.say_goodbye();
        Ok(Some(PrimaryEnd::PlugPulled))
    }

    /// Tells the secondary that there is nothing to take over.
    fn say_goodbye(&self) {
        let session = self.core().session.clone();
        if let Some(session) = session {
            session.outbox.push_urgent(super::message::ENDED, Vec::new());
            // Room for the message to leave; a secondary that does not hear it starts from the last checkpoint, and the guest ends again.
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What there is to do while the VM stands still.
    fn at_pause(self: &Arc<Self>, vm: &mut Vm) -> Result<(), VmError> {
        let mut waiting_since = None;
        loop {
            self.pause.work(vm);
            let core = self.core();
            if core.stop.is_some() || core.plug_pulled {
                return Ok(());
            }
            if core.hand_over.is_some() {
                drop(self.wait(core));
                continue;
            }
            let Some(session) = core.session.clone() else { break };
            drop(core);
            let decision = self.bounds.decide(&session.mirror(), self.load(), session.outbox.is_idle(), Instant::now());
            match decision {
                Decision::Run => break,
                Decision::Capture => {
                    self.take_checkpoint(vm, &session)?;
                    break;
                }
                Decision::Wait => {
                    let from = Instant::now();
                    waiting_since.get_or_insert(from);
                    drop(self.wait(self.core()));
                    if self.slowness().waited(from, Instant::now(), self.options.too_slow_after) {
                        self.event(Some(session.id), Event::DropSecondary { reason: DropReason::TooSlow });
                    }
                }
            }
        }
        if let Some(since) = waiting_since {
            self.meter.throttled(since.elapsed());
        }
        Ok(())
    }

    fn wait<'a>(&self, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        self.changed.wait_timeout(core, WAIT_INTERVAL).unwrap_or_else(PoisonError::into_inner).0
    }

    fn slowness(&self) -> MutexGuard<'_, Slowness> {
        self.slowness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self) -> Load {
        Load { dirty_pages: self.ram.dirty_pages_estimate(), log_bytes: self.disks.log_bytes() }
    }

    /// Looks whether a checkpoint is due, from another thread than the VM's.
    pub fn consider(&self) -> Duration {
        self.trigger.consider(&self.bounds, self.load())
    }

    fn buffer(&self) -> CapturedPages {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Takes back the buffer of a checkpoint that was sent.
    pub fn recycle(&self, pages: CapturedPages) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < BUFFERS_MAX {
            buffers.push(pages);
        }
    }

    /// Captures the paused VM and gives the checkpoint to the sender.
    fn take_checkpoint(&self, vm: &mut Vm, session: &Session) -> Result<(), VmError> {
        let paused_at = Instant::now();
        let Some((epoch, writes)) = self.begin_checkpoint(session) else { return Ok(()) };
        let (checkpoint, in_flight) = capture(vm, epoch, &self.gate, writes, || self.buffer())?;
        let (dirty_pages, times) = (in_flight.harvest.len(), in_flight.times);
        let mut mirror = session.mirror();
        mirror.output_waits = false;
        mirror.in_flight.push_back(in_flight);
        let since = mirror.epoch_since.replace(Instant::now());
        drop(mirror);
        session.outbox.push_bulk(super::outbox::Bulk::Checkpoint(Box::new(checkpoint)));
        let epoch_length = since.map_or(Duration::ZERO, |since| paused_at.saturating_duration_since(since));
        self.meter.captured(epoch, epoch_length, paused_at.elapsed(), &times, dirty_pages);
        Ok(())
    }

    /// The number of the next checkpoint, and what it has to say of disks; `None` if the session has ended.
    fn begin_checkpoint(&self, session: &Session) -> Option<(Epoch, Vec<DiskWrite>)> {
        let mut core = self.core();
        // Checked and taken under one lock: the log may be a later session's in a moment.
        core.session.as_ref().filter(|current| current.id == session.id)?;
        core.epoch += 1;
        Some((core.epoch, self.disks.take_log()))
    }

    /// What was written to disks since the log was last taken; `None` if the session has ended.
    pub fn take_log(&self, session: &Session) -> Option<Vec<DiskWrite>> {
        let core = self.core();
        core.session.as_ref().filter(|current| current.id == session.id)?;
        Some(self.disks.take_log())
    }

    /// The end of the first copy, with the guest paused: output waits from now on, and the first checkpoint is taken.
    pub fn begin_mirroring(self: &Arc<Self>, vm: &mut Vm, session: &Arc<Session>) -> Result<(), VmError> {
        self.event(Some(session.id), Event::SyncFinished { secondary: session.secondary.clone() });
        self.meter.reset();
        *self.slowness() = Slowness::default();
        session.mirror().mirroring = true;
        session.mirror().epoch_since = Some(Instant::now());
        session.progress().phase = Phase::FirstCheckpoint;
        self.take_checkpoint(vm, session)
    }

    fn begin_hand_over(self: &Arc<Self>, vm: &mut Vm) -> Result<(), SwitchOverError> {
        let mut core = self.core();
        let session = core.session.clone().filter(|_| core.replica.status().is_protected());
        let session = session.ok_or(SwitchOverError::NotProtected)?;
        // Known before the checkpoint is sent: its ack may be here before this thread goes on.
        core.hand_over = Some(core.epoch + 1);
        drop(core);
        if let Err(error) = self.take_checkpoint(vm, &session) {
            self.core().hand_over = None;
            return Err(error.into());
        }
        Ok(())
    }

    /// Makes room in the core for a session.
    pub fn open_session(&self, make: impl FnOnce(u64) -> Session) -> Result<Arc<Session>, super::ProtectError> {
        let mut core = self.core();
        if core.stop.is_some() {
            return Err(VmStopped.into());
        }
        if let Some(session) = &core.session {
            return Err(super::ProtectError::HasSecondary(session.secondary.clone()));
        }
        let session = Arc::new(make(self.next_session.fetch_add(1, Ordering::Relaxed)));
        core.session = Some(session.clone());
        core.failure = None;
        self.trigger.set_session(Some(session.clone()));
        Ok(session)
    }

    /// The connection of session `id` is of no use any more.
    pub fn end_session(self: &Arc<Self>, id: u64, reason: LossReason, why: &str) {
        if !self.has_session(id) {
            return;
        }
        tracing::warn!(%why, "the secondary is lost");
        self.core().failure = Some(why.to_owned());
        self.event(Some(id), Event::PeerLost { reason });
        // The protocol does not know of a secondary that has not joined, and leaves it open.
        let mut core = self.core();
        if core.session.as_ref().is_some_and(|session| session.id == id) {
            self.close_session(&mut core);
        }
    }

    fn has_session(&self, id: u64) -> bool {
        self.core().session.as_ref().is_some_and(|session| session.id == id)
    }

    fn close_session(&self, core: &mut Core) {
        self.trigger.set_session(None);
        self.gate.set_input_tap(None);
        if let Some(session) = core.session.take() {
            session.close();
        }
        self.disks.stop_log();
        self.changed.notify_all();
    }

    /// The secondary holds everything through `epoch`; `fresh` as in [`Event::Acknowledged`].
    pub fn acknowledged(self: &Arc<Self>, session: &Session, epoch: Epoch, fresh: bool) {
        let mut held = Vec::new();
        {
            let mut mirror = session.mirror();
            if epoch > mirror.sent_through {
                drop(mirror);
                self.end_session(session.id, LossReason::Protocol, "the secondary acknowledges what was not sent");
                return;
            }
            while mirror.in_flight.front().is_some_and(|in_flight| in_flight.epoch <= epoch) {
                held.extend(mirror.in_flight.pop_front());
            }
        }
        if held.is_empty() {
            return;
        }
        self.event(Some(session.id), Event::Acknowledged { epoch, fresh });
        for in_flight in held {
            self.meter.committed(in_flight.captured_at.elapsed());
            in_flight.harvest.acknowledge();
        }
        session.progress().phase = Phase::Mirroring;
        let handed_over = self.core().hand_over.is_some_and(|last| last <= epoch);
        if handed_over {
            session.outbox.push_urgent(super::message::HAND_OVER, Vec::new());
            self.event(Some(session.id), Event::HandOverSent);
        }
        self.consider();
    }

    /// Tells the protocol what happened, on behalf of a session or of none, and does what it commands.
    pub fn event(self: &Arc<Self>, session: Option<u64>, event: Event) {
        let mut core = self.core();
        let current = core.session.as_ref().map(|session| session.id);
        if session.is_some() && session != current {
            return;
        }
        for command in core.replica.handle(event) {
            self.execute(&mut core, command);
        }
        drop(core);
        self.changed.notify_all();
    }

    fn execute(self: &Arc<Self>, core: &mut Core, command: Command) {
        match command {
            Command::HoldOutput => self.gate.hold(),
            Command::OpenOutput => self.gate.open(),
            Command::Release { through } => {
                self.gate.release(through);
                if let Some(session) = &core.session {
                    session.tell_released(through);
                }
            }
            Command::TellEntitled { generation } => {
                if let Some(session) = &core.session {
                    session.tell_entitled(generation);
                }
            }
            Command::CompareAndSwap { claim } => {
                let shared = self.clone();
                thread::spawn(move || {
                    let expected = claim.generation.saturating_sub(1);
                    let answer = match shared.arbiter.compare_and_swap(expected, &claim) {
                        Ok(verdict) => Event::Arbitrated(verdict),
                        Err(error) => {
                            tracing::warn!(%error, "the cluster store cannot be reached");
                            Event::StoreUnreachable
                        }
                    };
                    if let Event::Arbitrated(Verdict::Lost(claim)) = &answer {
                        tracing::warn!(generation = claim.generation, primary = %claim.primary, "another replica goes on");
                    }
                    shared.event(None, answer);
                });
            }
            Command::CloseChannel => self.close_session(core),
            Command::StartRetryTimer => {
                let shared = self.clone();
                thread::spawn(move || {
                    thread::sleep(RETRY_INTERVAL);
                    shared.event(None, Event::RetryDue);
                });
            }
            Command::Resume => core.hand_over = None,
            Command::Stop { reason } => {
                core.stop = Some(reason);
                self.control.pause();
            }
            Command::Acknowledge { .. } | Command::ReadClaim | Command::TakeOver { .. } => {
                tracing::error!(?command, "a command for a secondary");
            }
        }
    }
}
