//! The guest's console: what it wrote last, the clients that watch it, and its log.

mod history;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use machine::control::Control;
use machine::devices::serial::ConsoleSink;
use machine::devices::virtio::rng::{EntropySource, OsEntropy};
use replication::driver::{ConsoleHistory, ConsoleInput, ConsolePiece, ConsolePlace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::history::History;
use super::config::{ReplicaConfig, console_log};
use super::control::{ConsoleStart, ConsoleVisit};
use crate::foreground::output::{Output, OutputSink};
use crate::foreground::raw_terminal::type_all;
use crate::log_file::BoundedFile;

/// How long the console must have been silent, after the end of what a client types, until this is taken for the end of what was asked there.
const SILENCE: Duration = Duration::from_secs(1);
/// A console that is not silent is shown for so long after the end of what a client types and the guest has taken.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Longest piece of a line that waits for its end before it is logged, in bytes.
const LINE_BYTES_MAX: usize = 256;
/// Bytes that are shown to a client at a time.
const SHOWN_BYTES: usize = 4096;
/// Clients whose input is counted, those that have typed last.
const TYPISTS_MAX: usize = 64;
/// How often a client that types no more is looked after.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

struct Shared {
    inner: Mutex<Inner>,
    /// There is more to show, or a client is to be shown no more.
    changed: Condvar,
}

struct Inner {
    history: History,
    written_at: Instant,
    /// Clients that watch.
    clients: usize,
    control: Option<Arc<Control>>,
    log: Option<Log>,
    /// How many bytes of each client's were taken, by the client's own number; the last to have typed comes last.
    taken: Vec<(u64, u64)>,
    /// The guest is being handed over as it stands: what is typed now waits with who types it.
    holds_input: bool,
    /// What was typed where the guest ran before, and waits for it.
    waiting: Vec<u8>,
}

/// The log of the console, once this replica runs the guest.
struct Log {
    /// What is not handed over yet: a guest writes one byte at a time, and the thread that writes to the file is woken for whole lines.
    line: Vec<u8>,
    sink: OutputSink,
    /// Waits, when it is dropped, until the log is written.
    _output: Output,
}

impl Log {
    /// Hands over what has become of whole lines, or has become long.
    fn write(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        if self.line.contains(&b'\n') || self.line.len() >= LINE_BYTES_MAX {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        ConsoleSink::write(&mut self.sink, &self.line);
        self.line.clear();
    }
}

/// The console of one VM. Clones are the same console.
///
/// It serves the administrator and is not gated: after a takeover, lines that the lost primary wrote since its last checkpoint are written
/// again.
///
/// What the guest writes is kept, under a lock that nobody holds for longer than it takes to copy some of it. Each client has a thread that passes on what
/// follows after what it has, so the guest waits for none of them.
#[derive(Clone)]
pub struct Console(Arc<Shared>);

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Console").field(&self.inner().history.end()).finish()
    }
}

