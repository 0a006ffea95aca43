//! [`Receiver`].

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::Wire;
use super::error::ChannelError;
use super::frame::{self, Frame};

/// Bytes that are read from the socket at a time.
const READ_BYTES: usize = 128 << 10;

/// The receiving half of a connection.
pub struct Receiver {
    wire: Arc<Wire>,
    encrypted: Box<[u8]>,
    /// Decrypted; of this, frames up to `taken` were returned.
    decrypted: Vec<u8>,
    taken: usize,
    /// Something has come since the last frame was returned, or since somebody asked.
    has_read: bool,
    closed: bool,
}

impl Receiver {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        let mut receiver = Self {
            wire,
            encrypted: vec![0; READ_BYTES].into(),
            decrypted: Vec::with_capacity(2 * READ_BYTES),
            taken: 0,
            has_read: false,
            closed: false,
        };
        // The peer's first frames may have come with its greeting; an error shows again when more is read.
        let _ = receiver.decrypt(0);
        receiver
    }

    /// Waits for the next frame, at most for `timeout`; `None` when that is over.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] when the connection has ended, in order or not, and all whole frames that came before were
    /// returned. After any error the connection is of no use.
    pub fn recv(&mut self, timeout: Option<Duration>) -> Result<Option<Frame<'_>>, ChannelError> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let len = loop {
            if let Some((_, len)) = frame::parse(self.rest())? {
                break len;
            }
            if self.closed {
                return Err(ChannelError::Closed);
            }
            if !self.wait(until)? {
                return Ok(None);
            }
            match (&self.wire.socket).read(&mut self.encrypted) {
                Ok(0) => self.closed = true,
                Ok(read) => {
                    self.has_read = true;
                    self.decrypt(read)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What came before a reset is as good as it was.
                Err(error) => match error.into() {
                    ChannelError::Closed => self.closed = true,
                    error => return Err(error),
                },
            }
        };
        let from = self.taken;
        self.taken += len;
        self.has_read = false;
        let frame = self.decrypted.get(from..self.taken).unwrap_or_default();
        let payload = frame.get(frame::HEADER_BYTES..).unwrap_or_default();
        let kind = frame.get(frame::KIND_OFFSET).copied().unwrap_or_default();
        Ok(Some(Frame { kind, payload }))
    }

    /// Whether something has come since the last frame, and since this was asked last: a part of a frame, as a long one takes its time on a
    /// slow link.
    pub fn take_has_read(&mut self) -> bool {
        std::mem::take(&mut self.has_read)
    }

    fn rest(&self) -> &[u8] {
        self.decrypted.get(self.taken..).unwrap_or_default()
    }

    /// Whether the socket can be read before it is time to stop.
    fn wait(&self, until: Option<Instant>) -> Result<bool, ChannelError> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::from_borrowed_fd(self.wire.socket.as_fd(), PollFlags::IN)], left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    /// Decrypts what was read, the first `read` bytes of the buffer.
    fn decrypt(&mut self, read: usize) -> Result<(), ChannelError> {
        self.decrypted.drain(..self.taken);
        self.taken = 0;
        let mut encrypted = self.encrypted.get(..read).unwrap_or_default();
        let mut tls = self.wire.tls();
        loop {
            let state = tls.process_new_packets()?;
            let len = self.decrypted.len();
            self.decrypted.resize(len + state.plaintext_bytes_to_read(), 0);
            match tls.reader().read_exact(self.decrypted.get_mut(len..).unwrap_or_default()) {
                Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
            // The peer has said that no more comes; the system says so next.
            if encrypted.is_empty() || state.peer_has_closed() {
                return Ok(());
            }
            tls.read_tls(&mut encrypted)?;
        }
    }
}
