//! [`GuestClock`], [`PeerClock`]: where a guest's clock goes on when another host takes its VM over.
//!
//! Clocks of two hosts have nothing to do with each other, neither times of day nor monotonic ones. What relates them are messages: one that was
//! sent when its sender's clock said *s*, and was received when its receiver's clock said *r*, says that the sender's clock was at least at *s*
//! then. The secondary says with each ack what its clock says. The primary so knows where that clock is at least, and tells the secondary what
//! the guest's clock shows by it. That is never behind, and ahead by no more than the fastest of the last acks was under way.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::MonotonicTime;

/// For how long the fastest ack counts, at least; it counts for less than twice as long. Hosts' clocks run at slightly different rates, by
/// less than a ten-thousandth.
const WINDOW: Duration = Duration::from_secs(1);

/// What a guest's clock shows when a host's monotonic clock says something. From there on it goes with that host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestClock {
    /// Time since power-on, by the guest's clock.
    pub shows: Duration,
    /// What the host's clock says then.
    pub at: MonotonicTime,
}

impl GuestClock {
    /// What it shows later.
    pub fn at(&self, now: MonotonicTime) -> Duration {
        self.shows.saturating_add(now.since(self.at))
    }

    /// The same clock, seen by the host of `peer`'s clock; nothing as long as that host has not been heard.
    pub fn seen_by(&self, peer: &PeerClock, now: MonotonicTime) -> Option<Self> {
        Some(Self { shows: self.at(now), at: peer.at_least(now)? })
    }

    /// The clock that a guest goes on with at a takeover. `held` is what the state to take over from shows, since it is here: the guest's clock
    /// was further when it was sent, or as far. `told` is what the primary has said last of the guest's clock, by this host's.
    pub fn at_takeover(held: Self, told: Option<Self>, now: MonotonicTime) -> Self {
        told.filter(|told| told.at(now) > held.at(now)).unwrap_or(held)
    }
}

/// What is known of another host's monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerClock {
    /// By how much it is at least ahead of this host's, in nanoseconds: heard since `since`,
    current_ns: Option<i128>,
    /// and in the window before that.
    before_ns: Option<i128>,
    since: MonotonicTime,
}

impl PeerClock {
    /// A message has come that was sent when the other host's clock said `sent_at`.
    pub fn heard(&mut self, sent_at: MonotonicTime, now: MonotonicTime) {
        if now.since(self.since) >= WINDOW {
            self.before_ns = self.current_ns.take();
            self.since = now;
        }
        let ahead_ns = sent_at.signed_ns() - now.signed_ns();
        self.current_ns = self.current_ns.max(Some(ahead_ns));
    }

    /// What it says at least at this moment; nothing before it was heard.
    pub fn at_least(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        let ahead_ns = self.current_ns.max(self.before_ns)?;
        let says_ns = now.signed_ns().saturating_add(ahead_ns).clamp(0, i128::from(u64::MAX)) as u64;
        Some(MonotonicTime::new(Duration::from_nanos(says_ns)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(us: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_micros(us))
    }

    fn guest(shows_us: u64, at_us: u64) -> GuestClock {
        GuestClock { shows: Duration::from_micros(shows_us), at: at(at_us) }
    }

    #[test]
    fn nothing_is_known_of_a_clock_that_was_not_heard() {
        assert_eq!(PeerClock::default().at_least(at(5)), None);
        assert_eq!(guest(1, 1).seen_by(&PeerClock::default(), at(5)), None);
    }

    #[test]
    fn the_fastest_message_counts_until_it_is_old() {
        let mut peer = PeerClock::default();
        // The other clock is 7 s ahead; messages are under way for 300 us, then 20 ms.
        peer.heard(at(7_000_000), at(300));
        peer.heard(at(7_500_000), at(520_000));
        assert_eq!(peer.at_least(at(600_000)), Some(at(7_599_700)));
        peer.heard(at(8_200_000), at(1_220_000));
        assert_eq!(peer.at_least(at(1_300_000)), Some(at(8_299_700)));
        peer.heard(at(9_500_000), at(2_520_000));
        assert_eq!(peer.at_least(at(2_600_000)), Some(at(9_580_000)));
    }

    #[test]
    fn a_silent_host_is_known_by_what_it_said_last() {
        let mut peer = PeerClock::default();
        peer.heard(at(100), at(50_000_000));
        assert_eq!(peer.at_least(at(90_000_000)), Some(at(40_000_100)));
    }

    #[test]
    fn a_guest_goes_on_where_it_is_furthest() {
        let (held, told) = (guest(1000, 50), guest(1200, 20));
        assert_eq!(GuestClock::at_takeover(held, Some(told), at(100)), told);
        // A primary whose guest ran ahead of its host's clock when the state was saved, or that says nonsense.
        assert_eq!(GuestClock::at_takeover(held, Some(guest(900, 60)), at(100)), held);
        assert_eq!(GuestClock::at_takeover(held, Some(guest(0, u64::MAX / 1000)), at(100)), held);
        assert_eq!(GuestClock::at_takeover(held, None, at(100)), held);
    }

    proptest! {
        /// Whatever the two clocks say, and however long acks and states are under way.
        #[test]
        fn a_taken_over_guest_is_never_behind_and_little_ahead(
            ours_us in 0..10_000_000_000u64,
            peers_us in 0..10_000_000_000u64,
            power_on_us in 0..1_000_000u64,
            acks in prop::collection::vec((0..900_000u64, 10..50_000u64), 1..40),
            silence_us in 0..1_000_000u64,
        ) {
            // Real time in us; each host's clock is that and an offset.
            let (ours, peers) = (|real| at(ours_us + real), |real| at(peers_us + real));
            let mut peer = PeerClock::default();
            let mut arrivals: Vec<_> = acks.iter().map(|&(sent, transit)| (sent + transit, sent)).collect();
            arrivals.sort_unstable();
            for &(arrives, sent) in &arrivals {
                peer.heard(peers(power_on_us + sent), ours(power_on_us + arrives));
            }
            let told_at = power_on_us + arrivals.last().unwrap().0;
            let clock = GuestClock { shows: Duration::ZERO, at: ours(power_on_us) };
            let told = clock.seen_by(&peer, ours(told_at)).unwrap();
            let takeover = told_at + silence_us;
            let shows = told.at(peers(takeover)).as_micros() as u64;
            let real = takeover - power_on_us;
            let slowest = acks.iter().map(|&(_, transit)| transit).max().unwrap();
            prop_assert!(shows >= real, "{shows} of {real}");
            prop_assert!(shows <= real + slowest, "{shows} of {real}");
        }

        #[test]
        fn nothing_that_a_peer_says_overflows(sent in any::<u64>(), now in any::<u64>(), shows in any::<u64>()) {
            let mut peer = PeerClock::default();
            let (sent, now) = (MonotonicTime::new(Duration::from_secs(sent)), MonotonicTime::new(Duration::from_secs(now)));
            peer.heard(sent, now);
            let clock = GuestClock { shows: Duration::from_secs(shows), at: sent };
            clock.seen_by(&peer, now);
            GuestClock::at_takeover(clock, Some(clock), now);
        }
    }
}
