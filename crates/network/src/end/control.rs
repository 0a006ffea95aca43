//! What can be asked of a running network end, from any process of the same user.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spec::PortForward;
use thiserror::Error;

use crate::seqpacket::{Incoming, SeqSocket, is_abandoned};
use crate::wire::{FORWARD, KEEP, NEEDS_START, REFUSED, STATUS, STATUS_REPLY, STOP};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest status, in bytes.
const ANSWER_LEN_MAX: usize = 64 << 10;

/// What a network end says of itself. Counts are since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndStatus {
    /// Its process.
    pub pid: u32,
    /// MTU of its network, in bytes.
    pub mtu: u16,
    /// Its identity, as in [`crate::InputPosition::end`].
    pub end: u64,
    /// Highest generation that a VM process has attached with; lower ones are refused.
    pub generation: u64,
    /// Whether a VM process is connected.
    pub attached: bool,
    /// VM processes that were refused because a higher generation had attached before.
    pub superseded: u64,
    /// VM processes that have connected; all but the first took over from another or came back.
    pub attachments: u64,
    /// Frames taken from the guest, malformed ones included. A long frame counts as one.
    pub from_guest_frames: u64,
    /// Their bytes.
    pub from_guest_bytes: u64,
    /// Frames handed to the guest.
    pub to_guest_frames: u64,
    /// Their bytes.
    pub to_guest_bytes: u64,
    /// Frames handed to the guest that are kept for a VM process that takes over.
    pub retained_frames: u64,
    /// Their bytes.
    pub retained_bytes: u64,
    /// Frames handed out again to VM processes that took over.
    pub resent_frames: u64,
    /// Frames that such a VM process had not taken and that were no longer kept.
    pub missed_frames: u64,
    /// Frames towards the guest that found its queue full or that it does not take.
    pub to_guest_dropped: u64,
    /// The ports that it forwards; nothing if it is of an earlier version, or on a bridge.
    #[serde(default)]
    pub forward: Option<Vec<PortForward>>,
    /// Messages of the VM process that made no sense, and frames whose offload header did not fit them.
    pub malformed: u64,
}

/// Why a network end did not do as asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody there.
    #[error("cannot reach the network end at {path}: {source}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why the socket cannot be reached.
        source: io::Error,
    },
    /// No answer, or one that makes no sense.
    #[error("the network end at {path} does not answer as one")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
    },
    /// It said why it does not.
    #[error("{0}")]
    Refused(String),
    /// It may not do it any more, but an end that is started anew may.
    #[error("{0}")]
    NeedsStart(String),
}

/// Asks the end that listens at `socket` how it is.
///
/// # Errors
/// [`ControlError`].
pub fn status(socket: &Path) -> Result<EndStatus, ControlError> {
    ask(socket, STATUS)
}

/// Has the end that listens at `socket` forward these ports and no others from now on: all of them, or those that it forwarded before. Connections that
/// there are stay.
///
/// # Errors
/// [`ControlError`]; [`ControlError::NeedsStart`] for ports that only root may open.
pub fn forward(socket: &Path, ports: &[PortForward]) -> Result<EndStatus, ControlError> {
    let mut message = vec![FORWARD];
    serde_json::to_writer(&mut message, ports).map_err(|error| ControlError::Refused(error.to_string()))?;
    answer(&request(socket, &message)?, socket)
}

/// Says that a VM process may yet connect: the time of [`super::Lifetime::WithoutClient`] begins anew. Answers how the end is.
///
/// # Errors
/// [`ControlError`].
pub fn keep(socket: &Path) -> Result<EndStatus, ControlError> {
    ask(socket, KEEP)
}

/// Connects to the end that listens at `socket`, for a process that may not: [`keep_over`] and [`crate::Link::over`] go on with it.
///
/// # Errors
/// [`ControlError::Unreachable`].
pub fn dial(socket: &Path) -> Result<OwnedFd, ControlError> {
    let unreachable = |source| ControlError::Unreachable { path: socket.to_owned(), source };
    SeqSocket::connect(socket, ANSWER_TIMEOUT).map(SeqSocket::into_fd).map_err(unreachable)
}

/// As [`keep`], over a connection to the end that listens at `socket`.
///
/// # Errors
/// [`ControlError`].
pub fn keep_over(connection: OwnedFd, socket: &Path) -> Result<EndStatus, ControlError> {
    let connection = SeqSocket::from_fd(connection);
    let unreachable = |source| ControlError::Unreachable { path: socket.to_owned(), source };
    connection.send_waiting(&[KEEP]).map_err(unreachable)?;
    answer(&connection, socket)
}

fn ask(socket: &Path, kind: u8) -> Result<EndStatus, ControlError> {
    answer(&request(socket, &[kind])?, socket)
}

fn answer(connection: &SeqSocket, socket: &Path) -> Result<EndStatus, ControlError> {
    let mut answer = [0; ANSWER_LEN_MAX];
    let len = match connection.recv_waiting(&mut answer) {
        Ok(Incoming::Message { len, truncated: false }) => len,
        _ => 0,
    };
    let no_answer = || ControlError::NoAnswer { path: socket.to_owned() };
    let text = |reason: &[u8]| String::from_utf8_lossy(reason).into_owned();
    match answer.get(..len).unwrap_or_default() {
        [STATUS_REPLY, json @ ..] => serde_json::from_slice(json).map_err(|_| no_answer()),
        [REFUSED, reason @ ..] => Err(ControlError::Refused(text(reason))),
        [NEEDS_START, reason @ ..] => Err(ControlError::NeedsStart(text(reason))),
        _ => Err(no_answer()),
    }
}

/// Ends the end that listens at `socket`, and returns when it has ended and its socket is gone.
///
/// # Errors
/// [`ControlError`].
pub fn stop(socket: &Path) -> Result<(), ControlError> {
    let connection = request(socket, &[STOP])?;
    // It closes the connection as the last thing it does.
    match connection.recv_waiting(&mut [0; 1]) {
        Ok(Incoming::Closed) => {
            // One that is confined cannot remove it itself.
            if is_abandoned(socket) {
                let _ = fs::remove_file(socket);
            }
            Ok(())
        }
        _ => Err(ControlError::NoAnswer { path: socket.to_owned() }),
    }
}

fn request(socket: &Path, message: &[u8]) -> Result<SeqSocket, ControlError> {
    let unreachable = |source| ControlError::Unreachable { path: socket.to_owned(), source };
    let connection = SeqSocket::connect(socket, ANSWER_TIMEOUT).map_err(unreachable)?;
    connection.send_waiting(message).map_err(unreachable)?;
    Ok(connection)
}
