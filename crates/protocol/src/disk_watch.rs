//! [`DiskWatch`]: when a replica's disks are broken, and what comes of that.

use std::time::Duration;

/// A request to a disk that has not ended after so long counts as one that never will. Long: flushes of a busy disk take seconds.
pub const DISK_PATIENCE: Duration = Duration::from_secs(15);

/// The disks of a replica, as far as their requests show how they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskHealth {
    /// A request has failed, and is held.
    pub has_failed: bool,
    /// How long the oldest request has been under way that has neither ended nor failed; zero if there is none.
    pub waiting: Duration,
}

/// What is to be done about a primary's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAdvice {
    /// Nothing: they are sound.
    GoOn,
    /// The guest stands still until they are sound again, and no copy is made of them.
    Hold,
    /// The same, and the secondary is asked to take over ([`super::Event::DisksBroken`]).
    GiveUp,
}

/// Looks at the disks of a replica.
#[derive(Clone, Copy, Debug)]
pub struct DiskWatch {
    patience: Duration,
}

impl DiskWatch {
    /// Disks of which a request that takes longer than `patience` hangs.
    pub fn new(patience: Duration) -> Self {
        Self { patience }
    }

    /// Whether they are broken: a request has failed, or does not end.
    pub fn is_broken(&self, health: DiskHealth) -> bool {
        health.has_failed || health.waiting >= self.patience
    }

    /// What a primary does. `could_move`: it is protected, and its secondary says that it reaches its network. One whose disks are broken
    /// says so and is no secondary any more.
    pub fn look(&self, health: DiskHealth, could_move: bool) -> DiskAdvice {
        match (self.is_broken(health), could_move) {
            (false, _) => DiskAdvice::GoOn,
            (true, false) => DiskAdvice::Hold,
            (true, true) => DiskAdvice::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: DiskHealth = DiskHealth { has_failed: false, waiting: Duration::ZERO };

    #[test]
    fn a_failed_request_moves_a_protected_vm_at_once_and_holds_any_other() {
        let watch = DiskWatch::new(DISK_PATIENCE);
        let failed = DiskHealth { has_failed: true, ..SOUND };
        assert_eq!(watch.look(failed, true), DiskAdvice::GiveUp);
        assert_eq!(watch.look(failed, false), DiskAdvice::Hold);
        assert_eq!(watch.look(SOUND, true), DiskAdvice::GoOn);
        assert_eq!(watch.look(SOUND, false), DiskAdvice::GoOn);
    }

    #[test]
    fn a_request_hangs_when_it_has_taken_longer_than_any_would() {
        let watch = DiskWatch::new(Duration::from_millis(100));
        let after = |ms| DiskHealth { waiting: Duration::from_millis(ms), ..SOUND };
        for ms in [1, 50, 99] {
            assert_eq!(watch.look(after(ms), true), DiskAdvice::GoOn, "{ms} ms");
        }
        assert_eq!(watch.look(after(100), true), DiskAdvice::GiveUp);
        assert_eq!(watch.look(after(100), false), DiskAdvice::Hold);
    }
}
