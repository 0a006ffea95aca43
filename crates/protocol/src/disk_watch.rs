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

/// What is to be done about a primary's disks, at each look. While they are broken the guest stands still and no copy is made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAdvice {
    /// Nothing: they are sound.
    GoOn,
    /// They are sound again, and the guest goes on.
    Recovered,
    /// They are broken, and the VM cannot move. The replica is told each time, as a first copy may have begun since.
    Hold {
        /// They were found so just now.
        is_new: bool,
    },
    /// They are broken, and the secondary is asked to take over.
    GiveUp,
}

impl DiskAdvice {
    /// Whether the disks are broken.
    pub fn is_broken(self) -> bool {
        matches!(self, Self::Hold { .. } | Self::GiveUp)
    }
}

/// Looks at the disks of a replica.
#[derive(Clone, Copy, Debug)]
pub struct DiskWatch {
    patience: Duration,
    was_broken: bool,
}

impl DiskWatch {
    /// Disks of which a request that takes longer than `patience` hangs.
    pub fn new(patience: Duration) -> Self {
        Self { patience, was_broken: false }
    }

    /// Whether they are broken: a request has failed, or does not end.
    pub fn is_broken(&self, health: DiskHealth) -> bool {
        health.has_failed || health.waiting >= self.patience
    }

    /// What a primary does: first it stops its guest, if need be, then it tells the replica what [`super::Event::of_disks`] makes of this. `could_move`: the
    /// VM could go on at its secondary ([`super::Replica::could_move`]). One whose disks are broken says so and is no secondary any more.
    pub fn look(&mut self, health: DiskHealth, could_move: bool) -> DiskAdvice {
        let is_broken = self.is_broken(health);
        let was_broken = std::mem::replace(&mut self.was_broken, is_broken);
        match (is_broken, could_move) {
            (false, _) if was_broken => DiskAdvice::Recovered,
            (false, _) => DiskAdvice::GoOn,
            (true, false) => DiskAdvice::Hold { is_new: !was_broken },
            (true, true) => DiskAdvice::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: DiskHealth = DiskHealth { has_failed: false, waiting: Duration::ZERO };
    const FAILED: DiskHealth = DiskHealth { has_failed: true, ..SOUND };

    #[test]
    fn a_failed_request_moves_a_protected_vm_at_once_and_holds_any_other() {
        let watch = || DiskWatch::new(DISK_PATIENCE);
        assert_eq!(watch().look(FAILED, true), DiskAdvice::GiveUp);
        assert_eq!(watch().look(FAILED, false), DiskAdvice::Hold { is_new: true });
        assert_eq!(watch().look(SOUND, true), DiskAdvice::GoOn);
        assert_eq!(watch().look(SOUND, false), DiskAdvice::GoOn);
    }

    #[test]
    fn disks_are_found_broken_once_and_sound_again_once() {
        let mut watch = DiskWatch::new(DISK_PATIENCE);
        let seen = [FAILED, FAILED, SOUND, SOUND].map(|health| watch.look(health, false));
        let (new, old) = (DiskAdvice::Hold { is_new: true }, DiskAdvice::Hold { is_new: false });
        assert_eq!(seen, [new, old, DiskAdvice::Recovered, DiskAdvice::GoOn]);
        assert!(new.is_broken() && DiskAdvice::GiveUp.is_broken() && !DiskAdvice::Recovered.is_broken());
    }

    #[test]
    fn a_request_hangs_when_it_has_taken_longer_than_any_would() {
        let watch = || DiskWatch::new(Duration::from_millis(100));
        let after = |ms| DiskHealth { waiting: Duration::from_millis(ms), ..SOUND };
        for ms in [1, 50, 99] {
            assert_eq!(watch().look(after(ms), true), DiskAdvice::GoOn, "{ms} ms");
        }
        assert_eq!(watch().look(after(100), true), DiskAdvice::GiveUp);
        assert_eq!(watch().look(after(100), false), DiskAdvice::Hold { is_new: true });
    }
}
