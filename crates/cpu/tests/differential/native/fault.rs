//! Faults of a case, seen as signals.

use std::cell::Cell;
use std::ptr;
use std::sync::Once;

use super::Context;

thread_local! {
    /// Address of the context while a case runs on this thread, else 0.
    static RUNNING: Cell<usize> = const { Cell::new(0) };
}

const STACK_LEN: usize = 128 << 10;

/// This thread's alternative signal stack.
pub struct SignalStack {
    _memory: Box<[u8]>,
}

impl SignalStack {
    pub fn install() -> Self {
        static HANDLERS: Once = Once::new();
        HANDLERS.call_once(install_handlers);
        let mut memory = vec![0; STACK_LEN].into_boxed_slice();
        let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK_LEN };
        // SAFETY: the memory outlives its use: `Drop` disables the stack first.
        let result = unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
        assert_eq!(result, 0, "sigaltstack");
        Self { _memory: memory }
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        let stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: disabling needs no memory.
        unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    }
}

/// From now on a fault belongs to the case with this context.
pub fn enter(context: usize) {
    RUNNING.set(context);
}

/// The case is over.
pub fn leave() {
    RUNNING.set(0);
}

fn install_handlers() {
    for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS, libc::SIGTRAP] {
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        // SAFETY: the action is fully initialised, and the handler calls only what a signal handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0, "sigaction");
        }
    }
}

extern "C" fn on_fault(signal: i32, _info: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    let running = RUNNING.get();
    if running == 0 {
        // Not a case's fault: let it kill the process as it would have.
        // SAFETY: restoring the default action is allowed in a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: `running` is the context page of this thread's case; the kernel gives a valid ucontext whose FPU state is at least
    // an FXSAVE image.
    unsafe {
        let context = running as *mut Context;
        let machine = &mut (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext;
        let greg = |number: i32| machine.gregs[number as usize] as u64;
        let order = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        let after = &mut (*context).after;
        for (register, number) in after.gpr.iter_mut().zip(order) {
            *register = greg(number);
        }
        after.rip = greg(libc::REG_RIP);
        after.rflags = greg(libc::REG_EFL);
        ptr::copy_nonoverlapping(machine.fpregs.cast::<u8>(), after.fx.as_mut_ptr(), after.fx.len());
        (*context).fault = greg(libc::REG_TRAPNO) + 1;
        machine.gregs[libc::REG_RIP as usize] = (*context).fault_exit as i64;
        machine.gregs[libc::REG_RSP as usize] = (*context).host_rsp as i64;
        machine.gregs[libc::REG_EFL as usize] = 2;
    }
}
