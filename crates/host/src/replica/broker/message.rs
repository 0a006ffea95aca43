//! What replica and broker say to each other.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use protocol::{Claim, Generation};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// What is asked about the claim.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Question {
    /// What it is.
    Read,
    /// To replace it.
    Swap {
        /// If this is its generation.
        expected: Generation,
        /// By this one.
        new: Claim,
    },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The claim was replaced.
    Won,
    /// The claim, as it is.
    Claim {
        /// It.
        claim: Claim,
    },
    /// The store does not answer.
    Unreachable {
        /// Why.
        message: String,
    },
}

/// Where a connection is wanted to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum Wanted {
    /// The network end of a card.
    End {
        /// Its number.
        number: usize,
    },
    /// A secondary.
    Secondary {
        /// Where it listens.
        address: SocketAddr,
    },
}

/// What came of it; the socket comes with it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Connected {
    /// It is.
    Yes,
    /// It is not.
    No {
        /// Why.
        message: String,
    },
}

/// Sends a message, and a descriptor with it.
pub fn send(socket: impl AsFd, message: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let message = serde_json::to_vec(message)?;
    if message.len() > MESSAGE_BYTES_MAX {
        bail!("a message of {} bytes is too long", message.len());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !control.push(SendAncillaryMessage::ScmRights(fds))
    {
        bail!("no room for a descriptor");
    }
    retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Waits for a message, and the descriptor that comes with it; nothing if the other side is gone.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
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
    let message = bytes.get(..received.bytes).unwrap_or_default();
    Ok(Some((serde_json::from_slice(message).context("a message makes no sense")?, fd)))
}