impl Console {
    /// A console on which nothing was written yet, of this run of the VM.
    pub fn new(run: u64) -> Self {
        let inner = Inner {
            history: History::new(run),
            written_at: Instant::now(),
            clients: 0,
            control: None,
            log: None,
            taken: Vec::new(),
            holds_input: false,
            waiting: Vec::new(),
        };
        Self(Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new() }))
    }

    /// The same, of a run that has begun now.
    ///
    /// # Errors
    /// When the system gives no random number for it.
    pub fn of_new_run() -> io::Result<Self> {
        let mut run = [0; size_of::<u64>()];
        OsEntropy::open()?.fill(&mut run)?;
        Ok(Self::new(u64::from_le_bytes(run)))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where what clients type goes from now on.
    pub fn attach(&self, control: Arc<Control>) {
        let mut inner = self.inner();
        control.type_on_console(&std::mem::take(&mut inner.waiting));
        inner.control = Some(control);
    }

    /// Begins the log of a replica that runs the guest now.
    pub fn log(&self, config: &ReplicaConfig) {
        let title = format!("VM {} runs on host {}", config.vm, config.host);
        self.log_to(&console_log(&config.folder), &title);
    }

    /// Writes what the guest writes to a file as well, if that is not done yet, after what is kept of what it has written and `title`. Nothing
    /// waits for the file, and what it has no room for is not there.
    fn log_to(&self, path: &Path, title: &str) {
        let mut inner = self.inner();
        if inner.log.is_some() {
            return;
        }
        let note = |bytes| format!("\ntwinvm: {bytes} bytes were left out here\n");
        match Output::start(BoundedFile::new(path), note) {
            Ok(output) => {
                let kept = inner.history.after(ConsolePlace::default(), usize::MAX);
                let mut log = Log { line: Vec::new(), sink: output.sink(), _output: output };
                log.write(format!("\ntwinvm: {title}\n").as_bytes());
                log.write(&kept.bytes);
                inner.log = Some(log);
            }
            Err(error) => tracing::warn!(%error, "the console is not logged"),
        }
    }

    /// Ends the log, and waits until it is written, unless nothing takes it.
    pub fn end_log(&self) {
        let log = self.inner().log.take();
        if let Some(mut log) = log {
            log.hand_over();
            drop(log);
        }
    }

    /// Shows the console to a client and takes what it types, until it leaves, or it types no more and the console is silent. First it is told
    /// where it is, as a line of JSON.
    pub fn serve(&self, mut client: UnixStream, visit: ConsoleVisit) -> io::Result<()> {
        client.set_nonblocking(false)?;
        let mut inner = self.inner();
        let from = inner.history.after(visit.seen, 0).from;
        let taken = visit.typist.and_then(|typist| inner.taken_of(typist).copied());
        if taken.is_none() {
            // Who has typed something that has not arrived yet when the guest is handed over is known there, too.
            visit.typist.iter().for_each(|typist| inner.add_typist(*typist));
        }
        drop(inner);
        let mut first = serde_json::to_vec(&ConsoleStart { from, taken })?;
        first.push(b'\n');
        client.write_all(&first)?;
        let until = OnceLock::new();
        self.inner().clients += 1;
        let served = thread::scope(|scope| {
            let showing = || {
                // One that has gone has ended the connection itself.
                let _ = self.show(&client, from, &until);
                let _ = client.shutdown(Shutdown::Both);
            };
            thread::Builder::new().name("console".to_owned()).spawn_scoped(scope, showing)?;
            let taken = self.take_from(&client, visit.typist);
            let _ = until.set(self.inner().history.end());
            self.0.changed.notify_all();
            taken
        });
        self.inner().clients -= 1;
        served
    }

    /// Passes on to a client what follows after `place`, until there is an end to that and it has all up to there, it has gone, or it is behind by more
    /// than is kept: then it can come again.
    fn show(&self, mut client: &UnixStream, mut place: ConsolePlace, until: &OnceLock<ConsolePlace>) -> io::Result<()> {
        loop {
            let mut inner = self.inner();
            let piece = loop {
                let piece = inner.history.after(place, SHOWN_BYTES);
                if piece.from != place || until.get().is_some_and(|until| place.bytes >= until.bytes) {
                    return Ok(());
                }
                if !piece.bytes.is_empty() {
                    break piece;
                }
                inner = self.0.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
            };
            drop(inner);
            client.write_all(&piece.bytes)?;
            place = piece.end();
        }
    }

    /// Takes what a client types until it leaves, or it types no more and the guest has answered.
    fn take_from(&self, mut client: &UnixStream, typist: Option<u64>) -> io::Result<()> {
        let mut typed = [0; 1024];
        loop {
            let len = client.read(&mut typed)?;
            match typed.get(..len) {
                None | Some([]) => break,
                // What the guest has no room for waits, and the client with it, as long as there is one.
                Some(typed) => type_all(typed, |bytes| self.type_in(bytes, typist), || !has_gone(client)),
            }
        }
        self.wait_for_answer(client);
        Ok(())
    }

    /// Hands typed bytes to the guest; how many it had room for. Counted as they are taken: a hand-over comes before or after.
    fn type_in(&self, bytes: &[u8], typist: Option<u64>) -> usize {
        let mut inner = self.inner();
        if inner.holds_input {
            return 0;
        }
        // A secondary runs no guest that could read.
        let taken = inner.control.as_ref().map_or(bytes.len(), |control| control.type_on_console(bytes));
        if let Some(count) = typist.and_then(|typist| inner.taken_of(typist)) {
            *count = count.saturating_add(taken as u64);
        }
        taken
    }

    /// Waits until the guest has taken all that was typed and is silent, or for [`ANSWER_MAX`], or until the client has gone.
    fn wait_for_answer(&self, client: &UnixStream) {
        let mut taken_at = Instant::now();
        while !has_gone(client) && taken_at.elapsed() < ANSWER_MAX {
            let inner = self.inner();
            let written_at = inner.written_at;
            let waits = inner.control.as_ref().is_some_and(|control| control.has_console_input());
            drop(inner);
            if waits {
                taken_at = Instant::now();
            } else if written_at.max(taken_at).elapsed() >= SILENCE {
                return;
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// Whether a client has closed its connection, or was cut off.
fn has_gone(client: &UnixStream) -> bool {
    let mut polled = [PollFd::new(client, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_err() || polled.iter().any(|fd| !fd.revents().is_empty())
}

impl Inner {
    /// How many bytes of a client's were taken, if it is known, as that of who has typed last.
    fn taken_of(&mut self, typist: u64) -> Option<&mut u64> {
        let at = self.taken.iter().position(|(known, _)| *known == typist)?;
        let last = self.taken.remove(at);
        self.taken.push(last);
        self.taken.last_mut().map(|(_, count)| count)
    }

    /// Counts what a client types from now on. The one that has typed nothing for the longest is forgotten where there are many.
    fn add_typist(&mut self, typist: u64) {
        if self.taken.len() >= TYPISTS_MAX {
            self.taken.remove(0);
        }
        self.taken.push((typist, 0));
    }

    /// Notes what was written, and logs it.
    fn note(&mut self, bytes: &[u8]) {
        self.written_at = Instant::now();
        if let Some(log) = &mut self.log {
            log.write(bytes);
        }
    }
}

impl ConsoleSink for Console {
    fn write(&mut self, bytes: &[u8]) {
        let mut inner = self.inner();
        inner.history.add(bytes);
        inner.note(bytes);
        drop(inner);
        self.0.changed.notify_all();
    }
}

impl ConsoleHistory for Console {
    fn after(&self, place: ConsolePlace, bytes_max: usize) -> ConsolePiece {
        self.inner().history.after(place, bytes_max)
    }

    fn go_on_with(&self, piece: &ConsolePiece) {
        let mut inner = self.inner();
        inner.history.go_on_with(piece);
        inner.note(&piece.bytes);
        drop(inner);
        self.0.changed.notify_all();
    }

    fn hand_over(&self) -> ConsoleInput {
        let mut inner = self.inner();
        inner.holds_input = true;
        let waiting = inner.control.as_ref().map(|control| control.console_input()).unwrap_or_default();
        ConsoleInput { waiting, taken: inner.taken.clone() }
    }

    fn keep(&self) {
        self.inner().holds_input = false;
    }

    fn take_over(&self, input: ConsoleInput) {
        let mut inner = self.inner();
        inner.waiting = input.waiting;
        inner.taken = input.taken;
        inner.taken.truncate(TYPISTS_MAX);
    }
}

#[cfg(test)]
mod tests;
