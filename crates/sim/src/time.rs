//! Time, as an observer outside of all hosts measures it, and the hosts' clocks.

use std::time::Duration;

use protocol::MonotonicTime;

/// Nanoseconds since the simulation began, or between two moments.
pub(crate) type Nanoseconds = u64;

pub(crate) const MICROSECOND: Nanoseconds = 1_000;
pub(crate) const MILLISECOND: Nanoseconds = 1_000_000;

/// How far the rate of a host's clock may be off, in parts per million: as far as Linux lets NTP steer it (`adjtimex(2)`). Two clocks can
/// disagree by a thousandth of the suspicion time then. A secondary that takes over has to ask the store first, which takes longer than that.
pub(crate) const RATE_ERROR_PPM_MAX: i64 = 500;

/// As the simulation counts it.
pub(crate) fn nanoseconds(duration: Duration) -> Nanoseconds {
    Nanoseconds::try_from(duration.as_nanos()).unwrap_or(Nanoseconds::MAX)
}

/// The monotonic clock of a host. It goes on while a process is stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub rate_error_ppm: i64,
}

impl Clock {
    /// How long something took by this clock.
    pub fn measures(self, true_duration: Nanoseconds) -> Nanoseconds {
        true_duration.saturating_add_signed(true_duration as i64 * self.rate_error_ppm / 1_000_000)
    }

    /// What it says at the true time `now`.
    pub fn reads(self, now: Nanoseconds) -> MonotonicTime {
        MonotonicTime::new(Duration::from_nanos(self.measures(now)))
    }

    /// How long a timer of this clock really takes.
    pub fn waits(self, duration: Nanoseconds) -> Nanoseconds {
        duration.saturating_add_signed(-(duration as i64) * self.rate_error_ppm / 1_000_000)
    }
}
