//! The work that is measured, on a guest that is ready.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use terminal::interrupt;

use super::disk;
use super::vmm::Guest;
use crate::load::{Load, LoadOptions};

/// Requests under way at a time, where there is more than one.
const DEPTH: usize = 64;
/// Steps of the shell loop.
const LOOP_STEPS: u32 = 100_000;
/// How long one reply may take: a bound that only a hung guest meets.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);
/// The counter that clients increment.
const COUNTER: &str = "counter";

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// A shell loop
    Cpu,
    /// Redis, one request at a time and 64 under way
    Redis,
    /// Bytes through the network, both ways
    Net,
    /// fio on a disk of its own
    Disk,
}

/// What one run on one side showed; what was not measured is not there.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Run {
    /// From the start of the program to the guest's word that it is ready, in s.
    pub boot_s: f64,
    /// A shell loop, in s.
    pub cpu_loop_s: Option<f64>,
    /// Redis: increments a second, one at a time.
    pub redis_single_per_s: Option<f64>,
    /// Redis: increments a second, 64 under way.
    pub redis_pipelined_per_s: Option<f64>,
    /// Bytes a second through one connection into the guest.
    pub network_in_bytes_per_s: Option<f64>,
    /// Bytes a second through one connection out of the guest.
    pub network_out_bytes_per_s: Option<f64>,
    /// Disk: reads of 256 KiB a second, in order.
    pub disk_sequential_reads_per_s: Option<f64>,
    /// Disk: writes of 256 KiB a second, in order.
    pub disk_sequential_writes_per_s: Option<f64>,
    /// Disk: reads of 4 KiB a second, anywhere.
    pub disk_random_reads_per_s: Option<f64>,
    /// Disk: writes of 4 KiB a second, anywhere.
    pub disk_random_writes_per_s: Option<f64>,
    /// Disk: writes of 4 KiB a second, each followed by fsync(2).
    pub disk_synced_writes_per_s: Option<f64>,
}

/// Measures these parts; each load runs for `duration`.
pub fn measure(guest: &Guest, parts: &[Part], duration: Duration) -> Result<Run> {
    let mut run = Run { boot_s: guest.boot.as_secs_f64(), ..Run::default() };
    if parts.contains(&Part::Cpu) {
        run.cpu_loop_s = Some(cpu_loop(guest)?);
    }
    if parts.contains(&Part::Redis) {
        run.redis_single_per_s = Some(redis(guest, 1, duration)?);
        run.redis_pipelined_per_s = Some(redis(guest, DEPTH, duration)?);
    }
    if parts.contains(&Part::Net) {
        run.network_in_bytes_per_s = Some(guest.agent.send_bytes(duration)?);
        run.network_out_bytes_per_s = Some(guest.agent.take_bytes(duration)?);
    }
    if parts.contains(&Part::Disk) {
        let disk = |job: disk::Job| job.run(guest.agent, duration).with_context(|| format!("{job:?}")).map(Some);
        run.disk_sequential_reads_per_s = disk(disk::SEQUENTIAL_READ)?;
        run.disk_sequential_writes_per_s = disk(disk::SEQUENTIAL_WRITE)?;
        run.disk_random_reads_per_s = disk(disk::RANDOM_READ)?;
        run.disk_random_writes_per_s = disk(disk::RANDOM_WRITE)?;
        run.disk_synced_writes_per_s = disk(disk::SYNCED_WRITE)?;
    }
    Ok(run)
}

fn cpu_loop(guest: &Guest) -> Result<f64> {
    let script = format!("i=0; while [ $i -lt {LOOP_STEPS} ]; do i=$((i+1)); done; echo $i\n");
    let start = Instant::now();
    let answer = guest.agent.run(&script)?;
    let taken_s = start.elapsed().as_secs_f64();
    if answer.trim() != LOOP_STEPS.to_string() {
        bail!("the shell loop counted {answer:?}");
    }
    Ok(taken_s)
}

fn redis(guest: &Guest, depth: usize, duration: Duration) -> Result<f64> {
    let options = LoadOptions { depth, silence_max: REPLY_TIMEOUT };
    let load = Load::count(guest.redis, COUNTER, options).context("cannot reach Redis")?;
    let end = Instant::now() + duration;
    while Instant::now() < end {
        if interrupt::is_requested() {
            bail!("interrupted");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let (outcome, _) = load.finish();
    if let Some(broken) = outcome.broken {
        bail!("a load broke: {broken}");
    }
    if (outcome.lost, outcome.repeated) != (0, 0) {
        bail!("{} increments were lost, {} made twice", outcome.lost, outcome.repeated);
    }
    Ok(outcome.requests_per_s())
}
