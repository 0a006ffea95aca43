//! [`MonotonicTime`]: what the host's clock says.

use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A reading of the host's monotonic clock: the time since an origin that stays the same while the process lives. Readings of two hosts
/// have nothing to do with each other but what [`PeerClock`](super::PeerClock) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MonotonicTime(Duration);

impl MonotonicTime {
    /// The reading `since_origin` after the origin.
    pub const fn new(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// The time that has passed since `earlier`; none if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The time since the origin.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// Nanoseconds since the origin, to be subtracted from those of another clock.
    pub(super) const fn signed_ns(self) -> i128 {
        self.0.as_nanos() as i128
    }
}

impl Add<Duration> for MonotonicTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}
