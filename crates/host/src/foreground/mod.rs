//! A VM that runs in the foreground of a terminal.

pub mod events;
pub mod open;
pub mod output;
pub mod raw_terminal;
mod recording;
pub mod requests;
pub mod snapshots;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::{Context, Result};
use machine::bus::lock;
use machine::control::Control;
use machine::devices::serial::ConsoleSink;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::events::GuestEvent;
use machine::generation::GenerationId;
use machine::triple_fault::TripleFault;
use machine::vm::{Boot, Vm};
use replication::lockstep::file::LogEnd;
use spec::EngineKind;
use spec::VmSpec;
use terminal::interrupt;

use events::{Event, Reporter};
use open::Ends;
use output::Output;
use raw_terminal::RawTerminal;
use recording::Recording;
use requests::{Answer, Pending, Request, RequestServer, VmStatus};
use snapshots::{Holds, Restoring, SnapshotDisks};
pub use snapshots::{OpenSnapshot, open_snapshot};

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
    let (reporter, _reports) = Reporter::start(options.json).context("cannot start to report")?;
    let screen = Output::start(io::stdout(), raw_terminal::left_out).context("cannot start to show the console")?;
    let (spec, mut snapshot) = match start {
        Start::Spec(spec) => (open::absolute(*spec)?, None),
        Start::Snapshot(path) => {
            let (spec, snapshot) = open_snapshot(&path)?;
            (spec, Some((path, snapshot)))
        }
    };
    open::config(&spec)?;
    Recording::check(&spec, options.engine.0)?;
    let current = Current::default();
    let (preparing, notified) = (current.clone(), current.clone());
    let prepare = move |request: &Request| preparing.prepare(request);
    let (_server, pending) = RequestServer::start(&spec.name, prepare, move || notified.control(Control::pause))?;
    let ends = Ends::start(&spec)?;
    let leaving = Leaving::default();
    let on_signal = (current.clone(), leaving.clone(), reporter.clone());
    interrupt::catch(move || {
        let (current, leaving, reporter) = &on_signal;
        current.control(|control| leaving.ask(control, reporter));
    })?;
    let raw = if options.json { None } else { RawTerminal::enter()? };
    if !options.json {
        let (leaving, reporter) = (leaving.clone(), reporter.clone());
        let (typing, left) = (current.clone(), current.clone());
        let leave = move || left.control(|control| leaving.ask(control, &reporter));
        // At the end of input the guest's console simply stays silent.
        raw_terminal::feed_console(move |bytes| typing.type_on_console(bytes), leave, || ());
    }
    let sink =
        || -> Box<dyn ConsoleSink> { if options.json { Box::new(reporter.clone()) } else { Box::new(screen.sink()) } };
    let (engine, reason) = (options.engine.0, options.engine.1.as_str());
    let started = Instant::now();
    let mut crashes = 0;
    let mut generation = None;
    loop {
        let from = match snapshot.take() {
            Some((path, snapshot)) => From::Snapshot(Box::new(Restoring::begin(&path, &spec, snapshot)?)),
            None => From::PowerOn(generation),
        };
        let Made { mut vm, recording, disks } = make(&spec, from, engine, &ends, sink())?;
        current.set(Some(Reached { control: vm.control(), disks: disks.clone() }));
        reporter.report(&Event::Started { name: &spec.name, engine: engine.to_string(), reason });
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

/// What a VM begins from.
enum From {
    /// Power-on; after a reset it is the VM that it was, by this ID.
    PowerOn(Option<GenerationId>),
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
fn make(spec: &VmSpec, from: From, engine: EngineKind, ends: &Ends, console: Box<dyn ConsoleSink>) -> Result<Made> {
    let instructions = match &from {
        From::PowerOn(_) => 0,
        From::Snapshot(restoring) => restoring.saved.content.state.engine.processors.instructions,
    };
    let recording = Recording::new(spec, instructions)?;
    let mode = recording.as_ref().map_or(InputMode::Live, Recording::mode);
    let is_restored = matches!(from, From::Snapshot(_));
    let (mut vm, disks) = match from {
        From::PowerOn(generation) => power_on(spec, generation, engine, mode, ends, console)?,
        From::Snapshot(restoring) => go_on(*restoring, engine, mode, ends, console)?,
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
    generation: Option<GenerationId>,
    engine: EngineKind,
    mode: InputMode,
    ends: &Ends,
    console: Box<dyn ConsoleSink>,
) -> Result<(Vm, SnapshotDisks)> {
    let images = open::disks(spec)?;
    let disks = SnapshotDisks::of(&images);
    let parts = open::connect(images, ends, console)?;
    let guest = open::guest(spec)?;
    let boot =
        Boot::Linux { kernel: &guest.kernel, initrd: guest.initrd.as_deref(), command_line: &guest.command_line };
    let vm = Vm::boot(open::config(spec)?, &boot, parts, engine, mode)?;
    if let Some(generation) = generation {
        vm.keep_generation(generation)?;
    }
    Ok((vm, disks))
}

fn go_on(
    restoring: Restoring,
    engine: EngineKind,
    mode: InputMode,
    ends: &Ends,
    console: Box<dyn ConsoleSink>,
) -> Result<(Vm, SnapshotDisks)> {
    let Restoring { disks: images, saved } = restoring;
    let disks = SnapshotDisks::of(&images);
    let vm = saved.go_on(open::connect(images, ends, console)?, engine, mode)?;
    disks.note_images();
    Ok((vm, disks))
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
    let Running { spec, disks, recording, started } = *running;
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
                Request::Snapshot { path } => snapshots::write(vm, spec, disks, path, Holds::Memory).inspect(|()| {
                    disks.note_snapshot(path);
                    reporter.report(&Event::Snapshot { path });
                }),
                Request::Stop { force: false } => {
                    vm.control().press_power_button();
                    Ok(())
                }
                Request::Stop { force: true } => {
                    leaving.pull_the_plug();
                    Ok(())
                }
            };
            request.answer(match done {
                Ok(()) => Answer::Done { status: status(vm, spec, started) },
                Err(error) => Answer::Failed { message: format!("{error:#}") },
            });
        }
        if leaving.plug_is_pulled() {
            return Ok(Ended::Stopped("the plug was pulled"));
        }
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
