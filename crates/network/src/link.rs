//! The VM's side of its connection to a network end.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::InputPosition;
use thiserror::Error;

use crate::backend::{Attach, BackendError, FrameBackend, LinkState, Received, SendOutcome};
use crate::offload::{FrameOffload, ReceiveOffloads};
use crate::seqpacket::{Incoming, SeqSocket};
use crate::wire::{self, ACCEPT, Attached, FrameSocket, REFUSED};

/// How long the end may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer to an attach message, in bytes.
const ANSWER_LEN_MAX: usize = 512;

/// A VM's connection to its network end.
///
/// Of the connections of the highest generation the newest is the one that counts: connecting takes the place of the VM
/// process that was connected before, whose link goes down. What the end holds for the guest, such as clients' TCP
/// connections, lives on.
#[derive(Debug)]
pub struct Link {
    socket: FrameSocket,
    mtu: u16,
}

/// Why no connection to a network end came about.
#[derive(Debug, Error)]
pub enum LinkError {
    /// No answer, or nobody there to give one.
    #[error("cannot reach the network end at {path}: {source}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why the socket cannot be reached.
        source: io::Error,
    },
    /// The end does not take this connection.
    #[error("the network end at {path} refused the connection: {reason}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The end's words.
        reason: String,
    },
    /// What answers is not a network end of this version.
    #[error("what listens at {path} is not a network end of this version")]
    NotAnEnd {
        /// The socket.
        path: PathBuf,
    },
}

impl Link {
    /// Connects to the end that listens at `path`. Takes at most a few seconds.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] if the end has seen a higher generation.
    pub fn connect(path: &Path, attach: &Attach) -> Result<Self, LinkError> {
        let unreachable = |source| LinkError::Unreachable { path: path.to_owned(), source };
        Self::attach(SeqSocket::connect(path, ANSWER_TIMEOUT).map_err(unreachable)?, path, attach)
    }

    /// The same over a connection to `path` that another process has made ([`crate::end::dial`]).
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn over(connection: OwnedFd, path: &Path, attach: &Attach) -> Result<Self, LinkError> {
        Self::attach(SeqSocket::from_fd(connection), path, attach)
    }

    fn attach(socket: SeqSocket, path: &Path, attach: &Attach) -> Result<Self, LinkError> {
        let unreachable = |source| LinkError::Unreachable { path: path.to_owned(), source };
        socket.send_waiting(&wire::attach_message(attach)).map_err(unreachable)?;
        let mut answer = [0; ANSWER_LEN_MAX];
        let answer = match socket.recv_waiting(&mut answer).map_err(unreachable)? {
            Incoming::Message { len, .. } => answer.get(..len).unwrap_or_default(),
            Incoming::Empty => return Err(unreachable(io::ErrorKind::TimedOut.into())),
            Incoming::Closed => return Err(unreachable(io::ErrorKind::ConnectionReset.into())),
        };
        if let Some(Attached { mtu, end, next_frame }) = Attached::parse(answer) {
            let position = InputPosition { end, frames: next_frame.saturating_sub(1) };
            return Ok(Self { socket: FrameSocket::new(socket, position), mtu });
        }
        Err(match answer {
            [REFUSED, reason @ ..] => {
                LinkError::Refused { path: path.to_owned(), reason: String::from_utf8_lossy(reason).into_owned() }
            }
            _ => LinkError::NotAnEnd { path: path.to_owned() },
        })
    }

    /// The network's MTU in bytes: the longest IP packet that is not marked for segmentation.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }
}

impl FrameBackend for Link {
    fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        self.socket.send(frame, offload)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        self.socket.recv(buffer)
    }

    fn accept(&mut self, offloads: ReceiveOffloads) -> Result<(), BackendError> {
        self.socket.send_waiting(&[ACCEPT, offloads.to_bits()])
    }

    fn link_state(&self) -> LinkState {
        if self.socket.is_closed() { LinkState::Down } else { LinkState::Up }
    }

    fn position(&self) -> InputPosition {
        self.socket.position()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}
