//! A VM that runs in the foreground of a terminal.

pub mod broker;
mod confined;
pub mod events;
pub mod open;
pub mod output;
pub mod raw_terminal;
mod recording;
pub mod requests;
pub mod snapshots;
mod writers;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use machine::bus::lock;
use machine::control::Control;
use machine::devices::serial::ConsoleSink;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::events::GuestEvent;
use machine::generation::GenerationId;
use machine::platform::Parts;
use machine::triple_fault::TripleFault;
use machine::vm::{Boot, Vm};
use replication::lockstep::file::LogEnd;
use spec::{EngineKind, VmSpec};
use storage::disk::DiskImage;
use terminal::error_text::error_text;
use terminal::interrupt;

use broker::Broker;
use events::{Event, Reporter};
use open::GuestFiles;
use output::Output;
use raw_terminal::RawTerminal;
use recording::Recording;
use requests::{Answer, Pending, Request, RequestSocket, VmStatus};
pub use snapshots::{OpenSnapshot, open_snapshot};
use writers::Writers;

use crate::sandbox::Enforced;
use snapshots::{Restoring, SnapshotDisks};

/// What to run.
pub enum Start {
    /// A spec, from power-on.
    Spec(Box<VmSpec>),
    /// A snapshot file.
    Snapshot(PathBuf),
}

/// How to run it.
pub struct Options {
    /// Which engine, and why that one.
    pub engine: (EngineKind, String),
    /// Events as JSON on standard output, no terminal.
    pub json: bool,
}

/// How often the user asked to leave: once presses the power button, twice pulls the plug.
#[derive(Clone, Default)]
struct Leaving(Arc<AtomicU32>);

impl Leaving {
    fn ask(&self, control: &Control, reporter: &Reporter) {
        if self.0.fetch_add(1, Ordering::AcqRel) == 0 {
            reporter.report(&Event::PowerButton);
            control.press_power_button();
        } else {
            control.pause();
        }
    }

    fn pull_the_plug(&self) {
        self.0.store(2, Ordering::Release);
    }

    fn plug_is_pulled(&self) -> bool {
        self.0.load(Ordering::Acquire) >= 2
    }
}

/// The VM that runs now, if there is one, as other threads reach it. A reset makes a new one.
#[derive(Clone, Default)]
struct Current(Arc<std::sync::Mutex<Option<Reached>>>);

#[derive(Clone)]
struct Reached {
    control: Arc<Control>,
    disks: Arc<SnapshotDisks>,
}

impl Current {
    fn set(&self, vm: Option<Reached>) {
        *lock(&self.0) = vm;
    }

    fn get(&self) -> Option<Reached> {
        lock(&self.0).clone()
    }

    fn control(&self, act: impl FnOnce(&Control)) {
        if let Some(vm) = self.get() {
            act(&vm.control);
        }
    }

    /// How many of these bytes found room.
    fn type_on_console(&self, bytes: &[u8]) -> usize {
        self.get().map_or(0, |vm| vm.control.type_on_console(bytes))
    }

    /// Does what of a request takes long and needs no pause.
    fn prepare(&self, request: &Request) -> Result<()> {
        match (request, self.get()) {
            (Request::Snapshot { .. }, Some(vm)) => vm.disks.identify().map(|_| ()),
            _ => Ok(()),
        }
    }
}

