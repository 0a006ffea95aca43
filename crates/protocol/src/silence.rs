//! [`Silence`]: whether the other replica is silent.

use std::time::Duration;

use super::{MonotonicTime, Suspicion};

/// How often per longest suspicion time it is looked at least whether the other replica is silent.
const LOOKS_PER_SUSPICION: u32 = 4;
/// The shortest wait for a message.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// So many times the longest gap that was seen lately is more than a gap: what keeps a sender from sending once, as another process on its processors, keeps it
/// so for about as long the next time, and now and then for twice as long.
const LONGEST_GAPS: u32 = 3;
/// Of so many parts of the past, each so many of the longest suspicion times long, the longest gap is known. What has fallen out of them is forgotten.
const PARTS: usize = 64;
const PART_SUSPICIONS: u32 = 64;

/// For how long nothing has come from the other replica, and for how long that may go on before it is taken for lost. Both replicas watch each other so.
///
/// The suspicion time follows the link: it is a multiple of the longest gap between two messages that was seen lately, within the bounds of [`Suspicion`]. The
/// longest gap rather than a mean and a variance, as detectors by accrual take it: gaps come from processors that are busy and links that are
/// full, are far from any bell curve, and the longest is what matters.
///
/// - Time in which whoever listens was itself kept from running is no silence of the other one's, up to another longest suspicion time.
/// - A deadline that was given is kept: what is [promised](Self::patience) for a message holds though the suspicion time falls with the next one. The primary
///   counts on it ([`Heartbeats`](super::Heartbeats)).
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    suspicion: Suspicion,
    /// The longest gap of each part.
    longest: [Duration; PARTS],
    /// The longest of them, since it is asked for with each message.
    longest_gap: Duration,
    part: usize,
    part_since: MonotonicTime,
    known_from: MonotonicTime,
    last_heard: MonotonicTime,
    /// Before this the other replica is not silent.
    deadline: MonotonicTime,
    /// Until when it was to be waited at the last look.
    wait_until: Option<MonotonicTime>,
    /// For how long in this silence whoever listens was kept from running.
    kept: Duration,
}

/// What the way to the other replica was like, and what is made of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// How much silence makes the other replica suspect.
    pub suspicion_time: Duration,
    /// The longest gap between two messages that is remembered.
    pub longest_gap: Duration,
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
    pub fn new(suspicion: Suspicion, now: MonotonicTime) -> Self {
        Self {
            suspicion,
            longest: [Duration::ZERO; PARTS],
            longest_gap: Duration::ZERO,
            part: 0,
            part_since: now,
            known_from: now + suspicion.learning_time(),
            last_heard: now,
            deadline: now + suspicion.max(),
            wait_until: None,
            kept: Duration::ZERO,
        }
    }

    /// Something came.
    pub fn heard(&mut self, now: MonotonicTime) {
        self.part_at(now);
        let gap = now.since(self.last_heard).saturating_sub(self.kept);
        if let Some(longest) = self.longest.get_mut(self.part) {
            *longest = gap.max(*longest);
        }
        self.longest_gap = gap.max(self.longest_gap);
        (self.last_heard, self.wait_until, self.kept) = (now, None, Duration::ZERO);
        self.deadline = self.deadline.max(now + self.suspicion_time(now));
    }

    /// Goes on to the part of time that `now` is in.
    fn part_at(&mut self, now: MonotonicTime) {
        let length = self.suspicion.max() * PART_SUSPICIONS;
        // After a long sleep all that was known is forgotten, and not more.
        for _ in 0..PARTS {
            if now.since(self.part_since) < length {
                return;
            }
            self.part = (self.part + 1) % PARTS;
            self.part_since = self.part_since + length;
            if let Some(longest) = self.longest.get_mut(self.part) {
                *longest = Duration::ZERO;
            }
            self.longest_gap = self.longest.iter().max().copied().unwrap_or_default();
        }
        self.part_since = now;
    }

    /// How much silence makes the other replica suspect, by what is known at `now`.
    fn suspicion_time(&self, now: MonotonicTime) -> Duration {
        if now < self.known_from {
            return self.suspicion.max();
        }
        (self.longest_gap * LONGEST_GAPS).clamp(self.suspicion.min(), self.suspicion.max())
    }

    /// What is to be shown of it.
    pub fn watched(&self, now: MonotonicTime) -> Watched {
        Watched { suspicion_time: self.suspicion_time(now), longest_gap: self.longest_gap }
    }

    /// How long after the last message the other replica is not taken for lost for its silence, whatever comes: what may be promised to it.
    pub fn patience(&self) -> Duration {
        self.deadline.since(self.last_heard)
    }

    /// When something came last.
    pub fn last_heard(&self) -> MonotonicTime {
        self.last_heard
    }

    /// How to look next. It is to be called again at once when the wait that it answers is over.
    pub fn look(&mut self, now: MonotonicTime) -> Look {
        if let Some(until) = self.wait_until.take() {
            let kept = now.since(until).min(self.suspicion.max().saturating_sub(self.kept));
            self.kept += kept;
            self.deadline = self.deadline + kept;
        }
        if now > self.deadline {
            return Look::Last;
        }
        let longest = self.suspicion.max() / LOOKS_PER_SUSPICION;
        let wait = self.deadline.since(now).min(longest).max(WAIT_MIN);
        self.wait_until = Some(now + wait);
        Look::For(wait)
    }
}

#[cfg(test)]
mod tests;
