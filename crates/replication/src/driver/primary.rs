//! [`Primary`]: the replica that runs the guest.

mod arbitration;
mod log;
mod parts;
mod refusal;
mod run;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use machine::control::Control;
use machine::engine::DirtyLog;
use machine::vm::{Vm, VmConfig, VmError};
use memory::GuestRam;
use memory::encoding::CapturedPages;
use protocol::{
    Ack, AckSays, Arbiter, Command, DiskWatch, DropReason, Epoch, EpochBounds, Event, Generation, LinkWatch, Load,
    LossReason, Patience, RETRY_INTERVAL, Reason, Replica, Status, StopReason, UPLINK_PATIENCE, Uplink, Watched,
};
use spec::{CpuProfile, EngineKind, FtMode};

pub use self::refusal::{NotPaused, SetModeError, SwitchOverError};
use super::early::EarlyCopier;
use super::figures::{Figures, Meter};
use super::message::ExecutionFormat;
use super::pause_queue::{PauseQueue, VmStopped};
use super::progress::{Phase, Progress};
use super::session::Session;
use super::trigger::Trigger;
use super::{MirrorOptions, clock};
use crate::disk::{DiskFault, DiskSet};
use crate::gate::{GateStatus, OutputGate};

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
    /// What the guest was told that its processors are.
    pub profile: CpuProfile,
    /// The VM's memory.
    pub ram: GuestRam,
    /// The log of what its vCPUs write ([`Vm::dirty_log`]), where the engine keeps one.
    pub dirty_log: Option<Arc<dyn DirtyLog>>,
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
    /// How the VM is, or would be, replicated.
    pub mode: FtMode,
    /// The host of the secondary, or of the one that is being made.
    pub secondary: Option<String>,
    /// How far the first copy is, while there is a secondary.
    pub progress: Option<Progress>,
    /// The secondary says that it reaches all of its network ends; nothing else is known of one that has not said so.
    pub secondary_reaches_network: bool,
    /// What the way to the secondary is like, while there is one.
    pub watched: Option<Watched>,
    /// Disks that are broken: the guest stands still.
    pub disk_faults: Vec<DiskFault>,
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
    pub profile: CpuProfile,
    pub ram: GuestRam,
    /// For an engine that logs dirty pages, and whose pages cannot be frozen.
    pub early: Option<Arc<EarlyCopier>>,
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
    patience: Mutex<Patience>,
    /// What the link to the secondary carries while the guest waits for it.
    link: Mutex<LinkWatch>,
    uplink: Mutex<Uplink>,
    disk_watch: DiskWatch,
    /// The guest stands still, since a disk is broken.
    is_halted: AtomicBool,
    next_session: AtomicU64,
    /// Secondaries that turned out not to be the same.
    divergences: AtomicU64,
}

struct Core {
    replica: Replica,
    mode: FtMode,
    session: Option<Arc<Session>>,
    epoch: Epoch,
    course: Course,
    stop: Option<StopReason>,
    plug_pulled: bool,
    /// The guest stands still for a hand-over.
    is_handing_over: bool,
    /// As was asked for: the guest stands still, and the secondary will hold all that it did.
    is_switching_over: bool,
    failure: Option<String>,
}

/// How far the run is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    Running,
    /// The secondary is being told that there is nothing to take over: that it closes the connection is no loss.
    Leaving,
    /// The guest does not run here any more, and whatever is heard from now on says nothing.
    Over,
}

