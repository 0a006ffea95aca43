//! The time on one machine, by which leases in its files are counted.

use std::fs;
use std::io;

use rustix::time::{ClockId, clock_gettime};

/// The time on one machine, suspended or not, which nobody sets. Times of different boots cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootTime {
    /// Which boot of which machine (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Time since then, in ms.
    pub ms: u64,
}

impl BootTime {
    /// That of now and here.
    pub fn now() -> io::Result<Self> {
        Ok(Self { boot_id: boot_id()?, ms: boot_ms_now() })
    }
}

/// Which boot of which machine this is.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Time since the machine was booted, in ms.
pub fn boot_ms_now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let [seconds, nanoseconds] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}
