//! Requests to a VM that runs in the foreground: a socket, a line of JSON each way.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::paths;

/// Longest request or answer, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// How long a client may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// What the VM is and does.
    Status,
    /// Save it to a file, memory and disks included, and go on.
    Snapshot {
        /// The file; absolute.
        path: PathBuf,
    },
    /// Press the power button, or pull the plug.
    Stop {
        /// Pull the plug.
        force: bool,
    },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done {
        /// What the VM is now.
        status: VmStatus,
    },
    /// It could not be done.
    Failed {
        /// Why.
        message: String,
    },
}

/// What a running VM says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// The process that runs it.
    pub pid: u32,
    /// Its engine.
    pub engine: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Seconds since it was started here.
    pub running_s: u64,
    /// Its spec, as TOML, with its files named by absolute path.
    #[serde(default)]
    pub spec: String,
}

/// A request on its way to the thread that runs the VM.
pub struct Pending {
    /// What is asked.
    pub request: Request,
    answer: Sender<Answer>,
}

impl Pending {
    /// Answers it. A client that has gone away is no error.
    pub fn answer(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

/// The socket of one VM; removed when dropped.
pub struct RequestServer {
    path: PathBuf,
}

impl RequestServer {
    /// Listens for requests to the VM `name`, and calls `prepare` before and `notify` after each that it queues. Refused if a VM of that
    /// name runs.
    pub fn start(
        name: &str,
        prepare: impl Fn(&Request) -> Result<()> + Send + 'static,
        notify: impl Fn() + Send + 'static,
    ) -> Result<(Self, Receiver<Pending>)> {
        let path = socket_path(name)?;
        if UnixStream::connect(&path).is_ok() {
            bail!("a VM named {name} is running already: stop it with `twinvm vm stop {name}`, or choose another name");
        }
        // A socket that nobody listens on is left from a process that was killed.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let (queue, pending) = channel();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                // Who asked is told, or has gone: nobody here has to know.
                let _ = serve(connection, &queue, &prepare, &notify);
            }
        });
        Ok((Self { path }, pending))
    }
}

impl Drop for RequestServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(
    connection: UnixStream,
    queue: &Sender<Pending>,
    prepare: &impl Fn(&Request) -> Result<()>,
    notify: &impl Fn(),
) -> Result<()> {
    connection.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    let mut line = String::new();
    if BufReader::new((&connection).take(LINE_BYTES_MAX)).read_line(&mut line)? == 0 {
        // Somebody looked whether the VM is there.
        return Ok(());
    }
    let request = serde_json::from_str(&line).map_err(|error| anyhow!("not a request: {error}"));
    let answer = match request.and_then(|request| prepare(&request).map(|()| request)) {
        Ok(request) => {
            let (answer, answered) = channel();
            queue.send(Pending { request, answer }).map_err(|_| anyhow!("the VM has ended"))?;
            notify();
            answered.recv().unwrap_or_else(|_| Answer::Failed { message: "the VM has ended".to_owned() })
        }
        Err(error) => Answer::Failed { message: format!("{error:#}") },
    };
    let mut line = serde_json::to_string(&answer)?;
    line.push('\n');
    Ok((&connection).write_all(line.as_bytes())?)
}

/// Sends a request to the running VM `name` and waits for its answer.
pub fn ask(name: &str, request: &Request) -> Result<VmStatus> {
    ask_at(&socket_path(name)?, request).with_context(|| format!("VM {name}"))
}

fn ask_at(path: &Path, request: &Request) -> Result<VmStatus> {
    let connection = UnixStream::connect(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            anyhow!("is not running here; see `twinvm vm list`")
        }
        _ => anyhow!(error),
    })?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    (&connection).write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new((&connection).take(LINE_BYTES_MAX)).read_line(&mut answer)?;
    if answer.is_empty() {
        bail!("ended before it answered");
    }
    match serde_json::from_str(&answer)? {
        Answer::Done { status } => Ok(status),
        Answer::Failed { message } => bail!(message),
    }
}

/// All VMs that run in the foreground somewhere, by name.
pub fn running() -> Result<Vec<VmStatus>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(paths::runtime_dir()?)?.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("vm-") && name.ends_with(".sock"))
            && let Ok(status) = ask_at(&entry.path(), &Request::Status)
        {
            found.push(status);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn socket_path(name: &str) -> Result<PathBuf> {
    // Names come from the command line here; they become file names.
    if name.contains('/') {
        bail!("{name:?} is not the name of a VM");
    }
    Ok(paths::runtime_dir()?.join(format!("vm-{name}.sock")))
}
