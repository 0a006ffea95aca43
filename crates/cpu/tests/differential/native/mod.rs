//! Runs a case on the host's own processor, inside this process.
//!
//! The case's code, its scratch memory and the register images lie at fixed addresses below 2 GiB, so that the trampoline can reach
//! them without a register. Faults arrive as signals on an alternative stack (RSP is the case's); the handler records the
//! registers and resumes at the trampoline's way out.
#![allow(unsafe_code)]

mod fault;
mod trampoline;

use std::ptr;

use crate::layout::{Place, SCRATCH_LEN};
use crate::registers::{Outcome, Registers};

/// The page at [`Place::context`].
#[repr(C, align(64))]
struct Context {
    before: Registers,
    after: Registers,
    host_rsp: u64,
    /// Vector plus one; 0 for none.
    fault: u64,
    /// Where the signal handler resumes.
    fault_exit: u64,
    mxcsr: u32,
}

/// The native side of one test thread.
pub struct Native {
    place: Place,
    enter: extern "sysv64" fn(),
    /// The address after which a finished case jumps back.
    exit: u64,
    _stack: fault::SignalStack,
}

impl Native {
    /// Maps the pages of `place` and readies this thread for faults. Stay on this thread.
    pub fn new(place: Place) -> Self {
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        map(place.code(), 0x1000, writable | libc::PROT_EXEC);
        map(place.data(), 0x2000, writable);
        map(place.trampoline(), 0x1000, writable | libc::PROT_EXEC);
        map(place.context(), 0x1000, writable);
        let trampoline = trampoline::build(place);
        // SAFETY: both pages were mapped just now, writable, and nobody else knows them; the trampoline is far shorter than
        // its page.
        unsafe {
            ptr::copy_nonoverlapping(trampoline.code.as_ptr(), place.trampoline() as *mut u8, trampoline.code.len());
            let context = place.context() as *mut Context;
            (*context).mxcsr = 0x1f80;
            (*context).fault_exit = trampoline.fault_exit;
        }
        Self {
            place,
            // SAFETY: the page holds a function that follows this ABI: it keeps the callee-saved registers, MXCSR and
            // an empty x87 stack.
            enter: unsafe { std::mem::transmute::<u64, extern "sysv64" fn()>(place.trampoline()) },
            exit: trampoline.exit,
            _stack: fault::SignalStack::install(),
        }
    }

    /// Runs `code` (at `registers.rip`, within the code page) to its end.
    pub fn run(&mut self, code: &[u8], registers: &Registers, scratch: &[u8; SCRATCH_LEN], outcome: &mut Outcome) {
        let at = registers.rip;
        assert!(at >= self.place.code() && at + (code.len() as u64) + 5 <= self.place.code() + 0x1000);
        let context = self.place.context() as *mut Context;
        let scratch_at = self.place.scratch() as *mut u8;
        // SAFETY: code and its five-byte jump lie in the code page (asserted), scratch in the data pages, the context in its
        // page; the pages stay mapped for the life of the process and belong to this thread. The case's code itself touches only
        // the scratch, which its generator sees to.
        unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), at as *mut u8, code.len());
            let end = at + code.len() as u64;
            let jump = self.exit.wrapping_sub(end + 5) as u32;
            *(end as *mut u8) = 0xe9;
            ((end + 1) as *mut u32).write_unaligned(jump);
            ptr::copy_nonoverlapping(scratch.as_ptr(), scratch_at, SCRATCH_LEN);
            (*context).before = registers.clone();
            (*context).fault = 0;
            fault::enter(self.place.context() as usize);
            (self.enter)();
            fault::leave();
            outcome.registers = (*context).after.clone();
            ptr::copy_nonoverlapping(scratch_at, outcome.scratch.as_mut_ptr(), SCRATCH_LEN);
            outcome.fault = ((*context).fault as u8).checked_sub(1);
            if outcome.fault.is_none() {
                outcome.registers.rip = end;
            }
        }
    }
}

fn map(address: u64, len: usize, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE takes the place of no other mapping.
    let mapped = unsafe { libc::mmap(address as *mut libc::c_void, len, protection, flags, -1, 0) };
    assert_eq!(mapped as u64, address, "cannot map {address:#x}: {}", std::io::Error::last_os_error());
}