/// Runs a VM until it ends.
pub fn run(start: Start, options: &Options) -> Result<()> {
    // What is dropped last comes first: the broker ends when nobody is heard any more.
    let Opened { spec, guest, broker, requests, mut images, mut snapshot, enforced } =
        Opened::confined(start, options.engine.0)?;
    let (reporter, _reports) = Reporter::start(options.json).context("cannot start to report")?;
    let screen = Output::start(io::stdout(), raw_terminal::left_out).context("cannot start to show the console")?;
    if !enforced.is_full() {
        reporter.report(&Event::ConfinedInPart { enforced: enforced.to_string() });
    }
    let current = Current::default();
    let (preparing, notified) = (current.clone(), current.clone());
    let prepare = move |request: &Request| preparing.prepare(request);
    let pending = requests.serve(prepare, move || notified.control(Control::pause))?;
    let leaving = Leaving::default();
    let on_signal = (current.clone(), leaving.clone(), reporter.clone());
    interrupt::catch(move || {
        let (current, leaving, reporter) = &on_signal;
        current.control(|control| leaving.ask(control, reporter));
    })?;
    let raw = if options.json { None } else { connect_terminal(&current, &leaving, &reporter)? };
    let sink =
        || -> Box<dyn ConsoleSink> { if options.json { Box::new(reporter.clone()) } else { Box::new(screen.sink()) } };
    let (engine, reason) = (options.engine.0, options.engine.1.as_str());
    let started = Instant::now();
    let mut crashes = 0;
    let mut generation = None;
    loop {
        let from = match snapshot.take() {
            Some((path, snapshot)) => From::Snapshot(Box::new(Restoring::begin(&path, &spec, snapshot)?)),
            None => From::PowerOn(generation, images.take().map_or_else(|| open::disks(&spec), Ok)?),
        };
        let is_restored = matches!(from, From::Snapshot(_));
        let Made { mut vm, recording, disks } = make(&spec, &guest, from, engine, &broker, sink())?;
        current.set(Some(Reached { control: vm.control(), disks: disks.clone() }));
        reporter.report(&Event::Started { name: &spec.name, engine: engine.to_string(), reason });
        reporter.report_generation(!is_restored || vm.platform().heeds_generation());
        if let Some(recording) = &recording {
            reporter.report(&match recording.failure() {
                None => Event::Recording { path: recording.path() },
                Some(error) => Event::RecordingFailed { path: recording.path(), reason: error.to_string() },
            });
        }
        let running = Running { spec: &spec, disks: &disks, recording: recording.as_ref(), started };
        let end = serve(&mut vm, &running, &pending, &leaving, &reporter);
        current.set(None);
        vm.platform().flush_disks().context("cannot flush the disks")?;
        let end = end?;
        if let Some(recording) = recording {
            let path = recording.path().to_owned();
            if let Some(LogEnd { instructions, digest }) = recording.end(&mut vm)? {
                reporter.report(&Event::Recorded { path: &path, instructions, digest: digest.to_string() });
            }
        }
        generation = GenerationId::of(vm.platform().ram());
        match end {
            Ended::Reset => reporter.report(&Event::Reset),
            Ended::Crashed(fault) => {
                crashes += 1;
                reporter.report(&Event::TripleFault { place: fault.to_string(), count: crashes });
                reporter.report(&Event::Reset);
            }
            Ended::Stopped(reason) => {
                drop(raw);
                reporter.report(&Event::Stopped { reason, instructions: vm.instructions() });
                return Ok(());
            }
        }
    }
}

/// Feeds what is typed to the guest's console; the terminal in raw mode, if it is one.
fn connect_terminal(current: &Current, leaving: &Leaving, reporter: &Reporter) -> Result<Option<RawTerminal>> {
    let raw = RawTerminal::enter()?;
    let (leaving, reporter) = (leaving.clone(), reporter.clone());
    let (typing, left) = (current.clone(), current.clone());
    let leave = move || left.control(|control| leaving.ask(control, &reporter));
    // At the end of input the guest's console simply stays silent.
    raw_terminal::feed_console(move |bytes| typing.type_on_console(bytes), leave, || ());
    Ok(raw)
}

/// What a VM in the foreground has open when its process is confined.
struct Opened {
    spec: VmSpec,
    /// Why not, if it cannot be booted: one that goes on from a snapshot need not be, before a reset.
    guest: Result<GuestFiles>,
    requests: RequestSocket,
    broker: Broker,
    /// Disks, of a VM that is booted.
    images: Option<Vec<DiskImage>>,
    snapshot: Option<(PathBuf, OpenSnapshot)>,
    /// What confines it.
    enforced: Enforced,
}

impl Opened {
    /// Opens what the VM needs, and confines the process to it. It must not have more threads than one.
    fn confined(start: Start, engine: EngineKind) -> Result<Self> {
        let (spec, snapshot) = match start {
            Start::Spec(spec) => (open::absolute(*spec)?, None),
            Start::Snapshot(path) => {
                let path = std::path::absolute(&path).with_context(|| format!("cannot resolve {}", path.display()))?;
                let (spec, snapshot) = open_snapshot(&path)?;
                (spec, Some((path, snapshot)))
            }
        };
        open::config(&spec)?;
        Recording::check(&spec, engine)?;
        let requests = RequestSocket::bind(&spec.name)?;
        let broker = Broker::start(&spec, requests.path())?;
        let images = if snapshot.is_none() { Some(open::disks(&spec)?) } else { None };
        if let Some((_, snapshot)) = &snapshot {
            snapshots::note_bases(snapshot.head());
        }
        let guest = GuestFiles::of(&spec);
        let open = snapshot.as_ref().map(|(path, snapshot)| (path.as_path(), snapshot));
        let disks = images.as_deref().unwrap_or_default();
        let enforced = confined::confine(&spec, engine, guest.as_ref().ok(), disks, open)?;
        Ok(Self { spec, guest, requests, broker, images, snapshot, enforced })
    }
}

/// What a VM begins from.
enum From {
    /// Power-on with these disks; after a reset it is the VM that it was, by this ID.
    PowerOn(Option<GenerationId>, Vec<DiskImage>),
    Snapshot(Box<Restoring>),
}

/// A VM that has not run here yet.
struct Made {
    vm: Vm,
    /// A record of its life, if its spec asks for one.
    recording: Option<Recording>,
    disks: Arc<SnapshotDisks>,
}

