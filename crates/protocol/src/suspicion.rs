//! [`Suspicion`]: after how much silence a replica takes the other one for lost.

use std::time::Duration;

/// For so many longest suspicion times a link is looked at before anything is made of what was seen.
const LEARNED_AFTER_SUSPICIONS: u32 = 32;

/// What an administrator sets of the suspicion time: [`Silence`](super::Silence) finds it between these bounds, by what it has seen of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    min: Duration,
    max: Duration,
    learned_after: Duration,
}

impl Suspicion {
    /// At least `min` and at most `max`, which is no less.
    pub fn between(min: Duration, max: Duration) -> Self {
        Self { min: min.min(max), max, learned_after: max * LEARNED_AFTER_SUSPICIONS }
    }

    /// At most `max`, and at least three quarters of that: what counts unless somebody says otherwise.
    pub fn up_to(max: Duration) -> Self {
        Self::between(max * 3 / 4, max)
    }

    /// The same, for links that are looked at for so long before anything is made of what was seen.
    #[must_use]
    pub fn learned_after(self, learned_after: Duration) -> Self {
        Self { learned_after, ..self }
    }

    /// For how long a link is looked at before anything is made of what was seen.
    pub(super) fn learning_time(self) -> Duration {
        self.learned_after
    }

    /// At least so much silence.
    pub fn min(self) -> Duration {
        self.min
    }

    /// At most so much silence, as long as whoever listens is not kept from running itself.
    pub fn max(self) -> Duration {
        self.max
    }
}
