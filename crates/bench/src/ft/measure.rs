//! One measurement of each side.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::figures::{Figures, LockstepFigures, PauseClass};
use serde::Serialize;
use spec::FtMode;

use super::report::ratio;
use super::work::{DEPTH, Work};
use crate::demo::Stage;
use crate::load::{Counter, Histogram, Load, Outcome, Workload};

/// Changed pages for each checkpoint at which pauses are measured.
const PAGES_WANTED: u64 = 1000;
/// Checkpoints with about so many pages that are enough for a 99th percentile.
const CHECKPOINTS_WANTED: u64 = 200;
/// The replica's quantiles are of the last few seconds: a load must have run for so long.
const SETTLED: Duration = Duration::from_secs(6);
/// Until then a load is repeated, twice as long, for more checkpoints.
const MEASURED_MAX: Duration = Duration::from_secs(20);
/// How long the guest has nothing to do, for the log of an idle guest.
const IDLE: Duration = Duration::from_secs(10);
/// How often the lag is looked at while a load runs.
const LAG_INTERVAL: Duration = Duration::from_millis(200);

/// What is measured without and with protection.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// The CPU-bound loop.
    pub cpu_s: f64,
    /// Requests per second, one at a time.
    pub single_requests_per_s: f64,
    /// Its latencies.
    #[serde(skip)]
    pub latencies: Histogram,
    /// Requests per second, 64 under way.
    pub pipelined_requests_per_s: f64,
    /// Requests per second that write to many keys, 64 under way.
    pub key_writes_per_s: f64,
    /// Resident memory of the primary's process after that.
    pub memory_bytes: u64,
}

/// The VM with protection.
#[derive(Clone, Debug, Serialize)]
pub struct Protected {
    #[serde(flatten)]
    pub side: Side,
    /// Resident memory of the secondary's process.
    pub secondary_memory_bytes: u64,
    /// What the primary said at the end of each load.
    pub figures: LoadFigures,
    /// What only this mode has.
    #[serde(flatten)]
    pub cost: Cost,
}

/// What protection costs beside what the guest and its clients feel.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Cost {
    /// By checkpoints.
    Mirror(Box<Checkpoints>),
    /// By executing the same.
    Lockstep(Execution),
}

/// What checkpoints cost.
#[derive(Clone, Debug, Serialize)]
pub struct Checkpoints {
    /// What the primary said while so many pages were written to that a checkpoint has about 1,000.
    pub page_writes: Figures,
    /// Pauses of these checkpoints.
    pub pauses: PauseClass,
    /// What was sent for the load that increments, 64 requests under way.
    pub pipelined_bytes: Bytes,
    /// What was sent for the load that writes to many keys.
    pub key_writes_bytes: Bytes,
}

/// What the log costs, and the secondary that executes.
#[derive(Clone, Debug, Serialize)]
pub struct Execution {
    /// The log of all loads with clients.
    pub log: Log,
    /// That of a guest that has nothing to do.
    pub idle: Log,
    /// Greatest lag that was seen while they ran, in ms.
    pub lag_ms_max: f64,
    /// How long the guest waited for the secondary meanwhile, in ms.
    pub throttled_ms: f64,
    /// Digests that were compared.
    pub digests: u64,
    /// Digests that differed.
    pub divergences: u64,
}

/// What the primary said at the end of each load.
#[derive(Clone, Debug, Serialize)]
pub struct LoadFigures {
    /// The CPU-bound loop.
    pub cpu: Figures,
    /// One request at a time.
    pub single: Figures,
    /// 64 under way.
    pub pipelined: Figures,
    /// Writes to many keys.
    pub key_writes: Figures,
}

/// Bytes of changed pages, and bytes sent for them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Bytes {
    /// Of changed pages.
    pub dirty: u64,
    /// Sent.
    pub sent: u64,
}

impl Bytes {
    fn between(before: &Figures, after: &Figures) -> Self {
        Self {
            dirty: after.dirty_bytes.saturating_sub(before.dirty_bytes),
            sent: after.sent_bytes.saturating_sub(before.sent_bytes),
        }
    }
}

