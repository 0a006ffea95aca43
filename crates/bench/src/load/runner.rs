//! A load: a thread that keeps one connection busy.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use machine::bus::lock;

use super::connection::{Broken, Connection};
use super::gaps::Gaps;
use super::histogram::Histogram;
use super::rate::Rate;
use super::workload::{Check, Counter, Workload, compare};

/// How long the thread waits for replies before it looks whether it should stop.
const POLL: Duration = Duration::from_millis(50);

/// How a load uses its connection.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Requests under way at a time, at least 1.
    pub depth: usize,
    /// No reply for so long counts as a broken connection.
    pub silence_max: Duration,
}

/// What a load has seen so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Requests that were answered.
    pub acknowledged: u64,
    /// Replies in the last second.
    pub requests_per_s: f64,
    /// Acknowledged changes that turned out to be undone.
    pub lost: u64,
    /// Changes that nobody asked for.
    pub repeated: u64,
    /// Why the load has ended, if it has.
    pub broken: Option<String>,
}

/// What a load has seen in all.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests that were answered.
    pub acknowledged: u64,
    /// Requests that were sent but never answered: what became of them is not known. None unless the connection broke.
    pub unanswered: u64,
    /// Acknowledged changes that turned out to be undone.
    pub lost: u64,
    /// Changes that nobody asked for.
    pub repeated: u64,
    /// Why the connection ended before its time.
    pub broken: Option<String>,
    /// From the first request to the last reply.
    pub duration: Duration,
    /// From a request to its reply.
    pub latencies: Histogram,
}

impl Outcome {
    /// Replies per second over the whole time.
    pub fn requests_per_s(&self) -> f64 {
        let duration_s = self.duration.as_secs_f64();
        if duration_s > 0.0 { self.acknowledged as f64 / duration_s } else { 0.0 }
    }
}

struct Seen {
    start: Instant,
    last_reply: Instant,
    gaps: Gaps,
    rate: Rate,
    /// Since the last [`Load::take_latencies`].
    recent: Histogram,
    /// Before it.
    earlier: Histogram,
    acknowledged: u64,
    lost: u64,
    repeated: u64,
    unanswered: u64,
    broken: Option<String>,
}

/// A running load. Dropping it closes its connection.
pub struct Load<W> {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<W>>,
}

