//! Starting a network end as a process of its own.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{ControlError, EndConfig, Lifetime, control, system};
use crate::seqpacket::is_abandoned;

/// How long an end may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an end may take to end once it has been told to.
const EXIT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest report of an end that starts, in bytes.
const REPORT_LEN_MAX: usize = 4096;

/// A network end that this process has started.
///
/// Dropping this leaves the end running, apart from [`Lifetime::WithParent`], which ends it.
#[derive(Debug)]
pub struct EndProcess {
    child: Child,
    /// Refers to the process, whatever becomes of its number. Whoever has confined itself may end nothing but what it has one of. None on kernels before Linux 5.3.
    handle: Option<OwnedFd>,
    socket: PathBuf,
    /// The end watches the other side of this pipe and ends when it is closed, which the kernel does even if this
    /// process is killed.
    lifeline: Option<ChildStdin>,
}

/// Why a network end did not start.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The program cannot be run.
    #[error("cannot start the network end {exe}: {source}")]
    Start {
        /// The program.
        exe: PathBuf,
        /// Why the program does not start.
        source: io::Error,
    },
    /// The end gave a reason.
    #[error("{0}")]
    Failed(String),
    /// The end is gone without a reason.
    #[error("the network end has ended at once ({0})")]
    Died(ExitStatus),
    /// The end says nothing.
    #[error("the network end was not ready within {} s", READY_TIMEOUT.as_secs())]
    NotReady,
}

impl EndProcess {
    /// Starts `exe net-end --config JSON --socket PATH`, which must call [`super::run`], and waits until it is ready.
    /// Its standard error goes to `log`. The program has it take a session of its own, so that Ctrl-C in the terminal does
    /// not reach it.
    ///
    /// # Errors
    /// [`SpawnError`]; the end is gone then.
    pub fn spawn(exe: &Path, config: &EndConfig, socket: &Path, log: Stdio) -> Result<Self, SpawnError> {
        Self::spawn_as(None, exe, config, socket, log)
    }

    /// The same with `--user N` if there is one: the end becomes that user when it has opened what it needs.
    ///
    /// # Errors
    /// [`SpawnError`]; the end is gone then.
    pub fn spawn_as(
        user: Option<u32>,
        exe: &Path,
        config: &EndConfig,
        socket: &Path,
        log: Stdio,
    ) -> Result<Self, SpawnError> {
        let start = |source| SpawnError::Start { exe: exe.to_owned(), source };
        let json = serde_json::to_string(config).map_err(|error| start(error.into()))?;
        let lifeline = if config.lifetime == Lifetime::WithParent { Stdio::piped() } else { Stdio::null() };
        let mut child = Command::new(exe)
            .arg("net-end")
            .arg("--config")
            .arg(json)
            .arg("--socket")
            .arg(socket)
            .args(user.iter().flat_map(|user| ["--user".to_owned(), user.to_string()]))
            .stdin(lifeline)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(start)?;
        let report = match child.stdout.take() {
            Some(stdout) => read_report(stdout),
            None => None,
        };
        let lifeline = child.stdin.take();
        let handle = system::process_handle(child.id()).ok();
        let mut end = Self { child, handle, socket: socket.to_owned(), lifeline };
        let error = match report.as_deref() {
            Some("ready") => return Ok(end),
            Some("") => match end.wait(EXIT_TIMEOUT) {
                Some(status) => SpawnError::Died(status),
                None => SpawnError::NotReady,
            },
            Some(line) => SpawnError::Failed(line.strip_prefix("error: ").unwrap_or(line).to_owned()),
            None => SpawnError::NotReady,
        };
        end.kill();
        Err(error)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where VM processes connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends the process, by force if it does not answer, and waits for it.
    ///
    /// # Errors
    /// [`ControlError`] if it had to be forced; its socket may be left behind then.
    pub fn stop(mut self) -> Result<(), ControlError> {
        let asked = control::stop(&self.socket);
        if asked.is_err() || self.wait(EXIT_TIMEOUT).is_none() {
            self.kill();
        }
        asked
    }

    /// Waits for the process to end by itself.
    fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
                _ => return None,
            }
        }
    }

    fn kill(&mut self) {
        // Each fails only if the process is gone already.
        let _ = match &self.handle {
            Some(handle) => system::kill(handle.as_fd()),
            None => self.child.kill(),
        };
        let _ = self.child.wait();
    }
}

impl Drop for EndProcess {
    fn drop(&mut self) {
        if self.lifeline.take().is_some() {
            if self.wait(EXIT_TIMEOUT).is_none() {
                self.kill();
            }
            // One that is confined cannot remove it itself.
            if is_abandoned(&self.socket) {
                let _ = fs::remove_file(&self.socket);
            }
        }
    }
}

/// The first line that a starting end writes, or what there is of it when it ends; `None` if it takes too long.
fn read_report(mut stdout: ChildStdout) -> Option<String> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut report = Vec::new();
    while report.len() < REPORT_LEN_MAX {
        let left = deadline.checked_duration_since(Instant::now())?;
        let mut fd = libc::pollfd { fd: stdout.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        system::poll(slice::from_mut(&mut fd), u32::try_from(left.as_millis()).unwrap_or(u32::MAX)).ok()?;
        if fd.revents == 0 {
            continue;
        }
        let mut chunk = [0; 512];
        let len = stdout.read(&mut chunk).unwrap_or(0);
        report.extend_from_slice(chunk.get(..len).unwrap_or_default());
        if len == 0 || report.contains(&b'\n') {
            break;
        }
    }
    Some(String::from_utf8_lossy(&report).trim_end().to_owned())
}
