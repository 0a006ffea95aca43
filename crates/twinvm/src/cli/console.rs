//! The serial console of a VM of the cluster, on the terminal.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use api::client::{CallError, Client, Console, ConsoleStream, Target};
use api::messages::VmView;
use axum::http::{Method, StatusCode};
use host::foreground::raw_terminal::{RawTerminal, feed_console};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use super::daemon::{DaemonConnection, path_segment};

/// Pieces of typed input that may wait.
const TYPED_MAX: usize = 64;
/// Longest of them, in bytes.
const TYPED_BYTES_MAX: usize = 1024;
/// Most bytes that are kept of what was sent: more than connections hold.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// How soon a console that was lost is asked for again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a VM whose guest has ended, and of which nothing more is asked, is given to be started again.
const OFF_PATIENCE: Duration = Duration::from_secs(5);
/// How long a VM that nobody has switched off is given to come back, on whichever host.
const GONE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a host may take to say how a VM is.
const VIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// What comes from the user.
enum Typed {
    Bytes(Vec<u8>),
    /// There is no more; what the guest answers is still shown.
    End,
}

/// What the user types, and how far that is.
struct Input {
    typed: mpsc::Receiver<Typed>,
    has_ended: bool,
    leave: Arc<Notify>,
    /// A user at a terminal sees what became of what they typed.
    is_typed: bool,
    /// Something was sent by the connection that there is now.
    is_sent: bool,
    sent: Sent,
}

/// What was sent and is kept until it is known to have arrived. Bytes are counted from the first one that was typed.
#[derive(Debug, Default)]
struct Sent {
    kept: VecDeque<u8>,
    /// The first byte of it.
    from: u64,
    /// The byte from which on the guest's console counts.
    base: u64,
}

impl Sent {
    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        let gone = self.kept.len().saturating_sub(KEPT_BYTES_MAX);
        self.kept.drain(..gone);
        self.from += gone as u64;
    }

    /// A console has taken so many bytes: what follows is kept, to be sent again. Whether that is all that follows.
    fn has_arrived(&mut self, taken: Option<u64>) -> bool {
        let end = self.from + self.kept.len() as u64;
        let arrived = taken.and_then(|taken| self.base.checked_add(taken)).filter(|at| (self.from..=end).contains(at));
        let gone = arrived.map_or(self.kept.len(), |at| (at - self.from) as usize);
        self.kept.drain(..gone);
        self.from += gone as u64;
        if arrived.is_none() {
            self.base = end;
        }
        arrived.is_some()
    }
}

/// Which process runs a VM: its host and its number there.
type Runner = (String, u32);

/// A place in a console as its host names it: `RUN.BYTES`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    run: String,
    bytes: u64,
}

impl Place {
    fn parse(text: &str) -> Result<Self> {
        let place = text.split_once('.').and_then(|(run, bytes)| Some((run, bytes.parse().ok()?)));
        let (run, bytes) = place.with_context(|| format!("the host names the place `{text}` in the console"))?;
        Ok(Self { run: run.to_owned(), bytes })
    }

    fn text(&self) -> String {
        format!("{}.{}", self.run, self.bytes)
    }

    /// What there is to say about a connection that goes on at `next` after this place was seen.
    fn continued(&self, next: &Self) -> String {
        if self.run != next.run {
            return "connected again: the VM was started anew".to_owned();
        }
        match next.bytes.checked_sub(self.bytes) {
            Some(0) | None => "connected again".to_owned(),
            Some(missed) => format!("connected again: {missed} bytes of output were missed"),
        }
    }
}