impl Primary {
    /// A primary without a secondary. Its output passes.
    pub fn new(parts: PrimaryParts) -> Self {
        let PrimaryParts { replica, epoch, config, engine, profile, ram, dirty_log, gate, .. } = parts;
        let PrimaryParts { trigger, disks, control, arbiter, options, .. } = parts;
        let early = dirty_log.map(|log| Arc::new(EarlyCopier::new(log, ram.clone())));
        trigger.set_vm(control.clone(), early.clone());
        let stop = match replica.status().reason {
            Some(Reason::Stopped(reason)) => Some(reason),
            _ => None,
        };
        let core = Core {
            replica,
            mode: if engine == EngineKind::Soft { options.mode } else { FtMode::Mirror },
            session: None,
            epoch,
            course: Course::Running,
            stop,
            plug_pulled: false,
            is_handing_over: false,
            is_switching_over: false,
            failure: None,
        };
        let bounds = EpochBounds {
            length_max: options.epoch_length_max,
            dirty_pages_max: options.dirty_pages_max,
            log_bytes_max: options.log_bytes_max,
            lag_max: options.lag_max,
        };
        let patience = Patience::new(options.too_slow_after);
        let disk_watch = DiskWatch::new(options.disk_patience);
        ExecutionFormat::find_out();
        let shared = Shared {
            core: Mutex::new(core),
            changed: Condvar::new(),
            config,
            engine,
            profile,
            ram,
            early,
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
            patience: Mutex::new(patience),
            link: Mutex::default(),
            uplink: Mutex::new(Uplink::new(UPLINK_PATIENCE)),
            disk_watch,
            is_halted: AtomicBool::new(false),
            next_session: AtomicU64::new(1),
            divergences: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What the guest was told at power-on that its processors are.
    pub fn profile(&self) -> &CpuProfile {
        &self.shared.profile
    }

    /// Runs the guest until it ends here, taking checkpoints on the way.
    ///
    /// # Errors
    /// [`VmError`] if the VM cannot go on; the secondary, if there is one, takes over when this process ends.
    pub fn run(&self, vm: &mut Vm) -> Result<PrimaryEnd, VmError> {
        self.shared.disks.hold_failures();
        self.shared.watch_disks().map_err(VmError::Io)?;
        let result = match &self.shared.early {
            Some(early) => self.run_with_copier(vm, early),
            None => self.shared.run(vm),
        };
        self.shared.disks.answer_failures();
        self.shared.pause.close();
        let mut core = self.shared.core();
        core.course = Course::Over;
        self.shared.close_session(&mut core);
        result
    }

    fn run_with_copier(&self, vm: &mut Vm, early: &EarlyCopier) -> Result<PrimaryEnd, VmError> {
        /// Ends the copier's thread also if the VM's panics: the scope waits for it.
        struct EndCopier<'a>(&'a EarlyCopier);

        impl Drop for EndCopier<'_> {
            fn drop(&mut self) {
                self.0.end();
            }
        }

        let shared = &self.shared;
        thread::scope(|scope| {
            let _end = EndCopier(early);
            let copy = || early.work(&shared.control, || shared.buffer());
            thread::Builder::new().name("mirror-early".to_owned()).spawn_scoped(scope, copy).map_err(VmError::Io)?;
            shared.run(vm)
        })
    }

    /// Copies the VM to the replica that listens at `address` on host `secondary`, and protects it from then on. Returns when the two have
    /// agreed on what the VM is; the copy goes on in the background.
    ///
    /// # Errors
    /// [`super::ProtectError`].
    pub fn protect(
        &self,
        secondary: spec::ReplicaId,
        address: SocketAddr,
        identity: &crate::channel::Identity,
    ) -> Result<(), super::ProtectError> {
        let socket = crate::channel::dial(address, super::first_copy::CONNECT_TIMEOUT)?;
        self.protect_over(secondary, socket, identity)
    }

    /// The same over a connection that has been opened, for a process that may not open any.
    ///
    /// # Errors
    /// [`super::ProtectError`].
    pub fn protect_over(
        &self,
        secondary: spec::ReplicaId,
        socket: std::net::TcpStream,
        identity: &crate::channel::Identity,
    ) -> Result<(), super::ProtectError> {
        super::first_copy::start(&self.shared, secondary, socket, identity)
    }

    /// Gives the secondary up, and lets output pass once the store has taken note.
    pub fn unprotect(&self, reason: DropReason) {
        self.shared.say_of_first_copy("it was given up");
        self.shared.event(None, Event::DropSecondary { reason });
    }

    /// Pauses the guest and asks the secondary to take over. If it does not, the guest goes on here.
    ///
    /// # Errors
    /// When there is no secondary that could, or the VM has stopped.
    pub fn switch_over(&self) -> Result<(), SwitchOverError> {
        self.shared.refuse_if_halted()?;
        let shared = self.shared.clone();
        self.shared.pause.run(&self.shared.control, move |vm| shared.begin_hand_over(vm))?
    }

    /// The gate of its cards, to plug network ends in again that were gone.
    pub fn gate(&self) -> &OutputGate {
        &self.shared.gate
    }

