//! A VM that runs in the foreground of a terminal.

pub mod events;
pub mod open;
pub mod output;
mod recording;
pub mod requests;
pub mod terminal;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use machine::bus::lock;
use machine::control::Control;
use machine::devices::serial::ConsoleSink;
use machine::engine::RunEnd;
use machine::engine::soft::InputMode;
use machine::events::GuestEvent;
use machine::triple_fault::TripleFault;
use machine::vm::{Boot, Snapshot, SnapshotContent, SnapshotHead, Vm, VmConfig};
use replication::lockstep::file::LogEnd;
use spec::EngineKind;
use spec::VmSpec;
use storage::disk::{DiskImage, DiskOptions};

use crate::interrupt;
use events::{Event, Reporter};
use open::Ends;
use output::Output;
use recording::Recording;
use requests::{Answer, Pending, Request, RequestServer, VmStatus};
use terminal::RawTerminal;

/// What to run.
pub enum Start {
    /// A spec, from power-on.
    Spec(VmSpec),
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

/// Runs a VM until it ends.
pub fn run(start: Start, options: &Options) -> Result<()> {
    let (reporter, _reports) = Reporter::start(options.json).context("cannot start to report")?;
    let screen = Output::start(io::stdout(), terminal::left_out).context("cannot start to show the console")?;
    let (spec, mut snapshot) = match start {
        Start::Spec(spec) => (open::absolute(spec)?, None),
        Start::Snapshot(path) => {
            let (spec, snapshot) = open_snapshot(&path)?;
            (spec, Some((path, snapshot)))
        }
    };
    open::config(&spec)?;
    Recording::check(&spec, options.engine.0)?;
    // The control of the VM that runs now; a reset makes a new one.
    let shared: Arc<std::sync::Mutex<Option<Arc<Control>>>> = Arc::default();
    let on_control = {
        let shared = shared.clone();
        move |act: &dyn Fn(&Control)| {
            if let Some(control) = &*lock(&shared) {
                act(control);
            }
        }
    };
    let notify = on_control.clone();
    let (_server, pending) = RequestServer::start(&spec.name, move || notify(&Control::pause))?;
    let ends = Ends::start(&spec)?;
    let leaving = Leaving::default();
    let on_signal = (on_control.clone(), leaving.clone(), reporter.clone());
    interrupt::catch(move || {
        let (on_control, leaving, reporter) = &on_signal;
        on_control(&|control| leaving.ask(control, reporter));
    })?;
    let raw = if options.json { None } else { RawTerminal::enter()? };
    if !options.json {
        let (leaving, reporter) = (leaving.clone(), reporter.clone());
        let typing = shared.clone();
        let typed = move |bytes: &[u8]| lock(&typing).as_ref().map_or(0, |control| control.type_on_console(bytes));
        let leave = move || on_control(&|control| leaving.ask(control, &reporter));
        // At the end of input the guest's console simply stays silent.
        terminal::feed_console(typed, leave, || ());
    }
    let sink =
        || -> Box<dyn ConsoleSink> { if options.json { Box::new(reporter.clone()) } else { Box::new(screen.sink()) } };
    let (engine, reason) = (options.engine.0, options.engine.1.as_str());
    let started = Instant::now();
    let mut crashes = 0;
    loop {
        let restored = snapshot.take().map(|(path, snapshot)| restore(&path, snapshot)).transpose()?;
        let (mut vm, recording) = make(&spec, restored, engine, &ends, sink())?;
        *lock(&shared) = Some(vm.control());
        reporter.report(&Event::Started { name: &spec.name, engine: engine.to_string(), reason });
        if let Some(recording) = &recording {
            reporter.report(&Event::Recording { path: recording.path() });
        }
        let end = serve(&mut vm, &spec, recording.as_ref(), &pending, &leaving, &reporter, started);
        *lock(&shared) = None;
        vm.platform().flush_disks().context("cannot flush the disks")?;
        let end = end?;
        if let Some(recording) = recording {
            let path = recording.path().to_owned();
            if let Some(LogEnd { instructions, digest }) = recording.end(&mut vm)? {
                reporter.report(&Event::Recorded { path: &path, instructions, digest: digest.to_string() });
            }
        }
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

/// Makes a VM, at power-on or as it was saved, and a record of its life if its spec asks for one.
fn make(
    spec: &VmSpec,
    restored: Option<(VmConfig, SnapshotContent)>,
    engine: EngineKind,
    ends: &Ends,
    console: Box<dyn ConsoleSink>,
) -> Result<(Vm, Option<Recording>)> {
    let instructions = restored.as_ref().map_or(0, |(_, content)| content.state.engine.processors.instructions);
    let recording = Recording::new(spec, instructions)?;
    let mode = recording.as_ref().map_or(InputMode::Live, Recording::mode);
    let disks = open::disks(spec)?;
    let bases = match &recording {
        Some(_) => disks.iter().map(open::base).collect::<Result<Vec<_>>>()?,
        None => Vec::new(),
    };
    let parts = open::connect(disks, ends, console)?;
    let mut vm = match restored {
        None => {
            let guest = open::guest(spec)?;
            let boot = Boot::Linux {
                kernel: &guest.kernel,
                initrd: guest.initrd.as_deref(),
                command_line: &guest.command_line,
            };
            Vm::boot(open::config(spec)?, &boot, parts, engine, mode)?
        }
        Some((config, content)) => Vm::restore(config, &content.ram, content.state, parts, engine, mode)?,
    };
    if let Some(recording) = &recording {
        recording.begin(&mut vm, spec, bases)?;
    }
    Ok((vm, recording))
}

/// How a VM came to its end.
enum Ended {
    Reset,
    /// By a triple fault, after which a machine resets as well.
    Crashed(TripleFault),
    Stopped(&'static str),
}

/// Runs the VM and answers requests in between.
fn serve(
    vm: &mut Vm,
    spec: &VmSpec,
    recording: Option<&Recording>,
    pending: &Receiver<Pending>,
    leaving: &Leaving,
    reporter: &Reporter,
    started: Instant,
) -> Result<Ended> {
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
                Request::Snapshot { path } => snapshot(vm, spec, path).inspect(|()| {
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
        running_s: started.elapsed().as_secs(),
    }
}

/// Writes a snapshot beside its final name and renames it into place, so that a full disk leaves no half of one.
fn snapshot(vm: &mut Vm, spec: &VmSpec, path: &Path) -> Result<()> {
    let head =
        SnapshotHead { config: vm.config().clone(), spec: spec::to_toml(spec)?, disks: open::writable_disks(spec) };
    let temporary = beside(path, "part");
    let written = File::create(&temporary)
        .with_context(|| format!("cannot create {}", temporary.display()))
        .and_then(|file| {
            let mut out = vm.write_snapshot(&head, BufWriter::new(file))?;
            out.flush()?;
            Ok(out.get_ref().sync_all()?)
        })
        .and_then(|()| Ok(fs::rename(&temporary, path)?));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write snapshot {}", path.display()))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// A snapshot file that is open.
pub type OpenSnapshot = Snapshot<std::io::BufReader<File>>;

/// Opens a snapshot file; returns it with the spec of the VM that it is of.
pub fn open_snapshot(path: &Path) -> Result<(VmSpec, OpenSnapshot)> {
    let file = File::open(path).with_context(|| format!("cannot read snapshot {}", path.display()))?;
    let mut snapshot =
        Snapshot::open(std::io::BufReader::new(file)).with_context(|| format!("snapshot {}", path.display()))?;
    let spec = VmSpec::parse(&snapshot.head().spec)?;
    snapshot.set_backing(spec.backing());
    if open::writable_disks(&spec) != snapshot.head().disks {
        bail!("snapshot {}: its disks are not those of its spec", path.display());
    }
    Ok((spec, snapshot))
}

/// Reads a snapshot, and puts its disks' content in place of the files that are there.
fn restore(path: &Path, snapshot: OpenSnapshot) -> Result<(VmConfig, SnapshotContent)> {
    let config = snapshot.head().config.clone();
    let disks = snapshot.head().disks.clone();
    for disk in disks.iter().filter(|disk| disk.exists()) {
        // Refused while another VM has it.
        DiskImage::open(disk, DiskOptions::default())?;
    }
    let temporary = |number: usize| disks.get(number).map(|disk| beside(disk, "restoring")).unwrap_or_default();
    let content = snapshot.read(temporary).with_context(|| format!("snapshot {}", path.display()));
    if content.is_err() {
        for number in 0..disks.len() {
            let _ = fs::remove_file(temporary(number));
        }
    }
    let content = content?;
    for (number, disk) in disks.iter().enumerate() {
        fs::rename(temporary(number), disk).with_context(|| format!("cannot replace disk {}", disk.display()))?;
    }
    Ok((config, content))
}
