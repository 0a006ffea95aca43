//! CPU time of threads and processes.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// CPU time that the calling thread has taken.
pub fn of_this_thread() -> io::Result<Duration> {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time that all threads of a process have taken, those that have ended included. The process must not have been waited
/// for.
pub fn of_process(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock = 0;
    // SAFETY: the clock's number is written to a valid place.
    match unsafe { libc::clock_getcpuclockid(pid, &mut clock) } {
        0 => read(clock),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn read(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to a valid place.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // A CPU clock never shows less than zero.
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_takes_time_from_its_process() {
        let process = of_process(std::process::id()).unwrap();
        let begin = of_this_thread().unwrap();
        while of_this_thread().unwrap() - begin < Duration::from_millis(20) {}
        assert!(of_process(std::process::id()).unwrap() - process >= Duration::from_millis(20));
        assert!(of_process(u32::MAX).is_err());
    }
}
