//! The host's monotonic clock, as the protocol reads it.

use std::sync::LazyLock;
use std::time::Instant;

use machine::clock::ClockReading;
use protocol::{GuestClock, MonotonicTime};

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What the clock says.
pub(super) fn now() -> MonotonicTime {
    MonotonicTime::new(ORIGIN.elapsed())
}

/// What a VM's clock shows, as the protocol reads it.
pub(super) fn of_guest(reading: ClockReading) -> GuestClock {
    GuestClock { shows: reading.shows, at: MonotonicTime::new(reading.at.saturating_duration_since(*ORIGIN)) }
}

/// The same for the VM.
pub(super) fn reading(clock: GuestClock) -> ClockReading {
    let now = now();
    ClockReading { shows: clock.at(now), at: *ORIGIN + now.since_origin() }
}