    /// The generation that it acts in.
    pub fn generation(&self) -> Generation {
        self.shared.generation()
    }

    /// Changes how the VM is replicated, from now on; what protects it meanwhile stays.
    ///
    /// # Errors
    /// [`SetModeError`]: nothing has changed then.
    pub fn set_mode(&self, mode: FtMode) -> Result<(), SetModeError> {
        if !mode.runs_on(self.shared.engine) {
            return Err(SetModeError::Engine);
        }
        let mut core = self.shared.core();
        if core.course != Course::Running {
            return Err(VmStopped.into());
        }
        let session = core.session.clone();
        if mode == FtMode::Lockstep && session.as_ref().is_some_and(|session| !session.executes) {
            return Err(SetModeError::Secondary);
        }
        core.mode = mode;
        drop(core);
        if session.is_some() {
            self.shared.control.pause();
        }
        Ok(())
    }

    /// Ends the run at once. The disks are flushed first if they can be; a secondary is told that the VM is off.
    pub fn pull_the_plug(&self) {
        self.shared.core().plug_pulled = true;
        self.shared.changed.notify_all();
        self.shared.control.pause();
        self.shared.disks.abandon_held();
    }

    /// Does something with the VM paused.
    ///
    /// # Errors
    /// [`NotPaused`].
    pub fn while_paused<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Vm) -> R + Send + 'static,
    ) -> Result<R, NotPaused> {
        self.shared.refuse_if_halted()?;
        Ok(self.shared.pause.run(&self.shared.control, job)?)
    }

    /// What the protocol says of the replica, and what replication costs.
    pub fn status(&self) -> PrimaryStatus {
        let core = self.shared.core();
        let session = core.session.clone();
        let (protocol, mode, failure) = (core.replica.status(), core.mode, core.failure.clone());
        drop(core);
        let gate = self.shared.gate.status();
        let mut figures = self.shared.meter.figures();
        figures.lag_epochs =
            session.as_ref().map_or(0, |session| session.mirror().epochs.checkpoints_in_flight() as u64);
        let divergences = self.shared.divergences.load(Ordering::Relaxed);
        figures.lockstep =
            session.as_ref().and_then(|session| session.log().as_ref().map(|log| log.progress.figures(divergences)));
        let secondary = session.as_ref().map(|session| session.secondary.to_string());
        let secondary_reaches_network = session.as_ref().is_none_or(|session| session.reaches_network());
        let watched = session.as_ref().map(|session| session.watched());
        let progress = session.map(|session| *session.progress());
        let disk_faults = self.shared.disk_faults();
        PrimaryStatus {
            protocol,
            mode,
            secondary,
            progress,
            secondary_reaches_network,
            watched,
            disk_faults,
            failure,
            figures,
            gate,
        }
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation that this replica acts in.
    pub fn generation(&self) -> Generation {
        self.core().replica.status().generation
    }

    /// Dirty pages, as far as is known.
    pub fn dirty_pages(&self) -> u64 {
        self.early.as_ref().map_or_else(|| self.ram.dirty_pages_estimate(), |early| early.dirty_pages())
    }

    fn load(&self) -> Load {
        let pages = self.early.as_ref().map_or_else(|| self.ram.dirty_pages_estimate(), |early| early.epoch_pages());
        Load { dirty_pages: pages, log_bytes: self.disks.log_bytes() }
    }

    /// Looks whether a checkpoint is due, from another thread than the VM's.
    pub fn consider(&self) -> Duration {
        self.trigger.consider(&self.bounds, self.wanted(), self.load())
    }

    /// Takes back the buffer of a checkpoint that was sent.
    pub fn recycle(&self, mut pages: CapturedPages) {
        pages.clear();
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < BUFFERS_MAX {
            buffers.push(pages);
        }
    }

    /// Makes room in the core for a session.
    pub fn open_session(&self, make: impl FnOnce(u64) -> Session) -> Result<Arc<Session>, super::ProtectError> {
        let mut core = self.core();
        if core.stop.is_some() || core.course != Course::Running {
            return Err(VmStopped.into());
        }
        self.refuse_if_halted()?;
        if let Some(session) = &core.session {
            return Err(super::ProtectError::HasSecondary(session.secondary.clone()));
        }
        let session = Arc::new(make(self.next_session.fetch_add(1, Ordering::Relaxed)));
        // The mode may have been changed since the secondary said so.
        if !session.executes && core.mode == FtMode::Lockstep {
            return Err(super::ProtectError::CannotExecute);
        }
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
        if self.core().course == Course::Running {
            self.core().failure = Some(why.to_owned());
            self.event(Some(id), Event::PeerLost { reason });
            // Afterwards: where a disk hangs, so may the log.
            tracing::warn!(%why, "the secondary is lost");
        }
        // While the guest's end is told, the protocol hears of no loss.
        let mut core = self.core();
        if core.session.as_ref().is_some_and(|session| session.id == id) {
            self.close_session(&mut core);
        }
    }

    /// Notes why a first copy that is under way is given up, which the protocol is about to be told.
    fn say_of_first_copy(&self, why: &str) {
        let mut core = self.core();
        if core.session.as_ref().is_some_and(|session| !session.mirror().epochs.has_begun()) {
            core.failure = Some(why.to_owned());
        }
    }

    pub fn has_session(&self, id: u64) -> bool {
        self.core().session.as_ref().is_some_and(|session| session.id == id)
    }

    fn close_session(&self, core: &mut Core) {
        self.trigger.set_session(None);
        self.gate.set_input_tap(None);
        if let Some(session) = core.session.take() {
            session.close();
        }
        if let Some(early) = &self.early {
            early.stop();
        }
        self.disks.stop_log();
        self.changed.notify_all();
    }

    /// The secondary says what it holds.
    pub fn acknowledged(self: &Arc<Self>, session: &Session, ack: &Ack) {
        let (committed, held) = match session.hear_ack(ack) {
            Ok((AckSays::Commits(committed), held)) => (committed, held),
            Ok((AckSays::Stale | AckSays::Nothing, _)) => return,
            Err(error) => return self.end_session(session.id, LossReason::Protocol, &error.to_string()),
        };
        if let Some(epoch) = ack.epoch {
            self.event(Some(session.id), Event::Acknowledged { epoch });
        }
        held.into_iter().for_each(|in_flight| in_flight.harvest.acknowledge());
        let now = clock::now();
        committed.iter().for_each(|committed| self.meter.committed(now.since(committed.ended_at)));
        session.progress().phase = Phase::Mirroring;
        self.consider();
    }

    /// Tells the protocol what happened, on behalf of a session or of none, and does what it commands.
    pub fn event(self: &Arc<Self>, session: Option<u64>, event: Event) {
        let mut core = self.core();
        let current = core.session.as_ref().map(|session| session.id);
        if core.course == Course::Over || session.is_some() && session != current {
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
                let left_through = self.gate.release(through);
                if let Some(session) = &core.session {
                    session.tell_released(left_through);
                }
            }
            Command::TellEntitled { generation } => {
                if let Some(session) = &core.session {
                    session.tell_entitled(generation);
                }
            }
            Command::CompareAndSwap { claim } => self.ask_the_store(claim),
            Command::ReadClaim => self.read_the_claim(),
            Command::CloseChannel if core.session.is_none() => {}
            Command::CloseChannel => self.close_session(core),
            Command::StartRetryTimer => {
                let shared = Arc::downgrade(self);
                thread::spawn(move || {
                    thread::sleep(RETRY_INTERVAL);
                    if let Some(shared) = shared.upgrade() {
                        shared.event(None, Event::RetryDue);
                    }
                });
            }
            Command::Resume => {
                core.is_handing_over = false;
                core.is_switching_over = false;
                self.options.console.iter().for_each(|console| console.keep());
                self.patience().goes_on();
            }
            Command::AskToTakeOver => {
                // Where its disks are broken, the guest has gone on since what the secondary holds, and has read what is lost.
                let console = self.options.console.as_ref().filter(|_| core.is_switching_over);
                let input = console.map(|console| console.hand_over());
                core.is_handing_over = true;
                if let Some(session) = &core.session {
                    session.ask_to_take_over(input.as_ref());
                }
            }
            Command::Stop { reason } => {
                core.stop = Some(reason);
                self.control.pause();
                self.disks.abandon_held();
            }
            Command::Acknowledge { .. } | Command::GetReady | Command::TakeOver { .. } => {
                tracing::error!(?command, "a command for a secondary");
            }
        }
    }
}
