//! The host's monotonic clock, as the protocol reads it.

use std::sync::LazyLock;
use std::time::Instant;

use protocol::MonotonicTime;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What the clock says.
pub(super) fn now() -> MonotonicTime {
    MonotonicTime::new(ORIGIN.elapsed())
}
