//! [`Silence`]: whether the other replica is silent.

use std::time::Duration;

use super::MonotonicTime;

/// How often per suspicion time it is looked whether the other replica is silent.
const LOOKS_PER_SUSPICION: u32 = 4;

/// For how long nothing has come from the other replica. Both replicas watch each other so.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    suspicion: Duration,
    last_heard: MonotonicTime,
}

/// How to look for a message of the other replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Wait so long for one; if none comes, look again.
    For(Duration),
    /// See whether one is there already. If none is, the other replica is [silent](super::LossReason::Silent). Whoever was kept from
    /// running for long finds this after what it slept through, which lies there.
    Last,
}

impl Look {
    /// How long to wait for a message.
    pub fn wait(self) -> Duration {
        match self {
            Self::For(duration) => duration,
            Self::Last => Duration::ZERO,
        }
    }
}

impl Silence {
    /// Nothing has come since `now`, when the connection was made.
    pub fn new(suspicion: Duration, now: MonotonicTime) -> Self {
        Self { suspicion, last_heard: now }
    }

    /// Something came.
    pub fn heard(&mut self, now: MonotonicTime) {
        self.last_heard = now;
    }

    /// When something came last.
    pub fn last_heard(&self) -> MonotonicTime {
        self.last_heard
    }

    /// How to look next.
    pub fn look(&self, now: MonotonicTime) -> Look {
        if now.since(self.last_heard) > self.suspicion {
            Look::Last
        } else {
            Look::For(self.suspicion / LOOKS_PER_SUSPICION)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_replica_is_silent_after_the_suspicion_time_and_not_before() {
        let suspicion = Duration::from_millis(100);
        let at = |ms| MonotonicTime::new(Duration::from_millis(ms));
        let mut silence = Silence::new(suspicion, at(1000));
        assert_eq!(silence.look(at(1100)), Look::For(suspicion / 4));
        assert_eq!(silence.look(at(1101)), Look::Last);
        silence.heard(at(1101));
        assert_eq!(silence.look(at(1201)), Look::For(suspicion / 4));
    }
}
