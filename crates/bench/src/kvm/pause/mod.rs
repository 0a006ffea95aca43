//! How long a guest stands still for its checkpoints.

mod pair;
mod writer;

use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use replication::driver::{Figures, Quantiles};
use serde::Serialize;
use terminal::output::{is_stdout, print_line, say, table, write_json};

use self::writer::Pace;
use crate::report::host_cpu;

/// How the guest spreads its writes over an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Spread {
    /// Each page once in an epoch, at an even pace.
    Even,
    /// All pages all the time, as fast as the processor can.
    Hot,
}

struct Case {
    pages: u64,
    epoch: Duration,
    spread: Spread,
}

const CASES: [Case; 4] = [
    Case { pages: 1_000, epoch: Duration::from_millis(25), spread: Spread::Even },
    Case { pages: 10_000, epoch: Duration::from_millis(200), spread: Spread::Even },
    Case { pages: 1_000, epoch: Duration::from_millis(25), spread: Spread::Hot },
    Case { pages: 10_000, epoch: Duration::from_millis(200), spread: Spread::Hot },
];

/// For how long the guest's speed is measured.
const CALIBRATION: Duration = Duration::from_millis(300);
const CALIBRATION_PACE: Pace = Pace { pages: 16, waits: 10_000 };

/// Median and 99th percentile, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Micros {
    p50: u64,
    p99: u64,
}

impl From<Quantiles> for Micros {
    fn from(Quantiles { p50, p99, .. }: Quantiles) -> Self {
        Self { p50, p99 }
    }
}

/// What one case came to.
#[derive(Debug, Serialize)]
struct Row {
    /// Pages that the guest writes in turn.
    pages: u64,
    spread: Spread,
    /// Pages that a checkpoint had, median.
    dirty_pages: u64,
    checkpoints: u64,
    /// From when the vCPUs are told to stand still until they may go on.
    pause_us: Micros,
    /// Of it: until they stand still, finding dirty pages, copying those that were not copied before, and saving the VM's state.
    stop_us: Micros,
    tracking_us: Micros,
    copy_us: Micros,
    state_us: Micros,
}

/// The result of `twinvm bench kvm --pause`.
#[derive(Debug, Serialize)]
struct Report {
    cases: Vec<Row>,
    seconds_per_case: u64,
    host_cpu: Option<String>,
    host_cpus: usize,
    twinvm_version: &'static str,
}

/// Measures, prints, and writes the result to `json`.
pub fn run(time: Duration, json: Option<&Path>) -> Result<ExitCode> {
    let waits_per_s = calibrate()?;
    let mut cases = Vec::new();
    for case in &CASES {
        say(format_args!("{} pages, {:?}", case.pages, case.spread));
        cases.push(measure(case, waits_per_s, time)?);
    }
    let report = Report {
        cases,
        seconds_per_case: time.as_secs(),
        host_cpu: host_cpu(),
        host_cpus: thread::available_parallelism().map_or(0, usize::from),
        twinvm_version: env!("CARGO_PKG_VERSION"),
    };
    if !is_stdout(json) {
        report.print()?;
    }
    if let Some(path) = json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How many rounds the guest waits in a second.
fn calibrate() -> Result<f64> {
    let mut vm = writer::start(CALIBRATION_PACE)?;
    let (control, ram) = (vm.control(), vm.platform().ram().clone());
    let begin = Instant::now();
    let elapsed = thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        scope.spawn(move || {
            if is_done.recv_timeout(CALIBRATION) == Err(RecvTimeoutError::Timeout) {
                control.pause();
            }
        });
        let end = vm.run(None);
        drop(done);
        end.map(|_| begin.elapsed())
    })?;
    let pages = writer::sweeps(&ram)? * CALIBRATION_PACE.pages;
    ensure!(pages > 0, "the guest did not write its pages: user mode does not work on this host's KVM");
    Ok((pages * CALIBRATION_PACE.waits) as f64 / elapsed.as_secs_f64())
}

fn measure(case: &Case, waits_per_s: f64, time: Duration) -> Result<Row> {
    writer::check(case.pages)?;
    let waits = match case.spread {
        Spread::Even => (waits_per_s * case.epoch.as_secs_f64() / case.pages as f64) as u64,
        Spread::Hot => 1,
    };
    let vm = writer::start(Pace { pages: case.pages, waits })?;
    let Figures { pause_us, pause_parts, dirty_pages, pauses_by_pages, .. } = pair::protect(vm, case.epoch, time)?;
    Ok(Row {
        pages: case.pages,
        spread: case.spread,
        dirty_pages: dirty_pages.p50,
        checkpoints: pauses_by_pages.iter().map(|class| class.checkpoints).sum(),
        pause_us: pause_us.into(),
        stop_us: pause_parts.stop_us.into(),
        tracking_us: pause_parts.tracking_us.into(),
        copy_us: pause_parts.pages_us.into(),
        state_us: pause_parts.state_us.into(),
    })
}

impl Report {
    fn print(&self) -> Result<()> {
        let mut rows =
            table(&["pages", "spread", "dirty", "checkpoints", "pause p50/p99", "stop", "tracking", "copy", "state"]);
        for row in &self.cases {
            let both = |Micros { p50, p99 }: Micros| format!("{p50}/{p99} us");
            rows.add_row([
                row.pages.to_string(),
                format!("{:?}", row.spread).to_lowercase(),
                row.dirty_pages.to_string(),
                row.checkpoints.to_string(),
                both(row.pause_us),
                both(row.stop_us),
                both(row.tracking_us),
                both(row.copy_us),
                both(row.state_us),
            ]);
        }
        print_line(&rows.to_string())
    }
}
