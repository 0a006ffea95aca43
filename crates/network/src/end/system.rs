//! What the end asks of the kernel that the standard library does not offer.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// A descriptor that becomes readable on SIGTERM and SIGINT, which no longer kill the calling thread.
pub(super) fn termination() -> io::Result<OwnedFd> {
    // SAFETY: a signal set is plain integers, for which zero is a value, and is emptied and filled before use. The
    // pointers are valid for the calls; a null old set means that it is not wanted.
    let fd = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is an open descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets this process open as many descriptors as it may: every connection of the guest takes one.
pub(super) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the calls. A failure leaves the limit as it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// A descriptor that refers to a process, which must not have been waited for.
pub(super) fn process_handle(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the call succeeded, so this is an open descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ends the process to which this refers, even if it is stopped.
pub(super) fn kill(process: BorrowedFd<'_>) -> io::Result<()> {
    let no_details = ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and the kernel reads nothing through a null pointer.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, no_details, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The user this process acts as.
pub(super) fn own_user() -> u32 {
    // SAFETY: plain call that cannot fail.
    unsafe { libc::geteuid() }
}

/// A number that no other process draws.
pub(super) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: `bytes` is valid for writes of the length given. So few bytes come whole, without signals in between.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got) == Ok(bytes.len()) {
        Ok(u64::from_le_bytes(bytes))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits until one of `fds` has something to say, at most `timeout_ms` milliseconds.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout_ms: u32) -> io::Result<()> {
    // More than `i32::MAX` ms, and libslirp's "never", is no limit.
    let timeout_ms = i32::try_from(timeout_ms).unwrap_or(-1);
    loop {
        // SAFETY: `fds` is valid for reads and writes of the length given.
        let woken = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
        if woken >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
