//! How long a member of etcd may take to answer.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How long one member may take to answer before the next one is asked, where members answer as they should: as long as it takes until a leader that is lost has a
/// successor, on a local network. What a member has passed on to the lost one is lost too, and nobody tells; so a takeover waits for this.
const TIMEOUT_MIN: Duration = Duration::from_millis(150);
/// The longest that it may take where all of them are slow, as on machines that are loaded to the brim.
const TIMEOUT_MAX: Duration = Duration::from_secs(4);
/// How many times longer than the last answer took the next one may take.
const MARGIN: u32 = 4;

/// Follows how fast members answer. One that is silent costs [`TIMEOUT_MIN`], since another one answers then; when all were silent for that long in turn, each is
/// given twice as long, as otherwise members that are slow would never be heard.
pub struct Pace {
    timeout_ms: AtomicU64,
    /// How many members in turn were silent for that long.
    silent: AtomicUsize,
    members: usize,
}

impl Pace {
    /// That of members of which nothing is known.
    pub fn new(members: usize) -> Self {
        Self { timeout_ms: AtomicU64::new(millis(TIMEOUT_MIN)), silent: AtomicUsize::new(0), members }
    }

    /// How long a member may take now.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed))
    }

    /// A member has answered, after this time.
    pub fn answered(&self, after: Duration) {
        self.silent.store(0, Ordering::Relaxed);
        let wanted = after.saturating_mul(MARGIN).max(self.timeout() / 2);
        self.timeout_ms.store(millis(wanted.clamp(TIMEOUT_MIN, TIMEOUT_MAX)), Ordering::Relaxed);
    }

    /// A member has not answered in the time that it was given.
    pub fn silent(&self) {
        if self.silent.fetch_add(1, Ordering::Relaxed) + 1 >= self.members {
            self.silent.store(0, Ordering::Relaxed);
            let wanted = self.timeout().saturating_mul(2).min(TIMEOUT_MAX);
            self.timeout_ms.store(millis(wanted), Ordering::Relaxed);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_is_silent_costs_what_it_did_before() {
        let pace = Pace::new(3);
        for _ in 0..10 {
            pace.silent();
            pace.silent();
            pace.answered(Duration::from_millis(3));
        }
        assert_eq!(pace.timeout(), TIMEOUT_MIN);
    }

    #[test]
    fn members_that_are_all_slow_are_waited_for_and_not_without_end() {
        let pace = Pace::new(3);
        let rounds = |count: u32| (0..3 * count).for_each(|_| pace.silent());
        rounds(1);
        assert_eq!(pace.timeout(), 2 * TIMEOUT_MIN);
        rounds(9);
        assert_eq!(pace.timeout(), TIMEOUT_MAX);
        // As long as they are slow, each is given the time that it needs.
        pace.answered(Duration::from_millis(900));
        assert_eq!(pace.timeout(), Duration::from_millis(3600));
        pace.answered(Duration::from_secs(3));
        assert_eq!(pace.timeout(), TIMEOUT_MAX);
        (0..5).for_each(|_| pace.answered(Duration::from_millis(3)));
        assert_eq!(pace.timeout(), TIMEOUT_MIN);
    }
}