impl<W: Workload> Load<W> {
    /// Starts a thread that uses the connection.
    pub fn start(connection: Connection, workload: W, options: LoadOptions) -> std::io::Result<Self> {
        let now = Instant::now();
        let seen = Arc::new(Mutex::new(Seen {
            start: now,
            last_reply: now,
            gaps: Gaps::new(now),
            rate: Rate::default(),
            recent: Histogram::default(),
            earlier: Histogram::default(),
            acknowledged: 0,
            lost: 0,
            repeated: 0,
            unanswered: 0,
            broken: None,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let runner = Runner {
            connection,
            workload,
            options,
            seen: seen.clone(),
            stop: stop.clone(),
            under_way: VecDeque::new(),
            requests: Vec::new(),
        };
        let thread = thread::Builder::new().name("load".to_owned()).spawn(move || runner.run())?;
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// What it has seen so far.
    pub fn snapshot(&self) -> Snapshot {
        let mut seen = lock(&self.seen);
        let now = seen.start.elapsed();
        Snapshot {
            acknowledged: seen.acknowledged,
            requests_per_s: seen.rate.per_s(now),
            lost: seen.lost,
            repeated: seen.repeated,
            broken: seen.broken.clone(),
        }
    }

    /// The longest time between two replies since the last call, including the time since the last reply.
    pub fn take_longest_gap(&self) -> Duration {
        lock(&self.seen).gaps.take_longest(Instant::now())
    }

    /// The latencies since the last call.
    pub fn take_latencies(&self) -> Histogram {
        let mut seen = lock(&self.seen);
        let recent = std::mem::take(&mut seen.recent);
        seen.earlier.merge(&recent);
        recent
    }

    /// Sends nothing more, waits for the replies that are due, and closes the connection. Also returns the workload.
    pub fn finish(mut self) -> (Outcome, Option<W>) {
        self.stop.store(true, Ordering::Release);
        let workload = self.thread.take().and_then(|thread| thread.join().ok());
        let mut seen = lock(&self.seen);
        if workload.is_none() {
            seen.broken.get_or_insert_with(|| "the client panicked".to_owned());
        }
        let mut latencies = std::mem::take(&mut seen.earlier);
        latencies.merge(&seen.recent);
        let outcome = Outcome {
            acknowledged: seen.acknowledged,
            unanswered: seen.unanswered,
            lost: seen.lost,
            repeated: seen.repeated,
            broken: seen.broken.clone(),
            duration: seen.last_reply.saturating_duration_since(seen.start),
            latencies,
        };
        drop(seen);
        (outcome, workload)
    }
}

impl<W> Drop for Load<W> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The thread looks soon, and is not waited for: the replies that are due may never come.
    }
}

impl Load<Counter> {
    /// Connects to a Redis, and increments the counter under `key` from what it is now.
    pub fn count(address: SocketAddr, key: &str, options: LoadOptions) -> Result<Self, Broken> {
        let mut connection = Connection::open(address, options.silence_max)?;
        let start = Counter::read(&mut connection, key, options.silence_max)?;
        Ok(Self::start(connection, Counter::new(key, start), options)?)
    }

    /// Finishes, and compares what the counter holds in the end, asked for by another connection, with what was acknowledged.
    pub fn finish_and_audit(self, address: SocketAddr, key: &str, timeout: Duration) -> Result<Outcome, Broken> {
        let (mut outcome, counter) = self.finish();
        let Some(counter) = counter else { return Ok(outcome) };
        let value = Counter::read(&mut Connection::open(address, timeout)?, key, timeout)?;
        match compare(value, counter.last()) {
            Check::Right => {}
            Check::Lost(lost) => outcome.lost += lost,
            // Unanswered requests may have been carried out.
            Check::Repeated(more) => outcome.repeated += more.saturating_sub(outcome.unanswered),
        }
        Ok(outcome)
    }
}

struct Runner<W> {
    connection: Connection,
    workload: W,
    options: LoadOptions,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    /// When each request that has no reply was sent.
    under_way: VecDeque<Instant>,
    requests: Vec<u8>,
}

impl<W: Workload> Runner<W> {
    fn run(mut self) -> W {
        if let Err(broken) = self.exchange() {
            let mut seen = lock(&self.seen);
            seen.unanswered = self.under_way.len() as u64;
            seen.broken = Some(broken.to_string());
        }
        self.workload
    }

    fn exchange(&mut self) -> Result<(), Broken> {
        let mut last_progress = Instant::now();
        loop {
            if !self.stop.load(Ordering::Acquire) {
                self.fill()?;
            } else if self.under_way.is_empty() {
                return Ok(());
            }
            match self.connection.receive(POLL)? {
                Some(reply) => {
                    last_progress = Instant::now();
                    self.take(reply, last_progress)?;
                    while let Some(reply) = self.connection.received_reply()? {
                        self.take(reply, last_progress)?;
                    }
                }
                None if last_progress.elapsed() > self.options.silence_max => {
                    return Err(Broken::Silent(last_progress.elapsed()));
                }
                None => {}
            }
        }
    }

    /// Sends as many requests as may be under way.
    fn fill(&mut self) -> Result<(), Broken> {
        self.requests.clear();
        let more = self.options.depth.max(1).saturating_sub(self.under_way.len());
        for _ in 0..more {
            self.workload.request(&mut self.requests);
        }
        let now = Instant::now();
        self.under_way.extend(std::iter::repeat_n(now, more));
        self.connection.send(&self.requests)
    }

    fn take(&mut self, reply: super::Reply, now: Instant) -> Result<(), Broken> {
        let sent = self.under_way.pop_front();
        let sent = sent.ok_or_else(|| Broken::Malformed("a reply that nothing was asked for".to_owned()))?;
        let check = self.workload.check(reply)?;
        let mut seen = lock(&self.seen);
        let since_start = now.saturating_duration_since(seen.start);
        seen.acknowledged += 1;
        seen.last_reply = now;
        seen.gaps.reply(now);
        seen.rate.add(since_start, 1);
        seen.recent.add(now.saturating_duration_since(sent));
        match check {
            Check::Right => {}
            Check::Lost(lost) => seen.lost += lost,
            Check::Repeated(repeated) => seen.repeated += repeated,
        }
        Ok(())
    }
}
