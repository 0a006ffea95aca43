//! Messages between a VM process and the network end: one `SOCK_SEQPACKET` message each, its first byte the kind.
//!
//! | kind | direction | then |
//! | --- | --- | --- |
//! | attach | VM → end, first | protocol version, u16 |
//! | attached | end → VM | protocol version, u16; MTU in bytes, u16 |
//! | frame | both | offload header ([`HEADER_LEN`] bytes), frame |
//! | accept | VM → end | receive offloads, u8 |
//! | stop, status | control → end, first | nothing |
//! | status reply | end → control | JSON |
//! | refused | end → any | reason, UTF-8 |
//!
//! Integers are little-endian.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::backend::{BackendError, FRAME_LEN_MAX, Received, SendOutcome};
use crate::offload::{FrameOffload, HEADER_LEN};
use crate::seqpacket::{Incoming, SeqSocket};

pub(crate) const VERSION: u16 = 1;

pub(crate) const ATTACH: u8 = 1;
pub(crate) const ATTACHED: u8 = 2;
pub(crate) const FRAME: u8 = 3;
pub(crate) const ACCEPT: u8 = 4;
pub(crate) const STOP: u8 = 5;
pub(crate) const STATUS: u8 = 6;
pub(crate) const STATUS_REPLY: u8 = 7;
pub(crate) const REFUSED: u8 = 8;

/// Kind and the longest fixed part that follows it.
const HEAD_LEN: usize = 1 + HEADER_LEN;

/// What came over an attached connection.
#[derive(Debug)]
pub(crate) enum Message {
    Frame(Received),
    /// Any other message: its kind and the byte that follows.
    Other {
        kind: u8,
        value: u8,
    },
}

/// Sends one frame.
pub(crate) fn send_frame(socket: &SeqSocket, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
    if frame.len() > FRAME_LEN_MAX {
        return Err(BackendError::FrameTooLong { len: frame.len() });
    }
    match socket.try_send([&[FRAME], &offload.to_header(), frame]) {
        Ok(true) => Ok(SendOutcome::Sent),
        Ok(false) => Ok(SendOutcome::Full),
        Err(error) => Err(disconnected(error)),
    }
}

/// Takes the next message, a frame's bytes into `buffer`.
pub(crate) fn recv(socket: &SeqSocket, buffer: &mut [u8]) -> Result<Option<Message>, BackendError> {
    let mut head = [0; HEAD_LEN];
    let (len, truncated) = match socket.try_recv(&mut head, buffer).map_err(disconnected)? {
        Incoming::Message { len, truncated } => (len, truncated),
        Incoming::Empty => return Ok(None),
        Incoming::Closed => return Err(BackendError::Disconnected),
    };
    let [kind, header @ ..] = head;
    if kind != FRAME {
        // A byte that was not sent reads as zero, which every kind knows how to take.
        return Ok(Some(Message::Other { kind, value: header[0] }));
    }
    if truncated {
        return Err(BackendError::BufferTooShort { buffer_len: buffer.len() });
    }
    let frame_len = len.checked_sub(HEAD_LEN).ok_or(BackendError::Malformed)?;
    let offload = FrameOffload::from_header(&header)?;
    offload.check(frame_len)?;
    Ok(Some(Message::Frame(Received { len: frame_len, offload })))
}

/// Errors that mean no more than that the peer is gone.
pub(crate) fn disconnected(error: io::Error) -> BackendError {
    match error.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => BackendError::Disconnected,
        _ => BackendError::Io(error),
    }
}

/// A connected socket with the memory of having been closed.
#[derive(Debug)]
pub(crate) struct FrameSocket {
    socket: SeqSocket,
    closed: bool,
}

impl FrameSocket {
    pub fn new(socket: SeqSocket) -> Self {
        Self { socket, closed: false }
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        let result = send_frame(&self.socket, frame, offload);
        self.noting_close(result)
    }

    pub fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Message>, BackendError> {
        let result = recv(&self.socket, buffer);
        self.noting_close(result)
    }

    /// Sends a short message, waiting for room.
    pub fn send_waiting(&mut self, message: &[u8]) -> Result<(), BackendError> {
        let result = self.socket.send_waiting(message).map_err(disconnected);
        self.noting_close(result)
    }

    fn noting_close<T>(&mut self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        self.closed |= matches!(result, Err(BackendError::Disconnected));
        result
    }
}
