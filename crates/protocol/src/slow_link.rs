//! [`LinkWatch`]: whether the link to a secondary is too slow to protect anything over it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::MonotonicTime;

/// What a link has to carry for an idle VM of one vCPU to be protected over it, in bits per second.
pub const LINK_BITS_PER_S_MIN: u64 = 2_000_000;
/// For how long a link is watched before what it has carried is a rate.
const WINDOW: Duration = Duration::from_secs(5);
/// The same where nothing has come through meanwhile: what is sent as one may take that long.
const WINDOW_OF_NOTHING: Duration = Duration::from_secs(20);
/// A link that nobody looked at for so long may have had nothing to carry.
const GAP_MAX: Duration = Duration::from_secs(2);

/// That a link carries less than [`LINK_BITS_PER_S_MIN`] while there is more to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowLink {
    /// What the link carries, in bits per second.
    pub bits_per_s: u64,
}

/// As in `the secondary takes in 0.50 Mbit/s, and protection needs a link of 2 Mbit/s at least`.
impl fmt::Display for SlowLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (has, needs) = (self.bits_per_s as f64 / 1e6, LINK_BITS_PER_S_MIN as f64 / 1e6);
        write!(f, "the secondary takes in {has:.2} Mbit/s, and protection needs a link of {needs} Mbit/s at least")
    }
}

/// Measures what a link carries while there is more to send than it has carried.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkWatch {
    window: Option<Window>,
    bits_per_s: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    since: MonotonicTime,
    /// When the window began.
    bytes: u64,
    looked_at: MonotonicTime,
}

impl LinkWatch {
    /// There is more to send now, and so many bytes have got to the secondary in all. To be told again and again while that is so.
    pub fn is_busy(&mut self, bytes: u64, now: MonotonicTime) {
        let begun = Window { since: now, bytes, looked_at: now };
        let goes_on = |window: &Window| now.since(window.looked_at) <= GAP_MAX && bytes >= window.bytes;
        let mut window = self.window.filter(goes_on).unwrap_or(begun);
        window.looked_at = now;
        let (took, carried) = (now.since(window.since), bytes - window.bytes);
        if took >= if carried > 0 { WINDOW } else { WINDOW_OF_NOTHING } {
            self.bits_per_s = Some((carried as f64 * 8.0 / took.as_secs_f64()) as u64);
            window = begun;
        }
        self.window = Some(window);
    }

    /// That it is too slow, if it was when it was last busy for long enough.
    pub fn slow(&self) -> Option<SlowLink> {
        self.bits_per_s.filter(|&bits_per_s| bits_per_s < LINK_BITS_PER_S_MIN).map(|bits_per_s| SlowLink { bits_per_s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks each 10 ms at a link of so many bytes per second that is busy for so many ms; `pieces` arrive as a whole.
    fn watch(link: &mut LinkWatch, from_ms: u64, ms: u64, bytes_per_s: u64, piece: u64) {
        for at in (from_ms..from_ms + ms).step_by(10) {
            let bytes = at * bytes_per_s / 1000 / piece * piece;
            link.is_busy(bytes, MonotonicTime::new(Duration::from_millis(at)));
        }
    }

    #[test]
    fn a_link_below_the_minimum_is_named_with_its_rate_and_one_above_is_not() {
        for (bytes_per_s, is_slow) in [(62_500, true), (240_000, true), (260_000, false), (100_000_000, false)] {
            let mut link = LinkWatch::default();
            watch(&mut link, 0, 5000, bytes_per_s, 1000);
            assert_eq!(link.slow(), None, "not for long enough");
            watch(&mut link, 5000, 12_000, bytes_per_s, 1000);
            let slow = link.slow();
            assert_eq!(slow.is_some(), is_slow, "{bytes_per_s}: {slow:?}");
            assert!(slow.is_none_or(|slow| slow.bits_per_s.abs_diff(bytes_per_s * 8) < bytes_per_s / 4), "{slow:?}");
        }
        assert_eq!(
            SlowLink { bits_per_s: 500_000 }.to_string(),
            "the secondary takes in 0.50 Mbit/s, and protection needs a link of 2 Mbit/s at least"
        );
    }

    #[test]
    fn a_link_that_has_little_to_carry_is_not_slow() {
        let mut link = LinkWatch::default();
        for burst in 0..50 {
            watch(&mut link, burst * 10_000, 1500, 1000, 1);
        }
        assert_eq!(link.slow(), None);
    }

    #[test]
    fn a_link_on_which_nothing_comes_through_is_slow_and_one_with_long_pieces_is_measured() {
        let mut link = LinkWatch::default();
        watch(&mut link, 0, 19_000, 8000, 1 << 30);
        assert_eq!(link.slow(), None);
        watch(&mut link, 19_000, 2000, 8000, 1 << 30);
        assert_eq!(link.slow(), Some(SlowLink { bits_per_s: 0 }));
        // A piece takes 16 s.
        let mut link = LinkWatch::default();
        watch(&mut link, 0, 120_000, 8192, 131_072);
        let bits_per_s = link.slow().unwrap().bits_per_s;
        assert!((30_000..300_000).contains(&bits_per_s), "{bits_per_s}");
    }

    #[test]
    fn a_link_that_has_become_fast_is_not_slow_any_more() {
        let mut link = LinkWatch::default();
        watch(&mut link, 0, 12_000, 1000, 1);
        assert!(link.slow().is_some());
        watch(&mut link, 12_000, 12_000, 10_000_000, 1);
        assert_eq!(link.slow(), None);
        // Another session counts anew.
        watch(&mut link, 1000, 1000, 1000, 1);
        assert_eq!(link.slow(), None);
    }
}
