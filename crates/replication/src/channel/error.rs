//! What can go wrong.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::VERSION;
use super::frame::PAYLOAD_BYTES_MAX;

/// Why a connection could not be made, or cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer, or somebody here, has closed it, or the peer's machine has reset it.
    #[error("the connection is closed")]
    Closed,
    /// Nobody listens there.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// Connecting took too long.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The peer is no host of this cluster, not the one that was expected, or its data was tampered with.
    #[error("the peer cannot be trusted: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer's certificate names no host.
    #[error("the peer's certificate names no host")]
    Nameless,
    /// The name cannot be that of a host.
    #[error("`{0}` cannot be the name of a host: it is none in the sense of DNS")]
    Name(String),
    /// The peer's greeting is not one.
    #[error("the peer does not speak this protocol")]
    Stranger,
    /// The peer is of another version.
    #[error("the peer speaks version {0} of the protocol, this host version {VERSION}: update the older one")]
    Version(u16),
    /// A frame is longer than can be.
    #[error("a frame of {0} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")]
    TooLong(u64),
    /// A frame was damaged on the way.
    #[error("a frame's checksum is wrong")]
    Checksum,
    /// The system's fault.
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Why keys cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Others can read the key.
    #[error(
        "{path} can be read by others (mode {mode:o}): make it private with `chmod 600`, or better have new keys issued"
    )]
    Readable {
        /// The key.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with the file.
        reason: String,
    },
    /// The name cannot be that of a host, or of an operator.
    #[error("`{0}` cannot be the name of a host or an operator: use letters, digits and hyphens")]
    Name(String),
    /// What a certificate is asked for with makes no sense, or TLS cannot be set up for asking.
    #[error("the request for a certificate cannot be used: {0}")]
    Request(String),
    /// The keys cannot be made.
    #[error("the keys cannot be made: {0}")]
    Generate(#[from] rcgen::Error),
}