/// Shows a VM's console until the user leaves, standard input ends, or the VM is off: it follows the VM to another host, and through a reboot.
pub fn connect(daemon: &DaemonConnection, name: &str) -> Result<()> {
    let vm = path_segment(name);
    // A number that no other client has.
    let typist = RandomState::new().build_hasher().finish();
    let (runner, Console { stream, place, .. }) = daemon.wait_for(|client, target| {
        let vm = &vm;
        async move {
            let view = view(client, target, vm).await;
            Ok((view.as_ref().and_then(runner), client.console(target, vm, None, Some(typist)).await?))
        }
    })?;
    let raw = RawTerminal::enter()?;
    if raw.is_some() {
        say(&format!("connected to the console of VM {name}; Ctrl-] leaves"));
    }
    let (typed, received) = mpsc::channel(TYPED_MAX);
    let (end, leave) = (typed.clone(), Arc::new(Notify::new()));
    let leaving = leave.clone();
    // Both fail only when nobody listens any more, and then this command ends.
    feed_console(
        move |bytes| {
            let piece = bytes.get(..TYPED_BYTES_MAX).unwrap_or(bytes);
            match typed.try_send(Typed::Bytes(piece.to_vec())) {
                Err(TrySendError::Full(_)) => 0,
                Ok(()) | Err(TrySendError::Closed(_)) => piece.len(),
            }
        },
        move || leaving.notify_one(),
        move || _ = end.blocking_send(Typed::End),
    );
    let input = Input {
        typed: received,
        has_ended: false,
        leave,
        is_typed: raw.is_some(),
        is_sent: false,
        sent: Sent::default(),
    };
    let place = Place::parse(&place)?;
    let ended = daemon.wait_for(|client, target| {
        let console = Follower { client, target, vm: &vm, name, place, runner, typist, input, lost: Lost::default() };
        async move { Ok(console.follow(stream).await) }
    });
    drop(raw);
    ended?
}

/// Says something beside the guest's output; the terminal may be raw.
fn say(text: &str) {
    // Where it cannot be said, the guest's output goes on.
    let _ = write!(io::stderr(), "twinvm: {text}\r\n");
}

/// The process that runs a VM, as its host sees it.
fn runner(view: &VmView) -> Option<Runner> {
    let primary = view.replicas.first().filter(|_| view.running)?;
    Some((primary.host.clone(), primary.pid))
}

async fn view(client: &Client, target: &Target, vm: &str) -> Option<VmView> {
    let path = format!("/v1/vms/{vm}");
    client.call(target, Method::GET, &path, None::<&()>, VIEW_TIMEOUT).await.ok()
}

/// What a command that is piped into has lost.
#[derive(Default)]
struct Lost {
    /// Some of what it has sent may not have arrived.
    input: bool,
    output: bool,
}

/// Follows one VM.
struct Follower<'a> {
    client: &'a Client,
    target: &'a Target,
    /// The VM's name, as part of a path.
    vm: &'a str,
    name: &'a str,
    /// What was seen.
    place: Place,
    /// Who ran the VM when the connection was made.
    runner: Option<Runner>,
    /// By which the console counts what is typed here.
    typist: u64,
    input: Input,
    lost: Lost,
}

impl Follower<'_> {
    async fn follow(mut self, mut stream: ConsoleStream) -> Result<()> {
        loop {
            let (output, to_guest) = tokio::io::split(stream);
            let leave = self.input.leave.clone();
            let is_closed = tokio::select! {
                shown = show(output, &mut self.place) => shown?,
                () = self.input.pass_on(to_guest) => false,
                () = leave.notified() => return Ok(()),
            };
            // One that has typed all, and seen the answer, has nothing to come back for.
            if is_closed && self.input.has_ended && (self.lost.output || self.has_seen_all().await) {
                break;
            }
            say(&format!("the console of VM {} is lost; connecting again", self.name));
            let Some(next) = self.connect_again().await? else { break };
            stream = next;
        }
        if self.input.is_typed {
            return Ok(());
        }
        match self.lost {
            Lost { input: true, .. } => {
                Err(anyhow!("the console of VM {} was lost, and what was sent before may not have arrived", self.name))
            }
            Lost { output: true, .. } => Err(anyhow!("output of VM {} is missing", self.name)),
            _ => Ok(()),
        }
    }

    /// Whether the other side has closed the connection as there was no more to come: the same process runs the VM, and nothing was left out.
    async fn has_seen_all(&self) -> bool {
        let now = view(self.client, self.target, self.vm).await.as_ref().and_then(runner);
        if now.is_none() || now != self.runner {
            return false;
        }
        let next = self.client.console(self.target, self.vm, Some(&self.place.text()), None).await;
        next.is_ok_and(|next| Place::parse(&next.place).is_ok_and(|next| next == self.place))
    }

    /// Connects to the VM wherever it is by now; nothing if it is off, or the user leaves.
    async fn connect_again(&mut self) -> Result<Option<ConsoleStream>> {
        let since = Instant::now();
        loop {
            let view = view(self.client, self.target, self.vm).await;
            let seen = self.place.text();
            let again = self.client.console(self.target, self.vm, Some(&seen), Some(self.typist)).await;
            let (error, patience) = match again {
                Ok(Console { stream, place, taken }) => {
                    let place = Place::parse(&place)?;
                    let was_sent = std::mem::take(&mut self.input.is_sent);
                    self.lost.input |= !self.input.sent.has_arrived(taken) && was_sent;
                    say(&self.place.continued(&place));
                    self.lost.output |= self.place.run == place.run && self.place.bytes < place.bytes;
                    self.place = place;
                    self.runner = view.as_ref().and_then(runner);
                    return Ok(Some(stream));
                }
                Err(CallError::Refused { status: StatusCode::NOT_FOUND, problem }) => return Err(anyhow!("{problem}")),
                Err(error) => (error, patience(view.as_ref())),
            };
            if since.elapsed() >= patience {
                if patience == OFF_PATIENCE {
                    say(&format!("VM {} is off", self.name));
                    return Ok(None);
                }
                return Err(anyhow!("the console of VM {} does not come back: {error}", self.name));
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
                () = self.input.leave.notified() => return Ok(None),
            }
        }
    }
}

