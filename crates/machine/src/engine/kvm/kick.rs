//! What takes a vCPU thread out of the guest, wherever it is on its way in or out: a flag that the kernel looks at before it enters
//! the guest, and a signal that ends its stay there.
//!
//! KVM reads `immediate_exit` of the vCPU's shared page after it has blocked nothing and before it enters the guest, and a signal that is
//! pending by then keeps it out as well (Linux, Documentation/virt/kvm/api.rst, section 5, "The kvm_run structure"). So a flag that is set before
//! the signal is sent is never missed, and nobody has to try again.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// A signal whose handler does nothing: its only effect is that KVM_RUN returns EINTR.
#[derive(Clone, Copy)]
pub(super) struct KickSignal(libc::c_int);

extern "C" fn ignore(_: libc::c_int) {}

impl KickSignal {
    /// Installs the handler (again, if it is there already).
    pub fn install() -> io::Result<Self> {
        let signal = libc::SIGRTMIN();
        // SAFETY: an all-zero sigaction is valid (empty mask). SA_RESTART keeps the signal from ending system calls of devices; KVM_RUN
        // returns EINTR all the same. The handler is async-signal-safe, as it does nothing.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        if result == 0 { Ok(Self(signal)) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends it to a thread.
    pub fn send<T>(self, thread: &JoinHandle<T>) {
        // SAFETY: a thread's identifier is valid until it is joined or detached, which takes the handle away.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), self.0) };
    }
}

/// The `immediate_exit` flag of one vCPU, in a mapping of its own of the page that the vCPU shares with the kernel.
#[derive(Debug)]
pub(super) struct ImmediateExit {
    page: NonNull<kvm_run>,
}

// SAFETY: all access is to one byte, atomically.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// Maps the flag of `vcpu`, which may be dropped before.
    pub fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; it overlaps nothing.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<kvm_run>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { page })
    }

    /// Whether KVM_RUN completes what is under way and returns EINTR, in place of entering the guest.
    pub fn set(&self, is_set: bool) {
        // SAFETY: the field lies in the mapping, which lives as long as `self`; a byte is always aligned, and the kernel reads it as one.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.page.as_ptr()).immediate_exit) };
        flag.store(is_set.into(), Ordering::Release);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped, of which nobody holds references.
        unsafe { libc::munmap(self.page.as_ptr().cast(), size_of::<kvm_run>()) };
    }
}
