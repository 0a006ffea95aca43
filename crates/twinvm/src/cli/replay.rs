//! `twinvm replay`: a recorded VM, executed again.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use host::foreground::raw_terminal::TerminalSink;
use host::foreground::{OpenSnapshot, open, open_snapshot};
use indicatif::HumanCount;
use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::block::{BlockBackend, ImageDisk};
use machine::engine::soft::host_signature;
use machine::input::InputEvent;
use machine::vm::SnapshotPlace;
use replication::lockstep::file::{LogEnd, LogFileError, LogFileHead, LogFileReader, LogRecord, snapshot_digest};
use replication::lockstep::log::{Entry, Segment};
use replication::lockstep::{Execution, ExecutorError, ExecutorProgress};
use serde::Serialize;
use spec::VmSpec;
use storage::disk::{BaseIdentity, DiskImage, DiskOptions};
use tempfile::TempDir;
use terminal::interrupt;
use terminal::output::{check_json, is_stdout, print_line, say, write_json};

/// Time between two lines that say how far a long replay is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Exit status of a process that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

#[derive(Args)]
#[command(after_help = "\
A VM whose spec says record = \"DIR\" leaves two files there each time it runs under `twinvm run`: NAME-N.log, and NAME-N.snapshot, of how
it began. Both together can be replayed anywhere, as often as one likes. The guest's disks are put into temporary files (in TMPDIR, else /tmp),
it has no network, and nothing of its host reaches it: it does exactly what it did, and ends in the same state. Digests that were recorded on
the way are compared. Not in the snapshot are what an overlay is based on and disks that the guest may only read: they are needed
where the spec names them.

