//! The time, as answers hold it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time span, given in ms, in the largest unit of which it has a few: `12 s`, `5 min`, `3 h`, `4 d`.
pub struct Elapsed(pub u64);

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 / 1000 {
            s @ 0..120 => write!(f, "{s} s"),
            s @ 120..7200 => write!(f, "{} min", s / 60),
            s @ 7200..172_800 => write!(f, "{} h", s / 3600),
            s => write!(f, "{} d", s / 86_400),
        }
    }
}

/// The time in ms since 1970.
pub fn unix_ms_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
