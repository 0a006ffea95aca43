//! The guest work that is measured.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::demo::Stage;
use crate::load::{Connection, KeyWrites, LoadOptions, PageWrites, Reply};

/// How long one reply may take: a bound that only a hung guest meets.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);
/// Pages that one request writes to. Beside them it changes about a hundred of the guest's kernel and of Redis.
const PAGES: u64 = 900;
/// Steps of the loop that the calibration begins with.
const CALIBRATION_STEPS: u64 = 50_000;
/// The calibration looks for a time from which on it scales.
const CALIBRATION_MIN: Duration = Duration::from_millis(300);
/// Keys of the load that writes to many.
const KEYS: u64 = 10_000;
/// Requests under way at a time, where there is more than one.
pub const DEPTH: usize = 64;

/// Work in the guest that does not touch memory to speak of.
const CPU_SCRIPT: &[u8] =
    b"local x = 0 for i = 1, tonumber(ARGV[1]) do x = (x * 31 + i) % 1000003 end return tostring(x)";

/// The guest, ready to work.
pub struct Work {
    control: Connection,
    /// How long each load runs.
    pub duration: Duration,
    cpu_steps: u64,
}

impl Work {
    /// Makes the guest's Redis ready, and finds out how many steps its processor does in half of `duration`.
    pub fn prepare(stage: &Stage, duration: Duration) -> Result<Self> {
        let mut control = Connection::open(stage.hosts.redis(), REPLY_TIMEOUT).context("cannot reach Redis")?;
        // A snapshot of Redis' own forks the server, at moments of its choice.
        control.ask(&[b"CONFIG", b"SET", b"save", b""], REPLY_TIMEOUT)?;
        control.send(&PageWrites::prepare(PAGES))?;
        control.receive(REPLY_TIMEOUT)?.context("Redis does not answer")?;
        let mut work = Self { control, duration, cpu_steps: CALIBRATION_STEPS };
        let taken = loop {
            let taken = work.cpu()?;
            if taken >= CALIBRATION_MIN {
                break taken;
            }
            work.cpu_steps = work.cpu_steps.saturating_mul(2);
        };
        let scale = duration.as_secs_f64() / 2.0 / taken.as_secs_f64();
        work.cpu_steps = ((work.cpu_steps as f64 * scale) as u64).max(CALIBRATION_STEPS);
        Ok(work)
    }

    /// Steps of the CPU-bound loop.
    pub fn cpu_steps(&self) -> u64 {
        self.cpu_steps
    }

    /// How long the guest takes for the CPU-bound loop, as seen from outside.
    pub fn cpu(&mut self) -> Result<Duration> {
        let steps = self.cpu_steps.to_string();
        let start = Instant::now();
        match self.control.ask(&[b"EVAL", CPU_SCRIPT, b"0", steps.as_bytes()], REPLY_TIMEOUT)? {
            Reply::Text(_) => Ok(start.elapsed()),
            other => bail!("the CPU-bound loop returned {other:?}"),
        }
    }

    /// A new connection for a load, and how to use it.
    pub fn connect(&self, stage: &Stage, depth: usize) -> Result<(Connection, LoadOptions)> {
        let connection = Connection::open(stage.hosts.redis(), REPLY_TIMEOUT).context("cannot reach Redis")?;
        Ok((connection, LoadOptions { depth, silence_max: REPLY_TIMEOUT }))
    }

    /// Writes to many keys.
    pub fn key_writes(&self) -> KeyWrites {
        KeyWrites::new(KEYS)
    }

    /// Writes to so many pages with each request that a checkpoint has about 1,000.
    pub fn page_writes(&self) -> PageWrites {
        PageWrites::new(PAGES)
    }
}
