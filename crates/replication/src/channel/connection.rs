//! Making a connection, and ending it.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection as Tls, ServerConnection};

use super::error::ChannelError;
use super::handshake::shake_hands;
use super::identity::Identity;
use super::receiver::Receiver;
use super::sender::Sender;

/// How long whoever connects may take to prove who it is.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits for connections.
pub struct Listener {
    listener: TcpListener,
    identity: Identity,
}

impl Listener {
    /// Listens at an address; port 0 means any.
    ///
    /// # Errors
    /// [`ChannelError::Listen`] if the address is not this machine's or is taken.
    pub fn bind(address: SocketAddr, identity: &Identity) -> Result<Self, ChannelError> {
        let listener = TcpListener::bind(address).map_err(|error| ChannelError::Listen { address, error })?;
        // Whoever has gone again before it is accepted is not waited for.
        listener.set_nonblocking(true)?;
        Ok(Self { listener, identity: identity.clone() })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> Result<SocketAddr, ChannelError> {
        Ok(self.listener.local_addr()?)
    }

    /// Waits for the next connection, for as long as it takes unless `timeout` says otherwise. Who made it is not known yet.
    ///
    /// # Errors
    /// If the system refuses it; others may come.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Option<Caller>, ChannelError> {
        let mut ready = [PollFd::new(&self.listener, PollFlags::IN)];
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match poll(&mut ready, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        match self.listener.accept() {
            Ok((socket, _)) => {
                // Unlike the listener.
                socket.set_nonblocking(false)?;
                Ok(Some(Caller { socket, identity: self.identity.clone() }))
            }
            // It has gone again.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the next connection, and for its proof.
    ///
    /// # Errors
    /// If whoever connected could not prove within 2 s to be a host of this cluster; others may come.
    pub fn accept(&self) -> Result<Connection, ChannelError> {
        loop {
            if let Some(caller) = self.next(None)? {
                return caller.prove();
            }
        }
    }
}

/// Whoever has connected to a [`Listener`].
pub struct Caller {
    socket: TcpStream,
    identity: Identity,
}

impl Caller {
    /// Hangs up from another thread, whatever the caller is at.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn hang_up_by(&self) -> Result<impl Fn() + use<>, ChannelError> {
        let socket = self.socket.try_clone()?;
        Ok(move || {
            // One that has gone already is what is wanted.
            let _ = socket.shutdown(Shutdown::Both);
        })
    }

    /// Has the caller prove that it is a host of this cluster.
    ///
    /// # Errors
    /// If it cannot within 2 s.
    pub fn prove(self) -> Result<Connection, ChannelError> {
        let tls = ServerConnection::new(self.identity.server_config())?;
        Connection::new(self.socket, tls.into(), ACCEPT_TIMEOUT)
    }
}

/// Connects to the host `expected_host` at an address.
///
/// # Errors
/// If nobody listens there, it is another host or none of this cluster, or it takes longer than `timeout`.
pub fn connect(
    address: SocketAddr,
    identity: &Identity,
    expected_host: &str,
    timeout: Duration,
) -> Result<Connection, ChannelError> {
    let begun = Instant::now();
    let socket = dial(address, timeout)?;
    connect_over(socket, identity, expected_host, timeout.saturating_sub(begun.elapsed()))
}

/// Opens a connection that [`connect_over`] goes on with, perhaps in another process, which may not make any.
///
/// # Errors
/// If nobody listens there, or it takes longer than `timeout`.
pub fn dial(address: SocketAddr, timeout: Duration) -> Result<TcpStream, ChannelError> {
    TcpStream::connect_timeout(&address, timeout).map_err(|error| ChannelError::Connect { address, error })
}

/// Makes a connection to the host `expected_host` of one that has been opened.
///
/// # Errors
/// If it is another host or none of this cluster, or it takes longer than `timeout`.
pub fn connect_over(
    socket: TcpStream,
    identity: &Identity,
    expected_host: &str,
    timeout: Duration,
) -> Result<Connection, ChannelError> {
    let name = ServerName::try_from(expected_host.to_owned());
    let name = name.map_err(|_| ChannelError::Name(expected_host.to_owned()))?;
    let tls = ClientConnection::new(identity.client_config(), name)?;
    Connection::new(socket, tls.into(), timeout)
}

/// A connection to a host of this cluster.
pub struct Connection {
    peer: String,
    sender: Sender,
    receiver: Receiver,
    closer: Closer,
}

impl Connection {
    fn new(socket: TcpStream, mut tls: Tls, timeout: Duration) -> Result<Self, ChannelError> {
        // Acks and heartbeats are short, and must not wait for more.
        socket.set_nodelay(true)?;
        let peer = shake_hands(&mut tls, &socket, timeout)?;
        // What waits to be sent is bounded by the sender, which empties it before it is longer than a frame.
        tls.set_buffer_limit(None);
        let wire = Arc::new(Wire { socket, tls: Mutex::new(tls) });
        Ok(Self {
            peer,
            sender: Sender::new(wire.clone()),
            receiver: Receiver::new(wire.clone()),
            closer: Closer { wire },
        })
    }

    /// The peer's name, as the authority has certified it.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The parts of the connection, for a thread each.
    pub fn split(self) -> (Sender, Receiver, Closer) {
        (self.sender, self.receiver, self.closer)
    }
}

/// Closes a connection.
#[derive(Clone)]
pub struct Closer {
    wire: Arc<Wire>,
}

impl Closer {
    /// Closes it, from any thread: whoever sends or receives, on either side, finds it [`ChannelError::Closed`]. What was sent before
    /// may still arrive.
    pub fn close(&self) {
        // One that is closed already is what is wanted.
        let _ = self.wire.socket.shutdown(Shutdown::Both);
    }
}

/// What sender and receiver share. TLS is locked to encrypt or decrypt, and never while waiting for the socket, so that
/// a sender whose peer does not read holds nobody up.
pub(super) struct Wire {
    pub socket: TcpStream,
    tls: Mutex<Tls>,
}

impl Wire {
    pub fn tls(&self) -> MutexGuard<'_, Tls> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
