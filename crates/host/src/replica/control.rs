//! Requests to a running replica: a Unix socket, a line of JSON each way. After the answer to [`Request::Console`] the
//! connection carries the guest's console, as raw bytes both ways.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use api::messages::SessionKeys;
use api::status::ReplicaStatus;
use replication::driver::ConsolePlace;
use serde::{Deserialize, Serialize};
use spec::{CpuProfile, FtMode, SnapshotName};
use terminal::error_text::error_text;

/// Longest request or answer, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// How long a client may take to say what it wants, and to take the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections served at a time, consoles included; further ones are closed.
const CONNECTIONS_MAX: usize = 32;

/// What is asked of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// What it is and does.
    Status,
    /// A primary: replicate the VM to the secondary that listens at `address`. Answered at once; the status shows the progress.
    Protect {
        /// The secondary's host.
        secondary: String,
        /// Where it listens.
        address: SocketAddr,
        /// How, from now on; as before if it is not said.
        #[serde(default)]
        mode: Option<FtMode>,
        /// The primary's keys for it; those of its configuration if none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<SessionKeys>,
    },
    /// A primary: replicate the VM this way from now on. Answered when that has begun.
    SetMode {
        /// How the VM is replicated.
        mode: FtMode,
    },
    /// A primary: let the secondary go.
    Unprotect {
        /// Why the secondary is let go.
        reason: UnprotectReason,
    },
    /// A primary: hand the VM over to the secondary. Answered when the hand-over has begun.
    Switchover,
    /// A primary: press the power button, or pull the plug. A secondary: end, with `force` only.
    Stop {
        /// Pull the plug.
        force: bool,
    },
    /// A primary: save the VM to a snapshot in its folder. Answered when that is done; the guest goes on meanwhile.
    Snapshot {
        /// The snapshot.
        name: SnapshotName,
        /// Memory and devices too.
        memory: bool,
    },
    /// Connect the client to the guest's console.
    Console(ConsoleVisit),
    /// Die at once as by SIGKILL, without a word to anybody: the test of a failover.
    Kill,
}

/// Why a secondary is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnprotectReason {
    /// Protection was turned off.
    Off,
    /// It is suspended.
    Suspend,
    /// The secondary is to be made anew.
    Restart,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done(Box<Statement>),
    /// It could not be done.
    Failed {
        /// Why the request was not carried out.
        message: String,
    },
}

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    /// What it is and does, as administrators see it.
    pub status: ReplicaStatus,
    /// A primary that runs the VM: what the guest was told at power-on that its processors are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<CpuProfile>,
    /// After a snapshot: how long the guest stood still for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
}

impl Answer {
    /// The statement, or the reason as an error.
    fn into_statement(self) -> Result<Statement> {
        match self {
            Self::Done(statement) => Ok(*statement),
            Self::Failed { message } => bail!(message),
        }
    }
}

/// A client that comes to a console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleVisit {
    /// What it has seen of it: it is shown what follows, if that is kept.
    #[serde(default)]
    pub seen: ConsolePlace,
    /// A number by which it is known again, if what it types is to be counted.
    #[serde(default)]
    pub typist: Option<u64>,
}

/// Where a client's connection to a console begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleStart {
    /// The place of the first byte that it is shown.
    #[serde(flatten)]
    pub from: ConsolePlace,
    /// How many bytes of its were taken before, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<u64>,
}

/// What a replica does with requests. Called from a thread for each connection.
pub trait Handler: Send + Sync + 'static {
    /// Carries out a request. An answer other than [`Answer::Failed`] to [`Request::Console`] leads to [`Self::console`].
    fn handle(&self, request: Request) -> Answer;

    /// Connects a client to the guest's console, until the client leaves or the VM ends. The first line that it is sent is the [`ConsoleStart`], as JSON.
    fn console(&self, client: UnixStream, visit: ConsoleVisit);
}

