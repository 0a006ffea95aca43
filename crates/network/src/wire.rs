//! Messages between a VM process and the network end: one `SOCK_SEQPACKET` message each, its first byte the kind.
//!
//! | kind | direction | then |
//! | --- | --- | --- |
//! | attach | VM → end, first | protocol version, u16; generation, u64; whether to resume, u8; position: end, u64, and frames, u64; greatest age of a frame in ms, u32 |
//! | attached | end → VM | protocol version, u16; MTU in bytes, u16; the end's identity, u64; number of the next frame, u64 |
//! | frame | both | number, u64; offload header ([`HEADER_LEN`] bytes); frame |
//! | accept | VM → end | receive offloads, u8 |
//! | stop, status, keep | control → end, first | nothing |
//! | forward | control → end, first | all ports to be forwarded, JSON |
//! | status reply | end → control | JSON |
//! | refused | end → any | reason, UTF-8 |
//! | needs a start | end → control | reason, UTF-8: only an end that is started anew could |
//!
//! Integers are little-endian.
//!
//! **Numbers.** An end numbers the frames that it hands out, from 1, over all VM processes: a frame's number is
//! [`InputPosition::frames`] once it is taken. It keeps the last ones, and a VM process that resumes at a position gets
//! those after it again, under the same numbers. A number that is missing belongs to a frame that the end no longer
//! has, or that the new VM process does not take. The number of a frame from a VM process counts what that process has
//! sent; nobody asks for it.
//!
//! **Generations.** An attach message with a lower generation than the highest before it is refused. Any other takes
//! the place of the VM process before: what that one sent before is still taken, nothing that it sends afterwards.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use protocol::InputPosition;

use crate::backend::{Attach, BackendError, FRAME_LEN_MAX, Received, SendOutcome};
use crate::offload::{FrameOffload, HEADER_LEN};
use crate::seqpacket::{Incoming, SeqSocket};

pub(crate) const VERSION: u16 = 3;

pub(crate) const ATTACH: u8 = 1;
pub(crate) const ATTACHED: u8 = 2;
pub(crate) const FRAME: u8 = 3;
pub(crate) const ACCEPT: u8 = 4;
pub(crate) const STOP: u8 = 5;
pub(crate) const STATUS: u8 = 6;
pub(crate) const STATUS_REPLY: u8 = 7;
pub(crate) const REFUSED: u8 = 8;
pub(crate) const KEEP: u8 = 9;
pub(crate) const FORWARD: u8 = 10;
pub(crate) const NEEDS_START: u8 = 11;

/// Bytes of an attach message.
pub(crate) const ATTACH_LEN: usize = 32;
/// Bytes of its answer.
const ATTACHED_LEN: usize = 21;
/// Kind, number and offload header.
const HEAD_LEN: usize = 9 + HEADER_LEN;

/// The attach message of this version.
pub(crate) fn attach_message(attach: &Attach) -> [u8; ATTACH_LEN] {
    let mut message = [0; ATTACH_LEN];
    let position = attach.resume.unwrap_or_default();
    message[0] = ATTACH;
    message[1..3].copy_from_slice(&VERSION.to_le_bytes());
    message[3..11].copy_from_slice(&attach.generation.to_le_bytes());
    message[11] = attach.resume.is_some().into();
    message[12..20].copy_from_slice(&position.end.to_le_bytes());
    message[20..28].copy_from_slice(&position.frames.to_le_bytes());
    // All ones, more than a month, is no limit.
    let max_age_ms = attach.max_age.and_then(|age| u32::try_from(age.as_millis()).ok()).unwrap_or(u32::MAX);
    message[28..].copy_from_slice(&max_age_ms.to_le_bytes());
    message
}

/// What an attach message says; `None` if it is of another version or length.
pub(crate) fn parse_attach(message: &[u8]) -> Option<Attach> {
    let message: &[u8; ATTACH_LEN] = message.try_into().ok()?;
    if message[0] != ATTACH || message[1..3] != VERSION.to_le_bytes() {
        return None;
    }
    let position = InputPosition { end: u64_at(message, 12)?, frames: u64_at(message, 20)? };
    let max_age_ms = u32::from_le_bytes(*message.last_chunk()?);
    Some(Attach {
        generation: u64_at(message, 3)?,
        resume: (message[11] != 0).then_some(position),
        max_age: (max_age_ms != u32::MAX).then(|| Duration::from_millis(max_age_ms.into())),
    })
}

/// An end's answer to an attach message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    pub mtu: u16,
    pub end: u64,
    /// Number of the first frame that the end will send.
    pub next_frame: u64,
}

