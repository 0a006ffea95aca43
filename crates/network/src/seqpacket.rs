//! Unix sockets that keep message boundaries (`SOCK_SEQPACKET`), which the standard library does not have.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Asked of the kernel for each direction, in bytes; it gives at most `net.core.wmem_max`. Four of the longest frames.
static SEND_BUFFER: libc::c_int = 256 * 1024;
const BACKLOG: libc::c_int = 16;

/// One side of a connection.
#[derive(Debug)]
pub(crate) struct SeqSocket(OwnedFd);

/// What a receive call brought.
pub(crate) enum Incoming {
    /// A message of this many bytes, or its beginning if `truncated`.
    Message { len: usize, truncated: bool },
    /// No message waits.
    Empty,
    /// The peer has closed.
    Closed,
}

impl SeqSocket {
    pub fn pair() -> io::Result<(Self, Self)> {
        let mut fds = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: `fds` has room for the two descriptors that the call writes.
        check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
        // SAFETY: the call succeeded, so both are open descriptors that nobody else owns.
        let (a, b) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
        Ok((Self::with_buffers(a), Self::with_buffers(b)))
    }

    /// Connects to a listener; blocking calls on the result end after `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let socket = Self::with_buffers(new_socket()?);
        socket.set_timeout(libc::SO_SNDTIMEO, timeout)?;
        socket.set_timeout(libc::SO_RCVTIMEO, timeout)?;
        let (address, len) = address(path)?;
        // SAFETY: `address` is a valid socket address of `len` bytes that outlives the call.
        check(unsafe { libc::connect(socket.0.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(socket)
    }

    /// A connection that another process has made by [`Self::connect`].
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// For another process.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    fn with_buffers(fd: OwnedFd) -> Self {
        // Less room than asked for only costs speed.
        // SAFETY: the option's value is a `c_int`, of which pointer and length are given.
        let _ = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUF,
                (&raw const SEND_BUFFER).cast(),
                mem::size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        Self(fd)
    }

    fn set_timeout(&self, option: libc::c_int, timeout: Duration) -> io::Result<()> {
        let value = libc::timeval {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_usec: timeout.subsec_micros().into(),
        };
        // SAFETY: both timeout options take a `timeval`, of which pointer and length are given.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                mem::size_of::<libc::timeval>() as libc::socklen_t,
            )
        })
    }

    /// Sends one message made of `parts`, if there is room now; false if there is none.
    pub fn try_send(&self, parts: [&[u8]; 2]) -> io::Result<bool> {
        match self.send(parts, libc::MSG_DONTWAIT) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends one message, waiting for room until the socket's timeout.
    pub fn send_waiting(&self, message: &[u8]) -> io::Result<()> {
        self.send([message, &[]], 0)
    }

    fn send(&self, parts: [&[u8]; 2], flags: libc::c_int) -> io::Result<()> {
        let mut vectors =
            parts.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
        let header = message_header(&mut vectors);
        loop {
            // SAFETY: `header` points to `vectors`, whose parts are valid for reads; the call only reads them.
            let sent = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const header, flags | libc::MSG_NOSIGNAL) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Takes one message, its first bytes into `head` and the others into `body`, if there is one now.
    pub fn try_recv(&self, head: &mut [u8], body: &mut [u8]) -> io::Result<Incoming> {
        self.recv(head, body, libc::MSG_DONTWAIT)
    }

    /// Takes one message, waiting for it until the socket's timeout, after which it is [`Incoming::Empty`].
    pub fn recv_waiting(&self, message: &mut [u8]) -> io::Result<Incoming> {
        self.recv(message, &mut [], 0)
    }

    fn recv(&self, head: &mut [u8], body: &mut [u8], flags: libc::c_int) -> io::Result<Incoming> {
        let mut vectors =
            [head, body].map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
        let mut header = message_header(&mut vectors);
        loop {
            // SAFETY: `header` points to `vectors`, whose parts are exclusively borrowed for the length given.
            let got = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut header, flags) };
            match usize::try_from(got) {
                // Empty messages are never sent, so this is the end.
                Ok(0) => return Ok(Incoming::Closed),
                Ok(len) => {
                    let truncated = header.msg_flags & libc::MSG_TRUNC != 0;
                    return Ok(Incoming::Message { len, truncated });
                }
                Err(_) => {}
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Ok(Incoming::Empty),
                Some(libc::ECONNRESET) => return Ok(Incoming::Closed),
                _ => return Err(error),
            }
        }
    }

    /// User id of the process that connected.
    pub fn peer_user(&self) -> io::Result<u32> {
        let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = mem::size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the option's value is a `ucred`, of which pointer and length are given.
        check(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut len,
            )
        })?;
        Ok(credentials.uid)
    }
}