/// A control socket that nobody serves yet.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens at `path`. Refused if a replica answers there.
    pub fn bind(path: &Path) -> Result<Self> {
        if UnixStream::connect(path).is_ok() {
            bail!("a replica runs already at {}", path.display());
        }
        // A socket that nobody listens on is left from a process that was killed.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

/// The control socket of a replica; removed when dropped.
pub struct ControlServer {
    path: PathBuf,
}

impl ControlServer {
    /// Hands what is asked at a socket to `handler`.
    pub fn start(socket: ControlSocket, handler: Arc<impl Handler>) -> Result<Self> {
        let ControlSocket { listener, path } = socket;
        let served = Arc::new(AtomicUsize::new(0));
        thread::Builder::new().name("control".to_owned()).spawn(move || {
            for connection in listener.incoming().flatten() {
                let Some(place) = Place::take(&served) else { continue };
                let handler = handler.clone();
                // Without a thread to serve it, the client finds its connection closed.
                let _ = thread::Builder::new().name("control client".to_owned()).spawn(move || {
                    let _place = place;
                    if let Err(error) = serve(connection, &*handler) {
                        tracing::debug!("a request failed: {}", error_text(&error));
                    }
                });
            }
        })?;
        Ok(Self { path })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Gone already if the VM's folder was removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One of [`CONNECTIONS_MAX`].
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(served: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(served.clone());
        (served.fetch_add(1, Ordering::AcqRel) < CONNECTIONS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(connection: UnixStream, handler: &impl Handler) -> Result<()> {
    connection.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let (line, rest) = read_line(&connection, Instant::now() + REQUEST_TIMEOUT)?;
    if line.is_empty() {
        // Somebody looked whether the replica is there.
        return Ok(());
    }
    let request: Result<Request, _> = serde_json::from_slice(&line);
    let console = match request {
        Ok(Request::Console(visit)) => Some(visit),
        _ => None,
    };
    let answer = match request {
        Ok(Request::Console(_)) if !rest.is_empty() => {
            Answer::Failed { message: "wait for the answer before you type".to_owned() }
        }
        Ok(request) => handler.handle(request),
        Err(error) => Answer::Failed { message: format!("not a request: {error}") },
    };
    write_line(&connection, &answer)?;
    if let Some(visit) = console
        && matches!(answer, Answer::Done(_))
    {
        connection.set_read_timeout(None)?;
        handler.console(connection, visit);
    }
    Ok(())
}

/// Sends a request to the replica that listens at `socket`, and waits for its answer.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> Result<Statement> {
    exchange(socket, request, timeout)?.1.into_statement()
}

/// A client's connection to the guest's console.
pub struct ConsoleConnection {
    /// What it sees comes here, and what it types goes there.
    pub stream: UnixStream,
    /// What the guest has written, and came with the answer.
    pub early: Vec<u8>,
    /// Where it begins.
    pub start: ConsoleStart,
}

/// Connects a client to the guest's console.
pub fn console(socket: &Path, visit: ConsoleVisit, timeout: Duration) -> Result<ConsoleConnection> {
    let deadline = Instant::now() + timeout;
    let (stream, answer, rest) = exchange(socket, &Request::Console(visit), timeout)?;
    answer.into_statement()?;
    let (line, early) = split_line(rest).map_or_else(|rest| read_line_after(rest, &stream, deadline), Ok)?;
    let start = serde_json::from_slice(&line).context("the replica does not say where its console stands")?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(ConsoleConnection { stream, early, start })
}

fn exchange(socket: &Path, request: &Request, timeout: Duration) -> Result<(UnixStream, Answer, Vec<u8>)> {
    let deadline = Instant::now() + timeout;
    let connection =
        UnixStream::connect(socket).with_context(|| format!("no replica answers at {}", socket.display()))?;
    connection.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    write_line(&connection, request)?;
    let (line, rest) = read_line(&connection, deadline).context("the replica does not answer")?;
    if line.is_empty() {
        bail!("the replica ended before it answered");
    }
    let answer = serde_json::from_slice(&line).context("the replica's answer makes no sense")?;
    Ok((connection, answer, rest))
}

fn write_line(mut connection: &UnixStream, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(connection.write_all(&line)?)
}

/// Reads up to the end of the line, or of the connection; also returns what came after the line.
fn read_line(connection: &UnixStream, deadline: Instant) -> Result<(Vec<u8>, Vec<u8>)> {
    read_line_after(Vec::new(), connection, deadline)
}

/// The same for a line that begins with what was read already, which has no end.
fn read_line_after(mut line: Vec<u8>, mut connection: &UnixStream, deadline: Instant) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut chunk = [0; 4096];
    while line.len() <= LINE_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("it took too long");
        }
        connection.set_read_timeout(Some(left))?;
        let read = match connection.read(&mut chunk) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                bail!("it took too long")
            }
            Err(error) => return Err(error.into()),
        };
        line.extend_from_slice(chunk.get(..read).unwrap_or_default());
        line = match split_line(line) {
            Ok(found) => return Ok(found),
            Err(line) => line,
        };
        if read == 0 {
            return Ok((line, Vec::new()));
        }
    }
    Err(anyhow!("a line of more than {LINE_BYTES_MAX} bytes"))
}

