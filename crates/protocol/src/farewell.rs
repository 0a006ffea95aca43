//! [`Farewell`]: how a primary whose guest has ended parts from its secondary.

use std::time::Duration;

use super::MonotonicTime;

/// How long a secondary may take to hear that the guest has ended. One that does not hear takes over from the last checkpoint, and the guest ends again.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// A primary's, from the end of its guest on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Farewell {
    /// When the secondary was told.
    told_at: Option<MonotonicTime>,
}

/// What the primary does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarewellStep {
    /// The primary waits for the secondary.
    Wait,
    /// It tells the secondary that there is nothing to take over, which closes the connection when it has heard.
    Tell,
    /// The primary ends.
    Leave,
}

impl Farewell {
    /// What is next. `is_undecided`: so is this replica ([`super::Replica::is_undecided`]), so that the guest may not have ended. `has_secondary`: there is a connection to one.
    pub fn next(&mut self, is_undecided: bool, has_secondary: bool, now: MonotonicTime) -> FarewellStep {
        match self.told_at {
            None if is_undecided => FarewellStep::Wait,
            None if has_secondary => {
                self.told_at = Some(now);
                FarewellStep::Tell
            }
            Some(told_at) if has_secondary && now.since(told_at) < FAREWELL_MAX => FarewellStep::Wait,
            None | Some(_) => FarewellStep::Leave,
        }
    }

    /// Whether it was told. From then on nobody can say that the guest goes on elsewhere.
    pub fn is_told(&self) -> bool {
        self.told_at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::new(Duration::from_millis(ms))
    }

    #[test]
    fn a_secondary_is_told_once_it_is_decided_who_goes_on_and_has_a_second_to_hear() {
        let mut farewell = Farewell::default();
        assert_eq!(farewell.next(true, false, at(0)), FarewellStep::Wait);
        assert_eq!(farewell.next(true, true, at(5_000)), FarewellStep::Wait);
        assert!(!farewell.is_told());
        assert_eq!(farewell.next(false, true, at(6_000)), FarewellStep::Tell);
        assert!(farewell.is_told());
        assert_eq!(farewell.next(false, true, at(6_999)), FarewellStep::Wait);
        let mut heard = farewell;
        assert_eq!(heard.next(false, false, at(6_999)), FarewellStep::Leave);
        assert_eq!(farewell.next(false, true, at(7_000)), FarewellStep::Leave);
        assert_eq!(Farewell::default().next(false, false, at(0)), FarewellStep::Leave, "it has none");
    }
}
