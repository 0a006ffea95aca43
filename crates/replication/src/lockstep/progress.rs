//! [`LogProgress`]: how far the secondary is behind the log that it was sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use protocol::{LogLag, MonotonicTime};

use super::figures::LockstepFigures;

/// Over which time the bandwidth is taken.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// How far the secondary is behind the log that it was sent, as the primary knows it.
#[derive(Debug)]
pub struct LogProgress {
    /// From when on times are counted.
    begun: Instant,
    lag: LogLag,
    digests: u64,
    log_bytes: u64,
    inbound_bytes: u64,
    segments: u64,
    /// When segments were sent lately, and how long they were.
    recent: VecDeque<(Instant, usize)>,
    recent_bytes: usize,
}

impl LogProgress {
    /// A log that begins at `instructions`.
    pub fn new(instructions: u64) -> Self {
        Self {
            begun: Instant::now(),
            lag: LogLag::new(instructions),
            digests: 0,
            log_bytes: 0,
            inbound_bytes: 0,
            segments: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
        }
    }

    /// A segment of `bytes` bytes is sent, which ends at `reached` and holds frames of `inbound_bytes` bytes.
    pub fn sent(&mut self, reached: u64, bytes: usize, inbound_bytes: u64) {
        let now = Instant::now();
        self.segments += 1;
        self.log_bytes += bytes as u64;
        self.inbound_bytes += inbound_bytes;
        self.lag.sent(reached, self.now());
        self.recent.push_back((now, bytes));
        self.recent_bytes += bytes;
        while let Some(&(at, bytes)) = self.recent.front()
            && now.saturating_duration_since(at) > RATE_WINDOW
        {
            self.recent.pop_front();
            self.recent_bytes -= bytes;
        }
    }

    /// The secondary says how far it is.
    pub fn executed(&mut self, instructions: u64, digests: u64) {
        self.lag.executed(instructions);
        self.digests = digests;
    }

    fn now(&self) -> MonotonicTime {
        MonotonicTime::new(self.begun.elapsed())
    }

    /// Age of the oldest segment that was not executed, as far as is known.
    pub fn lag(&self) -> Duration {
        self.lag.age(self.now())
    }

    /// What `twinvm top` shows.
    pub fn figures(&self, divergences: u64) -> LockstepFigures {
        let now = Instant::now();
        let recent = self.recent.iter().filter(|(at, _)| now.saturating_duration_since(*at) <= RATE_WINDOW);
        let recent_bytes: usize = recent.map(|(_, bytes)| bytes).sum();
        LockstepFigures {
            lag_instructions: self.lag.length(),
            lag_ms: self.lag().as_secs_f64() * 1e3,
            log_bytes: self.log_bytes,
            log_bits_per_s: recent_bytes as f64 * 8.0 / RATE_WINDOW.as_secs_f64(),
            inbound_bytes: self.inbound_bytes,
            segments: self.segments,
            digests: self.digests,
            divergences,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_all_segments_and_of_the_last_word_of_the_secondary() {
        let mut progress = LogProgress::new(100);
        progress.sent(200, 10, 0);
        progress.sent(300, 10, 4);
        progress.executed(250, 1);
        assert_eq!(progress.figures(0).lag_instructions, 50);
        progress.executed(300, 1);
        let figures = progress.figures(2);
        assert_eq!((figures.lag_instructions, figures.log_bytes, figures.inbound_bytes), (0, 20, 4));
        assert_eq!((figures.segments, figures.digests, figures.divergences), (2, 1, 2));
    }
}