/// What is before the first end of a line, and what is after it; all of it if there is none.
fn split_line(bytes: Vec<u8>) -> Result<(Vec<u8>, Vec<u8>), Vec<u8>> {
    match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) => {
            let (line, rest) = bytes.split_at(end);
            Ok((line.to_vec(), rest.get(1..).unwrap_or_default().to_vec()))
        }
        None => Err(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::figures::Figures;
    use api::status::{Protection, ProtectionState, Role};

    const HUNG: Duration = Duration::from_secs(60);

    struct Echo;

    impl Handler for Echo {
        fn handle(&self, request: Request) -> Answer {
            match request {
                Request::Switchover => Answer::Failed { message: "no secondary".to_owned() },
                _ => Answer::Done(Box::new(Statement {
                    processor: Some(CpuProfile::in_order()),
                    pause_us: Some(1500),
                    status: ReplicaStatus {
                        vm: "v".to_owned(),
                        host: "a".to_owned(),
                        pid: 7,
                        role: Role::Primary,
                        engine: spec::EngineKind::Soft,
                        mode: None,
                        generation: 1,
                        running_s: 0,
                        protection: Protection::now(ProtectionState::Disabled, None),
                        peer: None,
                        sync: None,
                        listen: None,
                        faults: Vec::new(),
                        figures: Figures::default(),
                    },
                })),
            }
        }

        fn console(&self, mut client: UnixStream, visit: ConsoleVisit) {
            let start = ConsoleStart { from: visit.seen, taken: visit.typist };
            writeln!(client, "{}", serde_json::to_string(&start).unwrap()).unwrap();
            client.write_all(b"login: ").unwrap();
            let mut typed = [0; 4];
            client.read_exact(&mut typed).unwrap();
            client.write_all(&typed).unwrap();
        }
    }

    #[test]
    fn requests_are_answered_and_the_console_is_a_stream() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replica.sock");
        let server = ControlServer::start(ControlSocket::bind(&path).unwrap(), Arc::new(Echo)).unwrap();
        let said = ask(&path, &Request::Status, HUNG).unwrap();
        assert_eq!((said.status.pid, said.processor, said.pause_us), (7, Some(CpuProfile::in_order()), Some(1500)));
        assert_eq!(ask(&path, &Request::Switchover, HUNG).unwrap_err().to_string(), "no secondary");
        assert!(ControlSocket::bind(&path).is_err(), "two replicas at one socket");
        let visit = ConsoleVisit { seen: ConsolePlace { run: u64::MAX, bytes: 3 }, typist: Some(u64::MAX - 1) };
        let ConsoleConnection { mut stream, early: mut seen, start } = console(&path, visit, HUNG).unwrap();
        assert_eq!(start, ConsoleStart { from: visit.seen, taken: visit.typist });
        stream.write_all(b"root").unwrap();
        stream.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, b"login: root");
        drop(server);
        assert!(ask(&path, &Request::Status, HUNG).is_err());
    }

    #[test]
    fn what_is_no_request_is_refused_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replica.sock");
        let _server = ControlServer::start(ControlSocket::bind(&path).unwrap(), Arc::new(Echo)).unwrap();
        for (sent, expected) in [("{\"request\":\"dance\"}\n", "not a request"), ("{}\n", "not a request")] {
            let mut connection = UnixStream::connect(&path).unwrap();
            connection.write_all(sent.as_bytes()).unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).unwrap();
            assert!(answer.contains(expected), "{answer}");
        }
        let mut connection = UnixStream::connect(&path).unwrap();
        let flood = vec![b'x'; 4 * LINE_BYTES_MAX];
        // The server closes the connection in the middle of it.
        let _ = connection.write_all(&flood);
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
        assert!(answer.is_empty());
        assert!(ask(&path, &Request::Status, HUNG).is_ok());
    }

    #[test]
    fn a_replica_that_does_not_answer_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replica.sock");
        let _silent = UnixListener::bind(&path).unwrap();
        let error = ask(&path, &Request::Status, Duration::from_millis(50)).unwrap_err();
        assert!(format!("{error:#}").contains("took too long"), "{error:#}");
    }
}
