//! How others reach a running VM: pause it, type on its console, press its power button.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Most console input that waits for the guest, in bytes. Whoever types has to offer the rest again.
const CONSOLE_BYTES_MAX: usize = 64 << 10;

/// Shared by the thread that runs a VM and those that want something of it.
#[derive(Debug)]
pub struct Control {
    wake: EventFd,
    pause: AtomicBool,
    power_button: AtomicBool,
    console: Mutex<VecDeque<u8>>,
}

impl Control {
    /// Nothing asked for yet.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            pause: AtomicBool::new(false),
            power_button: AtomicBool::new(false),
            console: Mutex::default(),
        }))
    }

    /// Asks for a pause: the run loop returns at the next instruction boundary it can stop at.
    pub fn pause(&self) {
        self.pause.store(true, Ordering::Release);
        self.wake();
    }

    /// Presses the guest's power button: a well-behaved guest shuts down.
    pub fn press_power_button(&self) {
        self.power_button.store(true, Ordering::Release);
        self.wake();
    }

    /// Types on the console. Returns how many bytes found room.
    pub fn type_on_console(&self, bytes: &[u8]) -> usize {
        let mut console = self.console();
        let taken = bytes.len().min(CONSOLE_BYTES_MAX - console.len());
        console.extend(&bytes[..taken]);
        drop(console);
        if taken > 0 {
            self.wake();
        }
        taken
    }

    /// Whether console input waits for the guest.
    pub fn has_console_input(&self) -> bool {
        !self.console().is_empty()
    }

    /// Console input that waits for the guest, which it stays.
    pub fn console_input(&self) -> Vec<u8> {
        self.console().iter().copied().collect()
    }

    /// Whether a pause is asked for; taking the request.
    pub(crate) fn take_pause(&self) -> bool {
        self.pause.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn take_power_button(&self) -> bool {
        self.power_button.swap(false, Ordering::AcqRel)
    }

    /// Takes console input that waits, at most `bytes_max` bytes.
    pub fn take_console(&self, bytes_max: usize) -> Vec<u8> {
        let mut console = self.console();
        let taken = bytes_max.min(console.len());
        console.drain(..taken).collect()
    }

    /// Readable when something was asked for since [`Control::acknowledge`].
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        descriptor(&self.wake)
    }

    /// Makes the wake descriptor unreadable; to be called before looking at the requests.
    pub(crate) fn acknowledge(&self) {
        // An error means that there was nothing to read.
        let _ = self.wake.read();
    }

    fn wake(&self) {
        // The counter cannot overflow in practice, and a full one is readable as well.
        let _ = self.wake.write(1);
    }

    fn console(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The descriptor of an eventfd, which its type offers only as a number.
#[allow(unsafe_code)]
pub(crate) fn descriptor(event: &vmm_sys_util::eventfd::EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event`, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_input_is_bounded_and_kept_in_order() {
        let control = Control::new().unwrap();
        assert_eq!(control.type_on_console(&[1; CONSOLE_BYTES_MAX - 2]), CONSOLE_BYTES_MAX - 2);
        assert_eq!(control.type_on_console(b"abc"), 2);
        assert_eq!(control.take_console(CONSOLE_BYTES_MAX - 2), vec![1; CONSOLE_BYTES_MAX - 2]);
        assert!(control.has_console_input());
        assert_eq!(control.take_console(10), b"ab");
        assert!(!control.has_console_input());
        assert!(control.take_console(10).is_empty());
    }
}