/// How long a VM is waited for, as it is now.
fn patience(view: Option<&VmView>) -> Duration {
    match view {
        // One that is to be started again may take its time for that.
        Some(view) if view.operation.as_ref().is_some_and(|operation| !operation.is_over) => GONE_PATIENCE,
        Some(view) if !view.running && view.note.is_some() => OFF_PATIENCE,
        _ => GONE_PATIENCE,
    }
}

impl Input {
    /// Passes on what is typed, and does not return: that the connection has ended, whoever reads from it finds out.
    async fn pass_on(&mut self, mut to_guest: WriteHalf<ConsoleStream>) {
        let (first, second) = self.sent.kept.as_slices();
        self.is_sent = !first.is_empty();
        for again in [first, second] {
            let _ = to_guest.write_all(again).await;
        }
        loop {
            match self.typed.recv().await {
                Some(Typed::Bytes(bytes)) => {
                    self.is_sent = true;
                    self.sent.keep(&bytes);
                    let _ = to_guest.write_all(&bytes).await;
                }
                Some(Typed::End) | None => {
                    self.has_ended = true;
                    // The replica ends the connection once the guest has taken all of it and has answered.
                    let _ = to_guest.shutdown().await;
                    std::future::pending().await
                }
            }
        }
    }
}

/// Shows what comes until there is no more, and counts it. Whether the other side has closed the connection, rather than that it broke: who dies cannot
/// take leave as TLS wants it.
async fn show(mut output: ReadHalf<ConsoleStream>, place: &mut Place) -> Result<bool> {
    let mut bytes = [0; 4096];
    loop {
        let len = match output.read(&mut bytes).await {
            Ok(0) => return Ok(true),
            Ok(len) => len,
            Err(_) => return Ok(false),
        };
        let mut out = io::stdout().lock();
        out.write_all(bytes.get(..len).unwrap_or_default()).and_then(|()| out.flush())?;
        place.bytes = place.bytes.saturating_add(len as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_arrived_is_sent_again_and_nothing_twice() {
        let mut sent = Sent::default();
        sent.keep(b"root\n");
        assert!(sent.has_arrived(Some(3)));
        assert_eq!(sent.kept, b"t\n");
        sent.keep(b"ls\n");
        assert!(sent.has_arrived(Some(8)) && sent.kept.is_empty());
        // One that does not know it counts from there.
        sent.keep(b"id\n");
        assert!(!sent.has_arrived(None) && sent.kept.is_empty());
        sent.keep(b"df\n");
        assert!(sent.has_arrived(Some(1)));
        assert_eq!(sent.kept, b"f\n");
        // Nor is what it says believed where it cannot be.
        for taken in [0, 4, u64::MAX] {
            let mut sent = Sent { kept: b"f\n".iter().copied().collect(), from: 12, base: 11 };
            assert!(!sent.has_arrived(Some(taken)), "{taken}");
        }
        sent.keep(&vec![0; KEPT_BYTES_MAX]);
        assert_eq!((sent.kept.len(), sent.from), (KEPT_BYTES_MAX, 14));
        assert!(!sent.has_arrived(Some(2)));
    }
}
