//! One connection to a Redis.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::resp::{self, Reply};

/// Most bytes taken from the connection at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// How a connection came to its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The system says so.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The other side closed it.
    #[error("the other side closed the connection")]
    Closed,
    /// No reply for so long.
    #[error("no reply for {:.1} s", .0.as_secs_f64())]
    Silent(Duration),
    /// Something that is no reply.
    #[error("a reply makes no sense: {0}")]
    Malformed(String),
    /// A reply that says that the request was refused.
    #[error("a request was refused: {0}")]
    Refused(String),
}

/// A connection that sends at once what it is given, and does not come back when it breaks.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Received, from `taken` on not yet parsed.
    received: Vec<u8>,
    taken: usize,
    chunk: Vec<u8>,
}

impl Connection {
    /// Connects within `timeout`, which is also how long a later send may wait for the other side to take it.
    pub fn open(address: SocketAddr, timeout: Duration) -> Result<Self, Broken> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream, received: Vec::new(), taken: 0, chunk: vec![0; CHUNK_BYTES] })
    }

    /// Sends encoded commands.
    pub fn send(&mut self, commands: &[u8]) -> Result<(), Broken> {
        Ok(self.stream.write_all(commands)?)
    }

    /// The next reply, or `None` if none comes within `timeout`, which is at least a millisecond.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Reply>, Broken> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(reply) = self.received_reply()? {
                return Ok(Some(reply));
            }
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut self.chunk) {
                Ok(0) => return Err(Broken::Closed),
                Ok(len) => self.received.extend_from_slice(self.chunk.get(..len).unwrap_or_default()),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A reply that has been received already.
    pub fn received_reply(&mut self) -> Result<Option<Reply>, Broken> {
        let bytes = self.received.get(self.taken..).unwrap_or_default();
        match resp::parse(bytes).map_err(Broken::Malformed)? {
            Some((reply, len)) => {
                self.taken += len;
                Ok(Some(reply))
            }
            None => {
                self.received.drain(..self.taken);
                self.taken = 0;
                Ok(None)
            }
        }
    }

    /// Sends one command and waits for its reply. [`Broken::Refused`] if that is an error.
    pub fn ask(&mut self, words: &[&[u8]], timeout: Duration) -> Result<Reply, Broken> {
        let mut command = Vec::new();
        resp::write_command(&mut command, words);
        self.send(&command)?;
        match self.receive(timeout)? {
            None => Err(Broken::Silent(timeout)),
            Some(Reply::Error(message)) => Err(Broken::Refused(message)),
            Some(reply) => Ok(reply),
        }
    }
}
