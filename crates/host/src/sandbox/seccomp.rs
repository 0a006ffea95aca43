//! System calls, by a filter.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::{Kind, calls};

/// `si_code` of a signal that a filter sends.
const SYS_SECCOMP: i32 = 1;
/// Where `siginfo_t` has the number of the system call, in bytes (`_sigsys._syscall`).
const SI_SYSCALL_OFFSET: usize = 24;
/// System calls whose refusal is reported, each once: more than there are.
const REPORTED_MAX: usize = 512;

static REPORTED: [AtomicU64; REPORTED_MAX / 64] = [const { AtomicU64::new(0) }; REPORTED_MAX / 64];

/// Whether the kernel filters system calls.
pub fn is_offered() -> bool {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel only reads `action`.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, ptr::from_ref(&action)) };
    result == 0
}

/// Filters the system calls of the calling thread and those that it starts.
pub fn enter(kind: Kind) -> Result<()> {
    report_refusals().context("cannot handle SIGSYS")?;
    // The C library blocks all signals where it makes threads and processes: a trap would end the process there. What is asked of `clone3` is
    // in memory, where no filter looks: `clone` is used if there is none.
    let fails = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    apply_filter(&program(clone3, SeccompAction::Allow, fails(libc::ENOSYS))?)?;
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let no_thread = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0)?;
    // Signals go to this process alone. Landlock sees to that as well, where it is new enough.
    let own = u64::from(std::process::id());
    let other_than = |value: u64| {
        let first = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value)?;
        anyhow::Ok(vec![SeccompRule::new(vec![first])?])
    };
    let mut denied = BTreeMap::from([
        (libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?]),
        (libc::SYS_kill, other_than(own)?),
        (libc::SYS_tgkill, other_than(own)?),
    ]);
    if matches!(kind, Kind::BridgeEnd | Kind::UserEnd) {
        // An end tries to remove its socket when it ends; whoever has started one does so after it.
        denied.insert(libc::SYS_unlink, Vec::new());
    }
    if kind == Kind::RunBroker {
        denied.insert(libc::SYS_socket, other_than(u64::from(libc::AF_UNIX.unsigned_abs()))?);
    }
    apply_filter(&program(denied, SeccompAction::Allow, fails(libc::EPERM))?)?;
    let allowed = calls::allowed(kind).chain([libc::SYS_clone, libc::SYS_clone3, libc::SYS_unlink]);
    let rules = allowed.map(|call| (call, Vec::new())).collect();
    Ok(apply_filter(&program(rules, SeccompAction::Trap, SeccompAction::Allow)?)?)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram> {
    Ok(SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)?.try_into()?)
}

/// Has refused system calls fail and be reported, instead of ending the process.
fn report_refusals() -> std::io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = refused;
    // SAFETY: an all-zero `sigaction` is one without flags, and the handler does only what may be done in one.
    let result = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Makes the call return EPERM. It runs in place of the call, in the thread that made it.
extern "C" fn refused(_signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO its own `siginfo_t` and `ucontext_t`, which nobody else uses meanwhile; the
    // offset is within the former, and aligned.
    let number = unsafe {
        if (*info).si_code != SYS_SECCOMP {
            return;
        }
        let context = context.cast::<libc::ucontext_t>();
        (*context).uc_mcontext.gregs[libc::REG_RAX as usize] = i64::from(-libc::EPERM);
        info.cast::<u8>().add(SI_SYSCALL_OFFSET).cast::<i32>().read()
    };
    let Ok(number) = usize::try_from(number) else { return };
    let bit = 1u64 << (number % 64);
    let is_new = REPORTED.get(number / 64).is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0);
    if is_new {
        report(number);
    }
}

/// Writes a line without anything that a signal's handler may not use.
fn report(mut number: usize) {
    let mut line = *b"twinvm: sandbox: system call     is not allowed and was refused (EPERM)\n";
    for at in [31, 30, 29] {
        if let Some(digit) = line.get_mut(at).filter(|_| number > 0 || at == 31) {
            *digit = b'0' + (number % 10) as u8;
        }
        number /= 10;
    }
    // SAFETY: the kernel reads `line`, which lives longer than the call. Standard error may be closed; then nobody is told.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}