/// Makes a VM. If it begins from a snapshot, its disks are replaced when that has succeeded.
fn make(
    spec: &VmSpec,
    guest: &Result<GuestFiles>,
    from: From,
    engine: EngineKind,
    broker: &Broker,
    console: Box<dyn ConsoleSink>,
) -> Result<Made> {
    let instructions = match &from {
        From::PowerOn(..) => 0,
        From::Snapshot(restoring) => restoring.saved.content.state.engine.processors.instructions,
    };
    let recording = Recording::new(spec, instructions)?;
    let mode = recording.as_ref().map_or(InputMode::Live, Recording::mode);
    let is_restored = matches!(from, From::Snapshot(_));
    let (mut vm, disks) = match from {
        From::PowerOn(generation, images) => {
            let disks = SnapshotDisks::of(&images);
            let parts = open::parts(images, broker.connect()?, console)?;
            (power_on(spec, guest, generation, engine, mode, parts)?, disks)
        }
        From::Snapshot(restoring) => {
            let Restoring { disks: images, saved } = *restoring;
            let disks = SnapshotDisks::of(&images);
            (saved.go_on(open::parts(images, broker.connect()?, console)?, engine, mode)?, disks)
        }
    };
    if let Some(recording) = &recording
        && let Err(error) = recording.begin(&mut vm, spec, &disks)
    {
        // The disks are the snapshot's already, and those before are gone: a VM that goes on unrecorded is the lesser loss.
        if !is_restored {
            return Err(error);
        }
        recording.give_up(&error);
    }
    Ok(Made { vm, recording, disks: Arc::new(disks) })
}

fn power_on(
    spec: &VmSpec,
    guest: &Result<GuestFiles>,
    generation: Option<GenerationId>,
    engine: EngineKind,
    mode: InputMode,
    parts: Parts,
) -> Result<Vm> {
    let guest = guest.as_ref().map_err(|error| anyhow!(error_text(error)))?.read()?;
    let boot =
        Boot::Linux { kernel: &guest.kernel, initrd: guest.initrd.as_deref(), command_line: &guest.command_line };
    let vm = Vm::boot(open::config(spec)?, &boot, parts, engine, mode)?;
    if let Some(generation) = generation {
        vm.keep_generation(generation)?;
    }
    Ok(vm)
}

/// How a VM came to its end.
enum Ended {
    Reset,
    /// By a triple fault, after which a machine resets as well.
    Crashed(TripleFault),
    Stopped(&'static str),
}

/// What belongs to a VM that runs.
struct Running<'a> {
    spec: &'a VmSpec,
    disks: &'a SnapshotDisks,
    recording: Option<&'a Recording>,
    started: Instant,
}

/// Runs the VM and answers requests in between.
fn serve(
    vm: &mut Vm,
    running: &Running,
    pending: &Receiver<Pending>,
    leaving: &Leaving,
    reporter: &Reporter,
) -> Result<Ended> {
    let Running { spec, recording, started, .. } = *running;
    // What is not complete is given up when this returns.
    let writers = Writers::default();
    loop {
        let end = vm.run(recording.and_then(|recording| recording.digest_due_at(vm)))?;
        if let Some(recording) = recording
            && let Some(error) = recording.failure()
        {
            reporter.report(&Event::RecordingFailed { path: recording.path(), reason: error.to_string() });
        }
        match end {
            RunEnd::Paused => {}
            RunEnd::LimitReached => recording.map_or(Ok(()), |recording| recording.digest(vm))?,
            RunEnd::Guest(GuestEvent::PowerOff) => return Ok(Ended::Stopped("the guest powered off")),
            RunEnd::Guest(GuestEvent::Reset) => return Ok(Ended::Reset),
            RunEnd::Guest(GuestEvent::Panicked) => reporter.report(&Event::Panicked),
            RunEnd::Guest(GuestEvent::CrashLoaded) => {}
            RunEnd::Shutdown { vcpu } => return Ok(Ended::Crashed(vm.triple_fault(vcpu))),
        }
        if leaving.plug_is_pulled() {
            return Ok(Ended::Stopped("the plug was pulled"));
        }
        while let Ok(request) = pending.try_recv() {
            let done = match &request.request {
                Request::Status => Ok(()),
                Request::Snapshot { .. } => {
                    writers.begin(vm, running, request, reporter);
                    continue;
                }
                Request::Stop { force: false } => {
                    vm.control().press_power_button();
                    Ok(())
                }
                Request::Stop { force: true } => {
                    leaving.pull_the_plug();
                    Ok(())
                }
            };
            request.answer(answer(done, status(vm, spec, started)));
        }
        if leaving.plug_is_pulled() {
            return Ok(Ended::Stopped("the plug was pulled"));
        }
    }
}

fn answer(done: Result<()>, status: VmStatus) -> Answer {
    match done {
        Ok(()) => Answer::Done { status },
        Err(error) => Answer::Failed { message: error_text(&error) },
    }
}

fn status(vm: &Vm, spec: &VmSpec, started: Instant) -> VmStatus {
    VmStatus {
        name: spec.name.clone(),
        pid: std::process::id(),
        engine: vm.engine().to_string(),
        cpus: spec.cpus,
        memory_bytes: spec.memory.bytes(),
        spec: spec::to_toml(spec).unwrap_or_default(),
        running_s: started.elapsed().as_secs(),
    }
}
