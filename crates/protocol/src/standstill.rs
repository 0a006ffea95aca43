//! [`Standstill`]: why a primary's guest stands still, and what is done meanwhile.

/// What comes before everything else while a guest stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standstill {
    /// The guest does not run here any more.
    Over,
    /// The secondary is to take over: the guest waits for that, as long as [`super::Patience::hands_over`] has it. No epoch ends any more.
    HandOver,
    /// Its disks are broken: the guest waits until they are sound, and nothing is captured of it.
    DisksBroken,
    /// What [`super::Epochs::decide`] says.
    Epoch,
}

impl Standstill {
    /// What comes first. `is_over`: the guest has ended, was ended, or goes on elsewhere. `hands_over`: since the hand-over was asked for, or
    /// [`super::Command::AskToTakeOver`], until [`super::Command::Resume`]. `has_broken_disks`: as [`super::DiskWatch`] has found.
    pub fn of(is_over: bool, hands_over: bool, has_broken_disks: bool) -> Self {
        match (is_over, hands_over, has_broken_disks) {
            (true, _, _) => Self::Over,
            (false, true, _) => Self::HandOver,
            (false, false, true) => Self::DisksBroken,
            (false, false, false) => Self::Epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_go_on_only_while_nothing_else_keeps_the_guest() {
        assert_eq!(Standstill::of(false, false, false), Standstill::Epoch);
        assert_eq!(Standstill::of(false, false, true), Standstill::DisksBroken);
        // A secondary that does not take over is given up, whatever the disks do.
        for has_broken_disks in [false, true] {
            assert_eq!(Standstill::of(false, true, has_broken_disks), Standstill::HandOver);
            for hands_over in [false, true] {
                assert_eq!(Standstill::of(true, hands_over, has_broken_disks), Standstill::Over);
            }
        }
    }
}
