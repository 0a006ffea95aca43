//! [`Heartbeats`]: whether an ack is fresh.

use std::collections::VecDeque;
use std::time::Duration;

use super::{MonotonicTime, Suspicion};

/// Heartbeats per shortest suspicion time, of either replica.
const PER_SUSPICION: u32 = 5;
/// So much of the suspicion time a heartbeat counts as fresh: the rest is for clocks of hosts that do not run at the same rate.
const FRESH_EIGHTHS: u32 = 7;
/// Heartbeats whose time of sending is remembered; older ones are stale whatever the suspicion time is.
const KEPT: usize = 4096;

/// How long after a heartbeat the next one is due, of either replica.
pub fn heartbeat_interval(suspicion: Suspicion) -> Duration {
    suspicion.min() / PER_SUSPICION
}

/// The heartbeats that a primary has sent on a connection, and how old those are that the secondary says to have heard.
///
/// An ack names the last heartbeat that the secondary had heard when it sent it, and how long after that it will not take over for silence, whatever else it
/// hears ([`Silence::patience`](super::Silence::patience)). So an ack of a heartbeat that was sent clearly less than that ago, by the primary's own
/// clock, is *fresh*: the secondary that sent it cannot have taken over for silence before now.
///
/// A stale ack says nothing: it releases no output, and is no reason to give the secondary up. One that is only slow sends a fresh ack with
/// its next heartbeat; one that has taken over has closed the connection, or falls silent.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    suspicion: Suspicion,
    sent: VecDeque<MonotonicTime>,
    /// Number of the first of `sent`.
    first: u64,
}

impl Heartbeats {
    /// None sent yet.
    pub fn new(suspicion: Suspicion) -> Self {
        Self { suspicion, sent: VecDeque::new(), first: 1 }
    }

    /// Numbers a message that counts as a heartbeat and is sent right away. The first has number 1.
    pub fn number_next(&mut self, now: MonotonicTime) -> u64 {
        self.sent.push_back(now);
        if self.sent.len() > KEPT {
            self.sent.pop_front();
            self.first += 1;
        }
        self.first + self.sent.len() as u64 - 1
    }

    /// Whether an ack is fresh that names heartbeat `heard` and promises so much `patience` after it, of which no more counts than the longest suspicion time.
    /// Heartbeat zero, which was never sent, never is.
    pub fn is_fresh(&self, heard: u64, patience: Duration, now: MonotonicTime) -> bool {
        let patience = patience.min(self.suspicion.max());
        let index = heard.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.sent.get(index)).is_some_and(|&sent| now.since(sent) < patience * FRESH_EIGHTHS / 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_millis(80);

    fn heartbeats() -> Heartbeats {
        Heartbeats::new(Suspicion::up_to(MAX))
    }

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_millis(ms))
    }

    #[test]
    fn an_ack_is_fresh_for_seven_eighths_of_what_it_promises() {
        let mut heartbeats = heartbeats();
        let number = heartbeats.number_next(at(1000));
        assert_eq!(number, 1);
        assert!(heartbeats.is_fresh(number, MAX, at(1069)));
        assert!(!heartbeats.is_fresh(number, MAX, at(1070)));
        assert!(heartbeats.number_next(at(1071)) == 2 && heartbeats.is_fresh(2, MAX, at(1071)));
        // What is promised counts, up to what was agreed upon.
        assert!(heartbeats.is_fresh(number, MAX / 2, at(1034)) && !heartbeats.is_fresh(number, MAX / 2, at(1035)));
        assert!(!heartbeats.is_fresh(number, Duration::MAX, at(1070)));
    }

    #[test]
    fn heartbeats_that_were_not_sent_are_stale() {
        let mut heartbeats = heartbeats();
        assert!(!heartbeats.is_fresh(0, MAX, at(0)) && !heartbeats.is_fresh(1, MAX, at(0)));
        heartbeats.number_next(at(0));
        assert!([0, 2, u64::MAX].iter().all(|&number| !heartbeats.is_fresh(number, MAX, at(0))));
    }

    #[test]
    fn a_long_connection_costs_bounded_memory() {
        let mut heartbeats = heartbeats();
        let numbers = (0..3 * KEPT as u64).map(|ms| heartbeats.number_next(at(ms))).collect::<Vec<_>>();
        assert_eq!(numbers, (1..=3 * KEPT as u64).collect::<Vec<_>>());
        assert_eq!(heartbeats.sent.len(), KEPT);
        assert!(heartbeats.is_fresh(3 * KEPT as u64, MAX, at(3 * KEPT as u64)));
    }
}