impl Attached {
    pub fn to_message(self) -> [u8; ATTACHED_LEN] {
        let mut message = [0; ATTACHED_LEN];
        message[0] = ATTACHED;
        message[1..3].copy_from_slice(&VERSION.to_le_bytes());
        message[3..5].copy_from_slice(&self.mtu.to_le_bytes());
        message[5..13].copy_from_slice(&self.end.to_le_bytes());
        message[13..].copy_from_slice(&self.next_frame.to_le_bytes());
        message
    }

    pub fn parse(message: &[u8]) -> Option<Self> {
        let message: &[u8; ATTACHED_LEN] = message.try_into().ok()?;
        if message[0] != ATTACHED || message[1..3] != VERSION.to_le_bytes() {
            return None;
        }
        let mtu = u16::from_le_bytes([message[3], message[4]]);
        Some(Self { mtu, end: u64_at(message, 5)?, next_frame: u64_at(message, 13)? })
    }
}

fn u64_at(message: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*message.get(at..)?.first_chunk()?))
}

/// What came over an attached connection.
#[derive(Debug)]
pub(crate) enum Message {
    Frame {
        number: u64,
        received: Received,
    },
    /// Any other message: its kind and the byte that follows.
    Other {
        kind: u8,
        value: u8,
    },
}

/// Sends one frame.
pub(crate) fn send_frame(
    socket: &SeqSocket,
    number: u64,
    frame: &[u8],
    offload: FrameOffload,
) -> Result<SendOutcome, BackendError> {
    if frame.len() > FRAME_LEN_MAX {
        return Err(BackendError::FrameTooLong { len: frame.len() });
    }
    let mut head = [FRAME; HEAD_LEN];
    head[1..9].copy_from_slice(&number.to_le_bytes());
    head[9..].copy_from_slice(&offload.to_header());
    match socket.try_send([&head, frame]) {
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
    let [kind, n0, n1, n2, n3, n4, n5, n6, n7, header @ ..] = head;
    if kind != FRAME {
        // A byte that was not sent reads as zero, which every kind knows how to take.
        return Ok(Some(Message::Other { kind, value: n0 }));
    }
    if truncated {
        return Err(BackendError::BufferTooShort { buffer_len: buffer.len() });
    }
    let frame_len = len.checked_sub(HEAD_LEN).ok_or(BackendError::Malformed)?;
    let number = u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
    let offload = FrameOffload::from_header(&header)?;
    offload.check(frame_len)?;
    Ok(Some(Message::Frame { number, received: Received { len: frame_len, offload } }))
}

/// Errors that mean no more than that the peer is gone.
pub(crate) fn disconnected(error: io::Error) -> BackendError {
    match error.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => BackendError::Disconnected,
        _ => BackendError::Io(error),
    }
}

/// A connected socket, with the memory of what has passed and of having been closed.
#[derive(Debug)]
pub(crate) struct FrameSocket {
    socket: SeqSocket,
    sent: u64,
    /// The end that the peer is, and the number of the last frame taken from it.
    position: InputPosition,
    closed: bool,
}

impl FrameSocket {
    pub fn new(socket: SeqSocket, position: InputPosition) -> Self {
        Self { socket, sent: 0, position, closed: false }
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn position(&self) -> InputPosition {
        self.position
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn send(&mut self, frame: &[u8], offload: FrameOffload) -> Result<SendOutcome, BackendError> {
        let result = send_frame(&self.socket, self.sent + 1, frame, offload);
        self.sent += u64::from(matches!(result, Ok(SendOutcome::Sent)));
        self.noting_close(result)
    }

    pub fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<Received>, BackendError> {
        let result = recv(&self.socket, buffer);
        match self.noting_close(result)? {
            Some(Message::Frame { number, received }) => {
                self.position.frames = number;
                Ok(Some(received))
            }
            Some(Message::Other { .. }) => Err(BackendError::Malformed),
            None => Ok(None),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attach_messages_are_understood_in_their_own_version_and_length_only() {
        let resume = Some(InputPosition { end: 0x0102_0304_0506_0708, frames: u64::MAX - 1 });
        let max_age = Some(Duration::from_millis(100));
        for attach in [Attach::default(), Attach { generation: 7, resume, max_age }] {
            let message = attach_message(&attach);
            assert_eq!(parse_attach(&message), Some(attach));
            assert_eq!(parse_attach(&message[..ATTACH_LEN - 1]), None);
            assert_eq!(parse_attach(&[&message[..], &[0]].concat()), None);
            let mut other_version = message;
            other_version[1] += 1;
            assert_eq!(parse_attach(&other_version), None);
        }
        let attached = Attached { mtu: 1500, end: 9, next_frame: 10 };
        assert_eq!(Attached::parse(&attached.to_message()), Some(attached));
        assert_eq!(Attached::parse(&attached.to_message()[1..]), None);
    }
}