/// A stretch of the log.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Log {
    /// Its bytes.
    pub bytes: u64,
    /// Those of the frames from outside that it holds.
    pub inbound_bytes: u64,
    /// Its segments.
    pub segments: u64,
    /// How long the guest took to write it, in s.
    pub seconds: f64,
}

impl Log {
    fn between(before: &LockstepFigures, after: &LockstepFigures, time: Duration) -> Result<Self> {
        let grown = |before: u64, after: u64| after.checked_sub(before).context("the log was begun anew meanwhile");
        Ok(Self {
            bytes: grown(before.log_bytes, after.log_bytes)?,
            inbound_bytes: grown(before.inbound_bytes, after.inbound_bytes)?,
            segments: grown(before.segments, after.segments)?,
            seconds: time.as_secs_f64(),
        })
    }

    /// Bandwidth, in kbit/s.
    pub fn kbit_per_s(&self) -> f64 {
        ratio(self.bytes as f64 * 8e-3, self.seconds)
    }

    /// Segments in a second.
    pub fn segments_per_s(&self) -> f64 {
        ratio(self.segments as f64, self.seconds)
    }
}

impl Side {
    /// Measures a VM that is not protected.
    pub fn measure(stage: &mut Stage, work: &mut Work) -> Result<Self> {
        Ok(common(stage, work)?.side)
    }
}

impl Protected {
    /// Measures a protected VM.
    pub fn measure(stage: &mut Stage, work: &mut Work, mode: FtMode) -> Result<Self> {
        let Common { side, figures, before, time, lag_ms_max } = common(stage, work)?;
        let secondary = stage.hosts.view().secondary().map(|secondary| secondary.pid).context("no secondary")?;
        let secondary_memory_bytes = resident_bytes(secondary)?;
        let cost = match mode {
            FtMode::Mirror => {
                let page_writes = page_writes(stage, work)?;
                Cost::Mirror(Box::new(Checkpoints {
                    pauses: pauses_at(&page_writes, PAGES_WANTED).context("no checkpoint has about 1,000 pages")?,
                    page_writes,
                    pipelined_bytes: Bytes::between(&figures.single, &figures.pipelined),
                    key_writes_bytes: Bytes::between(&figures.pipelined, &figures.key_writes),
                }))
            }
            FtMode::Lockstep => {
                let (start, after) = (Instant::now(), self::figures(stage)?);
                stage.pass(IDLE, None)?;
                let (idle_time, idle) = (start.elapsed(), self::figures(stage)?);
                let (loads_log, idle_log) = (log(&after)?, log(&idle)?);
                Cost::Lockstep(Execution {
                    log: Log::between(log(&before)?, loads_log, time)?,
                    idle: Log::between(loads_log, idle_log, idle_time)?,
                    lag_ms_max,
                    throttled_ms: after.throttled_ms - before.throttled_ms,
                    digests: idle_log.digests,
                    divergences: idle_log.divergences,
                })
            }
        };
        Ok(Self { side, secondary_memory_bytes, figures, cost })
    }
}

/// What the loads show that both sides have. Without protection the figures say nothing.
struct Common {
    side: Side,
    figures: LoadFigures,
    /// What the primary said before the loads with clients.
    before: Figures,
    /// How long these took.
    time: Duration,
    /// Greatest lag that was seen meanwhile, in ms.
    lag_ms_max: f64,
}

