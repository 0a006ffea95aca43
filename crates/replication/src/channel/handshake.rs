//! From a TCP connection to one whose both ends know who the other is.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::Connection as Tls;

use super::VERSION;
use super::error::ChannelError;
use super::peer::Peer;

/// What the version follows.
const MAGIC: &[u8; 6] = b"twinvm";

/// Bytes of a greeting.
const GREETING_BYTES: usize = 8;

/// Ends the handshake within `timeout` and returns the peer's name.
pub(super) fn shake_hands(tls: &mut Tls, socket: &TcpStream, timeout: Duration) -> Result<String, ChannelError> {
    let mut socket = Bounded { socket, until: Instant::now() + timeout };
    let shaken = shake(tls, &mut socket).map_err(|error| match error {
        ChannelError::Io(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            ChannelError::Timeout(timeout)
        }
        error => error,
    });
    socket.socket.set_read_timeout(None)?;
    socket.socket.set_write_timeout(None)?;
    shaken
}

fn shake(tls: &mut Tls, socket: &mut Bounded<'_>) -> Result<String, ChannelError> {
    while tls.is_handshaking() {
        tls.complete_io(socket).map_err(tls_or_io)?;
    }
    let [v0, v1] = VERSION.to_le_bytes();
    let [m0, m1, m2, m3, m4, m5] = *MAGIC;
    tls.writer().write_all(&[m0, m1, m2, m3, m4, m5, v0, v1])?;
    while tls.wants_write() {
        tls.write_tls(socket)?;
    }
    let mut greeting = [0; GREETING_BYTES];
    let mut have = 0;
    // Only so much is taken: the peer may have begun to send frames.
    while let Some(missing) = greeting.get_mut(have..).filter(|missing| !missing.is_empty()) {
        match tls.reader().read(missing) {
            Ok(0) => return Err(ChannelError::Closed),
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A server that does not trust this host says so only now: in TLS 1.3 the client is the first to be ready.
                if tls.read_tls(socket)? == 0 {
                    return Err(ChannelError::Closed);
                }
                tls.process_new_packets()?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let Some((version, magic)) = greeting.split_last_chunk::<2>().map(|(magic, version)| (version, magic)) else {
        return Err(ChannelError::Stranger);
    };
    if magic != MAGIC {
        return Err(ChannelError::Stranger);
    }
    match u16::from_le_bytes(*version) {
        VERSION => {}
        other => return Err(ChannelError::Version(other)),
    }
    let certificate = tls.peer_certificates().and_then(|chain| chain.first());
    match certificate.and_then(Peer::of) {
        Some(Peer::Host(host)) => Ok(host),
        // An operator has nothing to do here.
        Some(Peer::Operator(_)) | None => Err(ChannelError::Nameless),
    }
}

/// `complete_io` wraps TLS's errors in those of the system.
fn tls_or_io(error: io::Error) -> ChannelError {
    match error.downcast::<rustls::Error>() {
        Ok(error) => error.into(),
        Err(error) => error.into(),
    }
}

/// A blocking socket that gives up when the time for all of its reads and writes is over.
struct Bounded<'a> {
    socket: &'a TcpStream,
    until: Instant,
}

impl Bounded<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(buffer)
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
