//! [`SegmentUnderWay`]: when a segment of the log ends. [`LogLag`]: how far the secondary is behind the segments that it was sent.

use std::collections::VecDeque;
use std::time::Duration;

use super::MonotonicTime;

/// A segment ends after so long at the latest while the guest runs: what the secondary can execute is never further behind than that.
const SEGMENT_LENGTH_MAX: Duration = Duration::from_millis(5);

/// The segment of the log that is being written.
#[derive(Clone, Copy, Debug)]
pub struct SegmentUnderWay {
    since: MonotonicTime,
    /// Something entered that somebody outside may wait for an answer to.
    is_urgent: bool,
}

/// What a segment holds until now, and who waits for its end.
#[derive(Clone, Copy, Debug)]
pub struct SegmentLoad {
    /// The guest has executed instructions in it, or something entered.
    pub is_new: bool,
    /// The guest has sent something, which waits.
    pub output_waits: bool,
    /// It is about as long as a message can be.
    pub is_full: bool,
}

impl SegmentUnderWay {
    /// One that begins now.
    pub fn new(now: MonotonicTime) -> Self {
        Self { since: now, is_urgent: false }
    }

    /// Something entered that somebody outside may wait for an answer to.
    pub fn urgent_input(&mut self) {
        self.is_urgent = true;
    }

    /// Whether it is to end, with the guest where it is.
    pub fn is_due(&self, load: SegmentLoad, now: MonotonicTime) -> bool {
        let SegmentLoad { is_new, output_waits, is_full } = load;
        output_waits || self.is_urgent || is_full || is_new && now.since(self.since) >= SEGMENT_LENGTH_MAX
    }
}

/// How far the secondary's execution is behind the log that it was sent, as the primary knows it. Places in the log are counted in whatever whoever drives this
/// counts them in: instructions, or segments.
#[derive(Clone, Debug, Default)]
pub struct LogLag {
    reached: u64,
    executed: u64,
    /// Where segments end that were not executed, and when they were sent.
    waiting: VecDeque<(u64, MonotonicTime)>,
}

impl LogLag {
    /// Of a log that begins at `place`.
    pub fn new(place: u64) -> Self {
        Self { reached: place, executed: place, waiting: VecDeque::new() }
    }

    /// A segment is sent that ends at `reached`. One in which the guest did nothing is executed as soon as it is there.
    pub fn sent(&mut self, reached: u64, now: MonotonicTime) {
        if reached > self.reached {
            self.reached = reached;
            self.waiting.push_back((reached, now));
        }
    }

    /// The secondary says that it has executed everything up to `place`. What it said before and comes later turns nothing back.
    pub fn executed(&mut self, place: u64) {
        self.executed = self.executed.max(place);
        while self.waiting.front().is_some_and(|&(reached, _)| reached <= place) {
            self.waiting.pop_front();
        }
    }

    /// Age of the oldest segment that was not executed, as far as is known.
    pub fn age(&self, now: MonotonicTime) -> Duration {
        self.waiting.front().map_or(Duration::ZERO, |&(_, sent_at)| now.since(sent_at))
    }

    /// From where the secondary has executed the log to where it was sent.
    pub fn length(&self) -> u64 {
        self.reached.saturating_sub(self.executed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_millis(ms))
    }

    #[test]
    fn a_segment_ends_for_whoever_waits_and_otherwise_when_it_is_old() {
        let idle = SegmentLoad { is_new: false, output_waits: false, is_full: false };
        let mut segment = SegmentUnderWay::new(at(10));
        assert!(!segment.is_due(idle, at(1000)), "nothing is in it");
        assert!(!segment.is_due(SegmentLoad { is_new: true, ..idle }, at(14)));
        assert!(segment.is_due(SegmentLoad { is_new: true, ..idle }, at(15)));
        assert!(segment.is_due(SegmentLoad { output_waits: true, ..idle }, at(10)));
        assert!(segment.is_due(SegmentLoad { is_full: true, ..idle }, at(10)));
        segment.urgent_input();
        assert!(segment.is_due(idle, at(10)));
    }

    #[test]
    fn lag_is_the_age_of_what_was_not_executed() {
        let mut lag = LogLag::new(100);
        assert_eq!((lag.age(at(5)), lag.length()), (Duration::ZERO, 0));
        lag.sent(200, at(10));
        lag.sent(300, at(20));
        assert_eq!((lag.age(at(25)), lag.length()), (Duration::from_millis(15), 200));
        lag.executed(250);
        assert_eq!((lag.age(at(25)), lag.length()), (Duration::from_millis(5), 50));
        lag.executed(300);
        assert_eq!((lag.age(at(25)), lag.length()), (Duration::ZERO, 0));
        lag.executed(200);
        assert_eq!(lag.length(), 0, "a stale message does not turn it back");
    }

    #[test]
    fn an_idle_guest_does_not_lag() {
        let mut lag = LogLag::new(100);
        lag.sent(100, at(10));
        assert_eq!(lag.age(at(500)), Duration::ZERO);
    }
}
