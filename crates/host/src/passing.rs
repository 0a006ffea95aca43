//! Messages between two processes over a Unix socket, with which a descriptor may come.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// What came of a connection that was asked for; the socket comes with it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Connected {
    /// It is made.
    Yes,
    /// It is not.
    No {
        /// Why it was not made.
        message: String,
    },
}

/// Sends a message in one piece, and a descriptor with it.
pub fn send(socket: impl AsFd, message: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let message = serde_json::to_vec(message)?;
    if message.len() > MESSAGE_BYTES_MAX {
        bail!("a message of {} bytes is too long", message.len());
    }
    send_bytes(socket, &message, fd)
}

/// Sends bytes, and a descriptor with them.
pub fn send_bytes(socket: impl AsFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !control.push(SendAncillaryMessage::ScmRights(fds))
    {
        bail!("no room for a descriptor");
    }
    let sent = retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    if sent < bytes.len() {
        bail!("only {sent} of {} bytes were sent", bytes.len());
    }
    Ok(())
}

/// Waits for a message that was sent in one piece, and the descriptor that comes with it; nothing if the other side is gone.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let Some((length, fd)) = receive_bytes(socket, &mut bytes)? else { return Ok(None) };
    let message = bytes.get(..length).unwrap_or_default();
    Ok(Some((serde_json::from_slice(message).context("a message makes no sense")?, fd)))
}

/// Waits for bytes, and the descriptor that comes with them; nothing if the other side is gone.
pub fn receive_bytes(socket: impl AsFd, bytes: &mut [u8]) -> Result<Option<(usize, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        bail!("a message is too long");
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(Some((received.bytes, fd)))
}
