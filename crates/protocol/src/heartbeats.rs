//! [`Heartbeats`]: whether an ack is fresh.

use std::collections::VecDeque;
use std::time::Duration;

use super::MonotonicTime;

/// Heartbeats per suspicion time, of either replica.
const PER_SUSPICION: u32 = 5;
/// So much of the suspicion time a heartbeat counts as fresh: the rest is for clocks of hosts that do not run at the same rate.
const FRESH_EIGHTHS: u32 = 7;
/// Heartbeats whose time of sending is remembered; older ones are stale whatever the suspicion time is.
const KEPT: usize = 4096;

/// How long after a heartbeat the next one is due, of either replica.
pub fn heartbeat_interval(suspicion: Duration) -> Duration {
    suspicion / PER_SUSPICION
}

/// The heartbeats that a primary has sent on a connection, and how old those are that the secondary says to have heard.
///
/// An ack names the last heartbeat that the secondary had heard when it sent it. The secondary takes over for silence when it has heard
/// nothing for the suspicion time. So an ack of a heartbeat that was sent clearly less than the suspicion time ago, by the primary's own
/// clock, is *fresh*: the secondary that sent it cannot have taken over for silence before now.
///
/// A stale ack says nothing: it releases no output, and is no reason to give the secondary up. One that is only slow sends a fresh ack with
/// its next heartbeat; one that has taken over has closed the connection, or falls silent.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    suspicion: Duration,
    sent: VecDeque<MonotonicTime>,
    /// Number of the first of `sent`.
    first: u64,
}

impl Heartbeats {
    /// None sent yet.
    pub fn new(suspicion: Duration) -> Self {
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

    /// Whether an ack is fresh that names heartbeat `heard`. Zero, which no heartbeat has, never is.
    pub fn is_fresh(&self, heard: u64, now: MonotonicTime) -> bool {
        let index = heard.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        index
            .and_then(|index| self.sent.get(index))
            .is_some_and(|&sent| now.since(sent) < self.suspicion * FRESH_EIGHTHS / 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSPICION: Duration = Duration::from_millis(80);

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_millis(ms))
    }

    #[test]
    fn an_ack_is_fresh_for_seven_eighths_of_the_suspicion_time() {
        let mut heartbeats = Heartbeats::new(SUSPICION);
        let number = heartbeats.number_next(at(1000));
        assert_eq!(number, 1);
        assert!(heartbeats.is_fresh(number, at(1069)));
        assert!(!heartbeats.is_fresh(number, at(1070)));
        assert!(heartbeats.number_next(at(1071)) == 2 && heartbeats.is_fresh(2, at(1071)));
    }

    #[test]
    fn heartbeats_that_were_not_sent_are_stale() {
        let mut heartbeats = Heartbeats::new(SUSPICION);
        assert!(!heartbeats.is_fresh(0, at(0)) && !heartbeats.is_fresh(1, at(0)));
        heartbeats.number_next(at(0));
        assert!(
            !heartbeats.is_fresh(0, at(0)) && !heartbeats.is_fresh(2, at(0)) && !heartbeats.is_fresh(u64::MAX, at(0))
        );
    }

    #[test]
    fn a_long_connection_costs_bounded_memory() {
        let mut heartbeats = Heartbeats::new(SUSPICION);
        let numbers = (0..3 * KEPT as u64).map(|ms| heartbeats.number_next(at(ms))).collect::<Vec<_>>();
        assert_eq!(numbers, (1..=3 * KEPT as u64).collect::<Vec<_>>());
        assert_eq!(heartbeats.sent.len(), KEPT);
        assert!(heartbeats.is_fresh(3 * KEPT as u64, at(3 * KEPT as u64)));
    }
}