impl AsFd for SeqSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A listening socket at a path. Only the same user and root may connect. The file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SeqListener {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, so that a successor's file is not removed.
    file: (u64, u64),
}

impl SeqListener {
    /// Listens at `path`. A file left behind by a listener that is gone is replaced; a live listener is an
    /// `AddrInUse` error.
    pub fn bind(path: &Path) -> io::Result<Self> {
        // Two may be started in place of one that has died: neither may take away what the other has just made.
        let _lock = lock_folder(path)?;
        let fd = new_socket()?;
        // The kernel gives the file the mode of the socket, which other than umask is not shared with other threads.
        // SAFETY: plain call on an open descriptor.
        check(unsafe { libc::fchmod(fd.as_raw_fd(), 0o600) })?;
        let (address, len) = address(path)?;
        // SAFETY: `address` is a valid socket address of `len` bytes that outlives the call.
        let bind = || check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) });
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
                fs::remove_file(path)?;
                bind()?;
            }
            other => other?,
        }
        let metadata = fs::symlink_metadata(path)?;
        let listener = Self { fd, path: path.to_owned(), file: (metadata.dev(), metadata.ino()) };
        // SAFETY: plain call on an open descriptor.
        check(unsafe { libc::listen(listener.fd.as_raw_fd(), BACKLOG) })?;
        // SAFETY: plain call on an open descriptor.
        check(unsafe { libc::fcntl(listener.fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
        Ok(listener)
    }

    /// The next connection, if one waits.
    pub fn accept(&self) -> io::Result<Option<SeqSocket>> {
        // SAFETY: a null address is allowed and means that it is not wanted.
        let got = unsafe {
            libc::accept4(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
        };
        match check(got) {
            // SAFETY: the call succeeded, so this is an open descriptor that nobody else owns.
            Ok(()) => Ok(Some(SeqSocket::with_buffers(unsafe { OwnedFd::from_raw_fd(got) }))),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => Ok(None),
                _ => Err(error),
            },
        }
    }
}

impl AsFd for SeqListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SeqListener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Keeps others from listening anew in the same folder, until it is dropped.
fn lock_folder(path: &Path) -> io::Result<fs::File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = fs::File::open(folder)?;
    folder.lock()?;
    Ok(folder)
}

/// Whether `path` is a socket that nobody listens at.
pub(crate) fn is_abandoned(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused =
        |result: io::Result<SeqSocket>| result.is_err_and(|error| error.raw_os_error() == Some(libc::ECONNREFUSED));
    is_socket && refused(SeqSocket::connect(path, Duration::from_secs(1)))
}

fn new_socket() -> io::Result<OwnedFd> {
    // SAFETY: plain call.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: the call succeeded, so this is an open descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: a `sockaddr_un` is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // The last byte stays zero, as the terminator.
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        let reason = format!(
            "`{}` cannot be a socket: its path must have 1 to {} bytes",
            path.display(),
            address.sun_path.len() - 1
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok((address, mem::size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

fn message_header(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: a `msghdr` is integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len();
    header
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