Exit status: 0 if all digests are as recorded, 1 if one is not or the replay cannot be done, 130 after Ctrl-C.")]
pub struct ReplayArguments {
    /// The log
    file: PathBuf,
    /// Stop after so many instructions since power-on, and after what reaches the guest at that point [default: at the log's end]
    #[arg(long, value_name = "INSTRUCTIONS")]
    until: Option<u64>,
    /// Do not print the guest's console
    #[arg(short, long)]
    quiet: bool,
    /// Write the result to FILE as JSON; `-` is standard output, which then has nothing else
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Where a replay has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum StoppedAt {
    /// Where the recording was ended.
    End,
    /// Where the log's file ends though the recording was not ended.
    Cut,
    /// Where the user wants.
    Until,
}

/// What comes of a replay.
#[derive(Debug, Serialize)]
struct Outcome {
    stopped_at: StoppedAt,
    /// Instructions retired since power-on.
    instructions: u64,
    /// Seconds of the guest's time since power-on.
    guest_s: f64,
    /// Recorded digests that were compared on the way, all of them equal.
    digests_compared: u64,
    /// Digest of the last state, hexadecimal. At the recording's end it is the recorded one.
    digest: String,
    /// Seconds that it took.
    took_s: f64,
}

/// How far a log goes.
struct Extent {
    /// The instruction count at the end of the last segment.
    reached: u64,
    stopped_at: StoppedAt,
}

pub fn run(arguments: &ReplayArguments) -> Result<ExitCode> {
    interrupt::catch(|| {})?;
    check_json(arguments.json.as_deref())?;
    let in_log = || format!("log {}", arguments.file.display());
    let extent = look_through(&arguments.file, arguments.until).with_context(in_log)?;
    let mut log = open_log(&arguments.file).with_context(in_log)?;
    if log.head().host_signature != host_signature() {
        warn(
            "this host's processor computes some floating-point functions differently than the one that recorded; a guest that uses them differs",
        );
    }
    let snapshot = find_snapshot(&arguments.file, log.head()).with_context(in_log)?;
    let started = Instant::now();
    let progress = Arc::new(ExecutorProgress::default());
    // Standard output has nothing else if it has JSON.
    let is_quiet = arguments.quiet || is_stdout(arguments.json.as_deref());
    let console: Box<dyn ConsoleSink> = if is_quiet { Box::new(Silent) } else { Box::new(TerminalSink) };
    let (mut execution, _disks) = begin(snapshot, &log.head().bases, console, progress.clone())?;
    // Lines in between would make the guest's screen unreadable.
    let mut reports = Reports::new(is_quiet || !std::io::stdout().is_terminal(), &extent);
    let until = arguments.until.unwrap_or(u64::MAX);
    let mut end = None;
    while let Some(record) = log.next_record().with_context(in_log)? {
        match record {
            LogRecord::Segment(segment) => {
                let is_last = execute(&mut execution, segment, until).map_err(explain)?;
                execution.take_output();
                reports.report(execution.instructions());
                if is_last {
                    break;
                }
            }
            LogRecord::End(recorded) => end = Some(recorded),
            LogRecord::Cut { .. } => {}
        }
        if interrupt::is_requested() {
            say(format_args!("twinvm: stopped after {} instructions", execution.instructions()));
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }
    let digest = execution.digest()?;
    let instructions = execution.instructions();
    if let Some(LogEnd { instructions: recorded_instructions, digest: recorded_digest }) = end
        && (instructions, digest) != (recorded_instructions, recorded_digest)
    {
        bail!(
            "the replay differs from what was recorded: it ends after {instructions} instructions with digest {digest}, and the \
             recording after {recorded_instructions} with {recorded_digest}"
        );
    }
    let outcome = Outcome {
        stopped_at: extent.stopped_at,
        instructions,
        guest_s: execution.guest_ns() as f64 / 1e9,
        digests_compared: progress.digests(),
        digest: digest.to_string(),
        took_s: started.elapsed().as_secs_f64(),
    };
    if let Some(path) = &arguments.json {
        write_json(path, &outcome)?;
    }
    if !is_stdout(arguments.json.as_deref()) {
        print(&outcome, !is_quiet)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(outcome: &Outcome, follows_console: bool) -> Result<()> {
    if follows_console {
        print_line("")?;
    }
    let stopped_at = match outcome.stopped_at {
        StoppedAt::End => "the end of the recording, in the state recorded",
        StoppedAt::Cut => "where the recording was cut off",
        StoppedAt::Until => "the instruction asked for",
    };
    for (what, value) in [
        ("stopped at", stopped_at.to_owned()),
        ("instructions", outcome.instructions.to_string()),
        ("guest time", format!("{:.3} s", outcome.guest_s)),
        ("digests", format!("{} compared, all as recorded", outcome.digests_compared)),
        ("digest", outcome.digest.clone()),
    ] {
        print_line(&format!("{what:14}{value}"))?;
    }
    Ok(())
}

fn warn(message: &str) {
    say(format_args!("twinvm: warning: {message}"));
}

fn open_log(path: &Path) -> Result<LogFileReader<BufReader<File>>> {
    let file = File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "there is no such file; a VM whose spec has record = \"DIR\" leaves NAME-N.log there each time that it runs under `twinvm run`"
        ),
        _ => error.into(),
    })?;
    Ok(LogFileReader::new(BufReader::new(file))?)
}

/// Reads the log as far as it will be executed, before that takes its time.
fn look_through(path: &Path, until: Option<u64>) -> Result<Extent> {
    let mut log = open_log(path)?;
    let begins_at = log.head().instructions;
    let mut reached = begins_at;
    if let Some(until) = until
        && until < begins_at
    {
        bail!("--until {until}: the recording begins after {begins_at} instructions");
    }
    loop {
        let record = log.next_record().map_err(|error| match error {
            // The segment that is damaged begins there, and inputs at that count are in it.
            LogFileError::Damaged { .. } if reached > begins_at => {
                anyhow!("{error}; what comes before can be replayed with --until {}", reached - 1)
            }
            error => error.into(),
        })?;
        let stopped_at = match record {
            Some(LogRecord::Segment(segment)) => {
                reached = segment.reached;
                if until.is_none_or(|until| reached <= until) {
                    continue;
                }
                StoppedAt::Until
            }
            Some(LogRecord::End(_)) | None => StoppedAt::End,
            Some(LogRecord::Cut { offset }) => {
                warn(&format!(
                    "{} is cut off at byte {offset}: its recording was not ended; what is there goes to instruction {reached}",
                    path.display()
                ));
                StoppedAt::Cut
            }
        };
        if let Some(until) = until
            && until > reached
        {
            bail!("--until {until}: the recording ends after {reached} instructions");
        }
        return Ok(Extent { reached: until.unwrap_or(reached), stopped_at });
    }
}

/// Opens the snapshot that a log begins with.
fn find_snapshot(log: &Path, head: &LogFileHead) -> Result<(VmSpec, OpenSnapshot)> {
    let path = log.with_file_name(&head.snapshot);
    if !path.exists() {
        bail!("its snapshot {} is missing: it belongs into the same folder, under that name", path.display());
    }
    let digest = snapshot_digest(&path).with_context(|| format!("cannot read snapshot {}", path.display()))?;
    if digest != head.snapshot_digest {
        bail!("snapshot {} is not the one that it was recorded with", path.display());
    }
    open_snapshot(&path)
}

/// Makes the VM as it began, with disks in a folder that is to be kept as long as it is.
fn begin(
    (spec, snapshot): (VmSpec, OpenSnapshot),
    bases: &[BaseIdentity],
    console: Box<dyn ConsoleSink>,
    progress: Arc<ExecutorProgress>,
) -> Result<(Execution, TempDir)> {
    open::config(&spec)?;
    let config = snapshot.head().config.clone();
    let folder = tempfile::tempdir().context("cannot make a folder for temporary files; TMPDIR names another place")?;
    let files: Vec<_> = snapshot.head().written_disks().map(|disk| disk.path.clone()).collect();
    let copy = |number: usize, file: &Path| {
        // The name may tell the format.
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        folder.path().join(format!("{number}-{name}"))
    };
    let content = snapshot.read(|number| {
        let file = files.get(number).ok_or(io::ErrorKind::NotFound)?;
        let path = copy(number, file);
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(SnapshotPlace { file, path })
    });
    let content = content.with_context(|| format!("cannot put the disks into {}", folder.path().display()))?;
    let mut copies = files.iter().enumerate().map(|(number, file)| copy(number, file));
    let mut disks: Vec<Box<dyn BlockBackend>> = Vec::new();
    for (number, disk) in spec.disks.iter().enumerate() {
        let path = if disk.readonly { Some(disk.path.clone()) } else { copies.next() };
        let options = DiskOptions { format: disk.format, read_only: disk.readonly, direct: false };
        let image = DiskImage::open(&path.unwrap_or_default(), options)
            .with_context(|| format!("disk {} cannot be replayed", disk.path.display()))?;
        let base = open::base(&image).with_context(|| format!("disk {} cannot be replayed", disk.path.display()))?;
        if bases.get(number) != Some(&base) {
            let what = image.backing().filter(|_| !disk.readonly).map_or(&disk.path, |backing| &backing.path);
            bail!(
                "disk {} cannot be replayed: {} is not in the snapshot, and does not hold what it held when the VM was recorded",
                disk.path.display(),
                what.display()
            );
        }
        disks.push(Box::new(ImageDisk::new(image)));
    }
    let execution = Execution::new(config, &content.ram, content.state, disks, console, progress).map_err(explain)?;
    Ok((execution, folder))
}

/// Executes a segment as far as `until`; says whether nothing that follows is wanted.
fn execute(execution: &mut Execution, segment: Segment, until: u64) -> Result<bool, ExecutorError> {
    let Segment { reached, mut entries, .. } = segment;
    let wanted = entries.iter().position(|entry| match entry {
        Entry::Input(InputEvent { instructions, .. }) | Entry::Digest { instructions, .. } => *instructions > until,
    });
    entries.truncate(wanted.unwrap_or(entries.len()));
    let reached = reached.min(until);
    let is_last = wanted.is_some() || reached < segment.reached;
    execution.execute(entries, reached)?;
    let at = execution.instructions();
    // A guest that has ended stays where it is.
    if at < reached { Err(ExecutorError::Stuck { at, reached }) } else { Ok(is_last) }
}

/// Says what a failed execution means here.
fn explain(error: ExecutorError) -> anyhow::Error {
    let differs = "the replay differs from what was recorded";
    match error {
        ExecutorError::Diverged(divergence) => anyhow!(
            "{differs}: after {} instructions the state's digest is {:032x}, and {:032x} was recorded",
            divergence.state.instructions,
            divergence.state.digest,
            divergence.expected
        ),
        ExecutorError::Stuck { at, reached } => {
            anyhow!(
                "{differs}: after {at} instructions the guest does not go on, and the recorded one went on to {reached}"
            )
        }
        ExecutorError::Disk(reason) => anyhow!("{differs}: {reason}"),
        error => error.into(),
    }
}

/// Says from time to time how far a replay is.
struct Reports {
    are_wanted: bool,
    next_at: Instant,
    reached: u64,
}

impl Reports {
    fn new(are_wanted: bool, extent: &Extent) -> Self {
        Self { are_wanted, next_at: Instant::now() + PROGRESS_INTERVAL, reached: extent.reached }
    }

    fn report(&mut self, instructions: u64) {
        if self.are_wanted && Instant::now() >= self.next_at {
            self.next_at = Instant::now() + PROGRESS_INTERVAL;
            say(format_args!("twinvm: {} of {} instructions", HumanCount(instructions), HumanCount(self.reached)));
        }
    }
}

/// A console that nobody reads.
struct Silent;

impl ConsoleSink for Silent {
    fn write(&mut self, _bytes: &[u8]) {}
}
