//! [`FailedRequests`]: what a guest hears of requests to its disks that fail.

use std::time::Duration;

/// How long a request that has failed is held before it is tried again.
pub const REQUEST_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How a request to a disk has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    /// The disk refuses it for what it is, as a write beyond the disk's end: the fault is the guest's.
    Refused,
    /// It was a flush. What was written before may be lost though later ones succeed: hosts forget what they could not write.
    Flush,
    /// The host's disk has failed, or is full.
    Other,
}

/// What becomes of a request that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// The guest is answered that it has failed.
    Answer,
    /// It is held, and tried again after so long: doing a request twice leaves what doing it once does.
    TryAgain(Duration),
    /// It is held, as is everything that is asked of this disk from now on, until the guest is over: it must not go on from a disk that may have lost
    /// what it takes to be stable.
    HoldForGood,
}

/// Whether a guest hears of it when its host's disks fail. A guest that did would mount its file systems read-only or panic, and its secondary, whose
/// disks are sound, with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailedRequests {
    /// It does: nobody can do anything about it, as in a process that only copies.
    #[default]
    Answered,
    /// It does not, as it runs on a primary: its requests are held.
    Held,
    /// It is over, and whatever was held fails: nobody waits for an answer any more.
    Abandoned,
}

impl FailedRequests {
    /// The guest is over.
    #[must_use]
    pub fn after_guest(self) -> Self {
        if self == Self::Held { Self::Abandoned } else { self }
    }

    /// What becomes of a request that has failed so.
    pub fn after(self, failure: RequestFailure) -> AfterFailure {
        match (self, failure) {
            (Self::Answered | Self::Abandoned, _) | (Self::Held, RequestFailure::Refused) => AfterFailure::Answer,
            (Self::Held, RequestFailure::Flush) => AfterFailure::HoldForGood,
            (Self::Held, RequestFailure::Other) => AfterFailure::TryAgain(REQUEST_RETRY_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_on_a_primary_hears_of_its_own_faults_alone() {
        let held = FailedRequests::Held;
        assert_eq!(held.after(RequestFailure::Refused), AfterFailure::Answer);
        assert_eq!(held.after(RequestFailure::Other), AfterFailure::TryAgain(REQUEST_RETRY_INTERVAL));
        assert_eq!(held.after(RequestFailure::Flush), AfterFailure::HoldForGood);
    }

    #[test]
    fn nothing_is_held_for_nobody() {
        assert_eq!(FailedRequests::Held.after_guest(), FailedRequests::Abandoned);
        assert_eq!(FailedRequests::Answered.after_guest(), FailedRequests::Answered);
        for policy in [FailedRequests::Answered, FailedRequests::Abandoned] {
            for failure in [RequestFailure::Refused, RequestFailure::Flush, RequestFailure::Other] {
                assert_eq!(policy.after(failure), AfterFailure::Answer);
            }
        }
    }
}
