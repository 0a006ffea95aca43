//! One client with one connection, which increments a counter as fast as it can and never reconnects.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::HUNG;

/// The client's thread.
pub struct Client {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    /// What has ended it.
    error: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

/// What the client saw.
#[derive(Debug)]
pub struct Outcome {
    /// Increments that were acknowledged.
    pub acknowledged: u64,
    /// What ended it before its time.
    pub error: Option<String>,
}

/// Waits until the service answers, on connections that are given up again.
pub fn wait_for_service(address: SocketAddr) {
    let deadline = Instant::now() + HUNG;
    while Instant::now() < deadline {
        if let Ok(stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut answer = String::new();
            if (&stream).write_all(b"PING\r\n").is_ok()
                && BufReader::new(&stream).read_line(&mut answer).is_ok()
                && answer == "+PONG\r\n"
            {
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no answer from the guest");
}

impl Client {
    pub fn start(address: SocketAddr) -> Self {
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let error = Arc::<Mutex<Option<String>>>::default();
        let thread = std::thread::spawn({
            let (stop, acknowledged, error) = (stop.clone(), acknowledged.clone(), error.clone());
            move || *error.lock().unwrap() = count(address, &stop, &acknowledged).err()
        });
        Self { stop, acknowledged, error, thread: Some(thread) }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until the client has got `more` replies; what ended it fails the test here, where the replicas still are as they were.
    pub fn wait_for_progress(&self, more: u64) {
        let (from, deadline) = (self.acknowledged(), Instant::now() + HUNG);
        while self.acknowledged() < from + more {
            let error = self.error.lock().unwrap();
            assert!(error.is_none(), "{error:?} after {} increments", self.acknowledged());
            drop(error);
            assert!(Instant::now() < deadline, "the client gets no replies");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn stop(mut self) -> Outcome {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        Outcome { acknowledged: self.acknowledged(), error: self.error.lock().unwrap().take() }
    }
}

fn count(address: SocketAddr, stop: &AtomicBool, acknowledged: &AtomicU64) -> Result<(), String> {
    let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(HUNG)).unwrap();
    let mut replies = BufReader::new(&stream);
    let mut line = String::new();
    while !stop.load(Ordering::Acquire) {
        (&stream).write_all(b"INCR counter\r\n").map_err(|error| format!("broken: {error}"))?;
        line.clear();
        replies.read_line(&mut line).map_err(|error| format!("broken: {error}"))?;
        let expected = acknowledged.load(Ordering::Acquire) + 1;
        if line != format!(":{expected}\r\n") {
            return Err(format!("expected {expected}, the guest says {line:?}"));
        }
        acknowledged.store(expected, Ordering::Release);
    }
    Ok(())
}

/// A client that asks the guest for its time, again and again, over one connection.
pub struct Clock {
    stop: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
    thread: JoinHandle<ClockOutcome>,
}

/// What the clock showed.
#[derive(Debug)]
pub struct ClockOutcome {
    /// From the first reply to the last, by the guest's clock.
    pub inside: Duration,
    /// The same by the client's.
    pub outside: Duration,
    /// The clock went back, or the connection broke.
    pub error: Option<String>,
}

impl Clock {
    pub fn start(address: SocketAddr) -> Self {
        let (stop, replies) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::spawn({
            let (stop, replies) = (stop.clone(), replies.clone());
            move || {
                let mut outcome = ClockOutcome { inside: Duration::ZERO, outside: Duration::ZERO, error: None };
                outcome.error = watch(address, &stop, &replies, &mut outcome).err();
                outcome
            }
        });
        Self { stop, replies, thread }
    }

    pub fn wait_for_progress(&self, more: u64) {
        let (from, deadline) = (self.replies.load(Ordering::Acquire), Instant::now() + HUNG);
        while self.replies.load(Ordering::Acquire) < from + more && !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "the client gets no replies");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn stop(self) -> ClockOutcome {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

fn watch(
    address: SocketAddr,
    stop: &AtomicBool,
    replies_seen: &AtomicU64,
    outcome: &mut ClockOutcome,
) -> Result<(), String> {
    let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(HUNG)).unwrap();
    let mut replies = BufReader::new(&stream);
    let mut first = None;
    let mut before = Duration::ZERO;
    while !stop.load(Ordering::Acquire) {
        (&stream).write_all(b"TIME\r\n").map_err(|error| format!("broken: {error}"))?;
        // An array of two bulk strings: seconds and microseconds.
        let mut lines = [const { String::new() }; 5];
        for line in &mut lines {
            replies.read_line(line).map_err(|error| format!("broken: {error}"))?;
        }
        let number = |at: usize| lines[at].trim().parse::<u64>().map_err(|error| format!("{lines:?}: {error}"));
        let now = Duration::from_secs(number(2)?) + Duration::from_micros(number(4)?);
        if now < before {
            return Err(format!("the guest's clock went back by {:?}", before - now));
        }
        before = now;
        let (start, inside) = *first.get_or_insert((Instant::now(), now));
        (outcome.inside, outcome.outside) = (now - inside, start.elapsed());
        replies_seen.fetch_add(1, Ordering::AcqRel);
    }
    Ok(())
}
