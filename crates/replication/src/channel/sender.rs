//! [`Sender`].

use std::io::Write;
use std::sync::Arc;

use super::connection::Wire;
use super::error::ChannelError;
use super::frame;

/// What is encrypted goes to the socket when it has become so long: the receiver works on it while more is encrypted.
const SEND_BYTES: usize = 64 << 10;

/// The sending half of a connection.
pub struct Sender {
    wire: Arc<Wire>,
    /// Encrypted, not given to the socket yet.
    encrypted: Vec<u8>,
}

impl Sender {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        Self { wire, encrypted: Vec::with_capacity(2 * SEND_BYTES) }
    }

    /// Sends a frame whose payload is `parts`, one after the other. It may stay here until [`Sender::flush`]. Waits while the peer
    /// does not read.
    ///
    /// # Errors
    /// [`ChannelError::TooLong`] beyond [`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX); nothing was sent then. After any other error the
    /// connection is of no use.
    pub fn send(&mut self, kind: impl Into<u8>, parts: &[&[u8]]) -> Result<(), ChannelError> {
        let header = frame::header(kind.into(), parts)?;
        {
            let mut tls = self.wire.tls();
            let mut writer = tls.writer();
            writer.write_all(&header)?;
            for part in parts {
                writer.write_all(part)?;
            }
            while tls.wants_write() {
                tls.write_tls(&mut self.encrypted)?;
            }
        }
        if self.encrypted.len() >= SEND_BYTES { self.flush() } else { Ok(()) }
    }

    /// Gives all that was sent to the network. Waits while the peer does not read.
    ///
    /// # Errors
    /// [`ChannelError::Closed`], or the system's.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        (&self.wire.socket).write_all(&self.encrypted)?;
        self.encrypted.clear();
        Ok(())
    }
}
