//! [`Pace`]: the guest's clock beside the host's.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::clock::ClockReading;

/// Keeps the guest's clock at the pace of the host's: the instructions alone count for less time than they take, and pauses for none.
///
/// It starts once, when the engine is made or before it first runs, and all that it says is relative to that: neither time between two runs nor
/// what rounding would leave is ever lost, however often the VM is paused. The time in which the host's machine was suspended, when its monotonic clock stands
/// still, counts as well.
pub(super) struct Pace {
    host_start: Instant,
    tsc_start: u64,
    /// How long the host had been suspended by then, at the most.
    suspended_start: Duration,
    /// How long it has been by now, at the least.
    suspended: fn() -> Duration,
}

impl Pace {
    pub fn new(tsc: u64) -> Self {
        Self { host_start: Instant::now(), tsc_start: tsc, suspended_start: suspended_max(), suspended: suspended_min }
    }

    pub fn of(clock: ClockReading) -> Self {
        let shows = u64::try_from(clock.shows.as_nanos()).unwrap_or(u64::MAX);
        Self { host_start: clock.at, ..Self::new(shows) }
    }

    /// The TSC that belongs to a moment, which is hardly past; a tick is a nanosecond.
    pub fn tsc_at(&self, moment: Instant) -> u64 {
        let elapsed = moment.saturating_duration_since(self.host_start);
        let elapsed = elapsed.saturating_add((self.suspended)().saturating_sub(self.suspended_start));
        self.tsc_start.saturating_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    fn tsc_now(&self) -> u64 {
        self.tsc_at(Instant::now())
    }

    /// How many ticks the guest's clock is behind, if any.
    pub fn behind(&self, tsc: u64) -> Option<u64> {
        self.tsc_now().checked_sub(tsc).filter(|&ticks| ticks > 0)
    }

    /// Host time until the guest's clock reaches `deadline_tsc`.
    pub fn until(&self, deadline_tsc: u64) -> Duration {
        Duration::from_nanos(deadline_tsc.saturating_sub(self.tsc_now()))
    }
}

/// How long the host's machine has been suspended since it booted, or longer by what this takes: a guest's clock that went by it would be ahead.
fn suspended_max() -> Duration {
    let monotonic = read(ClockId::Monotonic);
    read(ClockId::Boottime).saturating_sub(monotonic)
}

/// The same, or shorter.
fn suspended_min() -> Duration {
    let with_suspension = read(ClockId::Boottime);
    with_suspension.saturating_sub(read(ClockId::Monotonic))
}

fn read(clock: ClockId) -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    Duration::new(u64::try_from(tv_sec).unwrap_or(0), u32::try_from(tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_not_behind_after_the_host_was_suspended_and_never_ahead() {
        const NIGHT: Duration = Duration::from_secs(8 * 3600);
        let slept = Pace { suspended: || suspended_min() + NIGHT, ..Pace::new(7) };
        let behind = slept.behind(7).unwrap();
        assert!((NIGHT..NIGHT + Duration::from_secs(60)).contains(&Duration::from_nanos(behind)), "{behind}");
        // Of a timer that was due meanwhile nothing is left to wait for.
        assert_eq!(slept.until(NIGHT.as_nanos() as u64), Duration::ZERO);
        let awake = Pace::new(7);
        for _ in 0..100_000 {
            let (shows, elapsed) = (awake.tsc_at(Instant::now()) - 7, awake.host_start.elapsed());
            assert!(u128::from(shows) <= elapsed.as_nanos(), "{shows} ns after {elapsed:?}");
        }
    }
}
