//! Requests to a VM that runs in the foreground: a socket, a line of JSON each way.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::net::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};
use storage::disk::Replacement;
use terminal::error_text::error_text;

use super::snapshots::note_snapshot;
use crate::passing::{receive_bytes, send_bytes};
use crate::paths;

/// Longest request or answer, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// How long the broker of a VM that was killed may take to tidy up.
const BROKER_PATIENCE: Duration = Duration::from_secs(2);
/// Connections served at a time; further ones are closed.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// What the VM is and does.
    Status,
    /// Save it to the file that comes with the request, memory and disks included, while it goes on. Another file that comes is for what the guest writes
    /// over meanwhile. The VM's process may open no file: who asks does, and puts the first one in its place.
    Snapshot {
        /// What the file is going to be; absolute.
        path: PathBuf,
        /// What is there now, by the numbers of its device and its inode.
        replaces: Option<(u64, u64)>,
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
        /// Why the request was not carried out.
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
    files: Vec<File>,
    answer: Sender<Answer>,
}

impl Pending {
    /// The files that came with a snapshot's: for the snapshot, and for what the guest writes over meanwhile.
    pub fn files(&mut self) -> Result<(File, File)> {
        let mut files = mem::take(&mut self.files).into_iter();
        files.next().zip(files.next()).context("the request does not bring the files for it")
    }

    /// Answers it. A client that has gone away is no error.
    pub fn answer(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

/// The socket of one VM, at which nobody is heard yet. When it is dropped nobody is heard any more; it is removed, unless this process may not by then.
pub struct RequestSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl RequestSocket {
    /// Makes the socket of the VM `name`. Refused if a VM of that name runs.
    pub fn bind(name: &str) -> Result<Self> {
        let path = socket_path(name)?;
        if UnixStream::connect(&path).is_ok() {
            bail!("a VM named {name} is running already: stop it with `twinvm vm stop {name}`, or choose another name");
        }
        // A socket that nobody listens on is left from a process that was killed: its broker removes it when the ports of its network are free again.
        let deadline = Instant::now() + BROKER_PATIENCE;
        while path.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        Ok(Self { path, listener })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hears requests, and calls `prepare` before and `notify` after each that it queues.
    pub fn serve(
        &self,
        prepare: impl Fn(&Request) -> Result<()> + Send + Sync + 'static,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Receiver<Pending>> {
        let listener = self.listener.try_clone().context("cannot listen for requests")?;
        let (queue, pending) = channel();
        let (prepare, notify, served) = (Arc::new(prepare), Arc::new(notify), Arc::new(()));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                match connection {
                    // Who asks is told that nobody answers.
                    Ok(_) if Arc::strong_count(&served) > CONNECTIONS_MAX => {}
                    Ok(connection) => {
                        let (queue, prepare, notify) = (queue.clone(), prepare.clone(), notify.clone());
                        let place = served.clone();
                        // Some take long, and others are not to wait for them.
                        std::thread::spawn(move || {
                            let _place = place;
                            // Who asked is told, or has gone: nobody here has to know.
                            drop(serve(connection, &queue, &*prepare, &*notify));
                        });
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return,
                    Err(_) => {}
                }
            }
        });
        Ok(pending)
    }
}

impl Drop for RequestSocket {
    fn drop(&mut self) {
        // Whoever connects from now on is refused, and the thread that hears requests ends.
        let _ = shutdown(&self.listener, Shutdown::Both);
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
    // Nothing if somebody looked whether the VM is there.
    let Some((line, files)) = receive_line(&connection)? else { return Ok(()) };
    let request = serde_json::from_slice(&line).map_err(|error| anyhow!("not a request: {error}"));
    let answer = match request.and_then(|request| prepare(&request).map(|()| request)) {
        Ok(request) => {
            let (answer, answered) = channel();
            queue.send(Pending { request, files, answer }).map_err(|_| anyhow!("the VM has ended"))?;
            notify();
            answered.recv().unwrap_or_else(|_| Answer::Failed { message: "the VM has ended".to_owned() })
        }
        Err(error) => Answer::Failed { message: error_text(&error) },
    };
    let mut line = serde_json::to_string(&answer)?;
    line.push('\n');
    Ok((&connection).write_all(line.as_bytes())?)
}

/// A request, and the files that come with it; nothing if whoever has connected goes without a word.
fn receive_line(connection: &UnixStream) -> Result<Option<(Vec<u8>, Vec<File>)>> {
    let (mut line, mut files) = (Vec::new(), Vec::new());
    let mut part = [0; 4096];
    while !line.contains(&b'\n') {
        if line.len() as u64 >= LINE_BYTES_MAX {
            bail!("a request of {} bytes is too long", line.len());
        }
        let Some((length, descriptor)) = receive_bytes(connection, &mut part)? else { break };
        line.extend_from_slice(part.get(..length).unwrap_or_default());
        files.extend(descriptor.map(File::from));
    }
    Ok(Some((line, files)).filter(|(line, _)| !line.is_empty()))
}

/// Sends a request to the running VM `name` and waits for its answer.
pub fn ask(name: &str, request: &Request) -> Result<VmStatus> {
    ask_with(name, request, &[])
}

/// Has the running VM `name` saved to a file, which is there when it is complete.
pub fn save(name: &str, path: &Path) -> Result<VmStatus> {
    let replaces = std::fs::metadata(path).ok().map(|there| (there.dev(), there.ino()));
    let request = Request::Snapshot { path: path.to_owned(), replaces };
    let cannot = || format!("cannot write snapshot {}", path.display());
    // Before a file is made for nobody.
    ask(name, &Request::Status)?;
    let mut replacement = Replacement::new();
    replacement.add_private(path).with_context(cannot)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let files = [replacement.file(0).with_context(cannot)?, tempfile::tempfile_in(folder).with_context(cannot)?];
    let status = ask_with(name, &request, &files)?;
    replacement.commit().with_context(cannot)?;
    note_snapshot(path);
    Ok(status)
}

fn ask_with(name: &str, request: &Request, files: &[File]) -> Result<VmStatus> {
    ask_at(&socket_path(name)?, request, files).with_context(|| format!("VM {name}"))
}

fn ask_at(path: &Path, request: &Request, files: &[File]) -> Result<VmStatus> {
    let connection = UnixStream::connect(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            anyhow!("is not running here; see `twinvm vm list`")
        }
        _ => anyhow!(error),
    })?;
    // A descriptor comes with each part.
    let mut line = serde_json::to_string(request)?;
    for file in files {
        send_bytes(&connection, line.as_bytes(), Some(file.as_fd()))?;
        line = " ".to_owned();
    }
    line.push('\n');
    send_bytes(&connection, line.as_bytes(), None)?;
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
            && let Ok(status) = ask_at(&entry.path(), &Request::Status, &[])
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
