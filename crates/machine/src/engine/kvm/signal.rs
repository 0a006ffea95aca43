//! The signal that takes a vCPU thread out of the guest.
#![allow(unsafe_code)]

use std::io;

/// A handler that does nothing is installed for it: its only effect is that KVM_RUN returns EINTR.
pub(super) struct KickSignal(libc::c_int);

extern "C" fn ignore(_: libc::c_int) {}

impl KickSignal {
    /// Installs the handler (again, if it is there already).
    pub(super) fn install() -> io::Result<Self> {
        let signal = libc::SIGRTMIN();
        // SAFETY: an all-zero sigaction is valid (empty mask, no flags: system calls are not restarted, which is the point);
        // the handler is async-signal-safe, as it does nothing.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        if result == 0 { Ok(Self(signal)) } else { Err(io::Error::last_os_error()) }
    }

    /// Interrupts a thread that is still running.
    pub(super) fn kick(&self, thread: RunningThread) {
        // SAFETY: the caller holds the lock under which the thread would have to take itself off the list before it
        // ends, so the identifier is valid.
        unsafe { libc::pthread_kill(thread.0, self.0) };
    }
}

/// A thread by its identifier, valid while the thread runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct RunningThread(libc::pthread_t);

impl RunningThread {
    /// The calling thread.
    pub(super) fn current() -> Self {
        // SAFETY: cannot fail and touches no memory.
        Self(unsafe { libc::pthread_self() })
    }
}