fn common(stage: &mut Stage, work: &mut Work) -> Result<Common> {
    let cpu = work.cpu()?;
    let cpu_figures = figures(stage)?;
    let start = Instant::now();
    let mut lag = Lag::default();
    let single = {
        let client = stage.count(1)?;
        lag.pass(stage, work.duration, Some(&client))?;
        good(client)?
    };
    let single_figures = figures(stage)?;
    let pipelined = {
        let client = stage.count(DEPTH)?;
        lag.pass(stage, work.duration, Some(&client))?;
        good(client)?
    };
    let pipelined_figures = figures(stage)?;
    let key_writes = {
        let (connection, options) = work.connect(stage, DEPTH)?;
        let load = Load::start(connection, work.key_writes(), options)?;
        lag.pass(stage, work.duration, None)?;
        good(load)?
    };
    let (time, key_writes_figures) = (start.elapsed(), figures(stage)?);
    let primary = stage.hosts.view().primary().map(|primary| primary.pid).context("no primary")?;
    let side = Side {
        cpu_s: cpu.as_secs_f64(),
        single_requests_per_s: single.requests_per_s(),
        latencies: single.latencies,
        pipelined_requests_per_s: pipelined.requests_per_s(),
        key_writes_per_s: key_writes.requests_per_s(),
        memory_bytes: resident_bytes(primary)?,
    };
    let figures = LoadFigures {
        cpu: cpu_figures.clone(),
        single: single_figures,
        pipelined: pipelined_figures,
        key_writes: key_writes_figures,
    };
    Ok(Common { side, figures, before: cpu_figures, time, lag_ms_max: lag.ms_max })
}

/// The greatest lag that was seen.
#[derive(Default)]
struct Lag {
    ms_max: f64,
}

impl Lag {
    /// Lets a load run, and looks at the lag now and then.
    fn pass(&mut self, stage: &mut Stage, duration: Duration, client: Option<&Load<Counter>>) -> Result<()> {
        let end = Instant::now() + duration;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            stage.pass(left.min(LAG_INTERVAL), client)?;
            let log = stage.hosts.view().primary().and_then(|primary| primary.figures.lockstep);
            self.ms_max = self.ms_max.max(log.unwrap_or_default().lag_ms);
        }
    }
}

fn log(figures: &Figures) -> Result<&LockstepFigures> {
    figures.lockstep.as_ref().context("the secondary does not execute any more")
}

/// Has about 1,000 pages changed for each checkpoint; what the primary said then.
fn page_writes(stage: &mut Stage, work: &Work) -> Result<Figures> {
    let mut duration = work.duration.max(SETTLED);
    loop {
        let figures = write_pages(stage, work, duration)?;
        let seen = pauses_at(&figures, PAGES_WANTED).map_or(0, |class| class.checkpoints);
        if seen >= CHECKPOINTS_WANTED || duration > MEASURED_MAX {
            return Ok(figures);
        }
        duration *= 2;
    }
}

/// The pauses of checkpoints with about so many pages, if there were any.
fn pauses_at(figures: &Figures, pages: u64) -> Option<PauseClass> {
    let is_it = |class: &&PauseClass| class.pages_min <= pages && class.pages_max.is_none_or(|max| pages <= max);
    let class = figures.pauses_by_pages.iter().find(is_it);
    class.filter(|class| class.checkpoints > 0).copied()
}

fn write_pages(stage: &mut Stage, work: &Work, duration: Duration) -> Result<Figures> {
    let (connection, options) = work.connect(stage, 1)?;
    let load = Load::start(connection, work.page_writes(), options)?;
    stage.pass(duration, None)?;
    // While the load still runs.
    let figures = figures(stage)?;
    good(load)?;
    Ok(figures)
}

/// A load that ended as it should.
fn good(load: Load<impl Workload>) -> Result<Outcome> {
    let (outcome, _) = load.finish();
    match &outcome.broken {
        Some(broken) => Err(anyhow::anyhow!("a load broke: {broken}")),
        None if outcome.lost + outcome.repeated > 0 => {
            Err(anyhow::anyhow!("{} increments were lost, {} made twice", outcome.lost, outcome.repeated))
        }
        None => Ok(outcome),
    }
}

fn figures(stage: &Stage) -> Result<Figures> {
    let view = stage.hosts.view();
    Ok(view.primary().context("the primary does not answer")?.figures.clone())
}

/// Resident memory of a process: VmRSS of proc(5).
fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("a replica's process is gone")?;
    parse_resident(&status).context("/proc names no VmRSS")
}

fn parse_resident(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t  1234 kB\nRssAnon:\t1 kB\n"), Some(1234 << 10));
        assert_eq!(parse_resident("Name:\tx\n"), None);
        assert!(resident_bytes(std::process::id()).unwrap() > 0);
    }
}
