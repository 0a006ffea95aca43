//! Virtual time as devices see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a VM's clock shows, or is to show as soon as the guest runs, at a moment. From there on it goes with the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// Virtual time since power-on.
    pub shows: Duration,
    /// The moment.
    pub at: Instant,
}

impl ClockReading {
    /// What it shows now, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.shows.saturating_add(self.at.elapsed()).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The VM's clock: nanoseconds of virtual time since power-on, and the wall-clock time of power-on.
///
/// The engine sets it before every device access (the soft engine from its instruction count, KVM from the host's
/// clock), so a device that reads it is as deterministic as its engine.
#[derive(Debug)]
pub struct MachineClock {
    since_power_on_ns: AtomicU64,
    power_on_unix_ns: u64,
}

impl MachineClock {
    /// A clock at power-on, `power_on_unix_ns` nanoseconds after the Unix epoch.
    pub fn new(power_on_unix_ns: u64) -> Arc<Self> {
        Arc::new(Self { since_power_on_ns: AtomicU64::new(0), power_on_unix_ns })
    }

    /// Nanoseconds of virtual time since power-on.
    pub fn now_ns(&self) -> u64 {
        self.since_power_on_ns.load(Ordering::Acquire)
    }

    /// Moves the clock; it never goes back.
    pub fn advance_to(&self, now_ns: u64) {
        self.since_power_on_ns.fetch_max(now_ns, Ordering::AcqRel);
    }

    /// Wall-clock time of power-on in nanoseconds since the Unix epoch.
    pub fn power_on_unix_ns(&self) -> u64 {
        self.power_on_unix_ns
    }

    /// Wall-clock time now in nanoseconds since the Unix epoch.
    pub fn unix_ns(&self) -> u64 {
        self.power_on_unix_ns.saturating_add(self.now_ns())
    }
}
