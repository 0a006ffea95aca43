//! [`DiskCopy`]: what a host's copy of a VM's disks is, what a secondary notes of its own, and whether a VM may start from one.

use super::Generation;

/// What a host's copy of a VM's disks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskCopy {
    /// A first copy to it has begun and not ended: it holds parts of different times.
    Incomplete {
        /// The primary's generation; [`Generation::NONE`] where it is not known yet.
        generation: Generation,
    },
    /// It is what the VM's disks were at some time of this generation, or what a power failure leaves of that.
    Consistent {
        /// The generation in which the disks were so.
        generation: Generation,
    },
}

/// What a secondary notes of its copy, and when, so that a power failure at any instant leaves a copy that is noted to be incomplete or one that is
/// consistent.
#[derive(Clone, Copy, Debug)]
pub struct CopyNotes {
    /// The primary's, when it connected.
    generation: Generation,
    /// That the copy is incomplete is noted.
    is_noted: bool,
    /// The first checkpoint was applied.
    is_whole: bool,
}

/// Why no VM starts from a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStartable {
    /// It holds parts of different times.
    #[error("it is incomplete")]
    Incomplete,
    /// Nothing says what it is, and it is not the newest.
    #[error("nothing says whether it is whole")]
    Unknown,
}

impl CopyNotes {
    /// Of a copy of the disks of a primary of this generation, which has just connected.
    pub fn new(generation: Generation) -> Self {
        Self { generation, is_noted: false, is_whole: false }
    }

    /// Part of a first copy is about to be written to the disks. What is to be noted, and on stable storage, before that.
    pub fn before_part(&mut self) -> Option<DiskCopy> {
        let is_noted = std::mem::replace(&mut self.is_noted, true);
        (!is_noted).then_some(DiskCopy::Incomplete { generation: self.generation })
    }

    /// What a checkpoint says of the disks was handed over to be applied. What is to be noted once that, and all before it, is on stable
    /// storage.
    pub fn after_checkpoint(&mut self) -> Option<DiskCopy> {
        let was_whole = std::mem::replace(&mut self.is_whole, true);
        (!was_whole).then_some(DiskCopy::Consistent { generation: self.generation })
    }

    /// The store names this replica in `generation`, after its first checkpoint. What is to be noted, likewise.
    pub fn after_entitled(&mut self, generation: Generation) -> DiskCopy {
        self.generation = generation;
        DiskCopy::Consistent { generation }
    }
}

/// Whether a VM may start from a copy of which `copy` is noted. `is_forced`: it is not the copy of the host that ran the VM last. Folders from
/// before there were notes have none.
///
/// # Errors
/// [`NotStartable`].
pub fn may_start(copy: Option<DiskCopy>, is_forced: bool) -> Result<(), NotStartable> {
    match copy {
        Some(DiskCopy::Consistent { .. }) => Ok(()),
        Some(DiskCopy::Incomplete { .. }) => Err(NotStartable::Incomplete),
        None if is_forced => Err(NotStartable::Unknown),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_incomplete_from_its_first_part_to_its_first_checkpoint() {
        let (old, new) = (Generation::new(4), Generation::new(5));
        let mut notes = CopyNotes::new(old);
        assert_eq!(notes.before_part(), Some(DiskCopy::Incomplete { generation: old }));
        assert_eq!(notes.before_part(), None);
        assert_eq!(notes.after_checkpoint(), Some(DiskCopy::Consistent { generation: old }));
        assert_eq!(notes.after_checkpoint(), None);
        assert_eq!(notes.after_entitled(new), DiskCopy::Consistent { generation: new });
    }

    #[test]
    fn nothing_starts_from_parts_and_nothing_is_forced_to_start_from_what_nobody_knows() {
        let generation = Generation::new(4);
        for is_forced in [false, true] {
            assert_eq!(may_start(Some(DiskCopy::Consistent { generation }), is_forced), Ok(()));
            assert_eq!(may_start(Some(DiskCopy::Incomplete { generation }), is_forced), Err(NotStartable::Incomplete));
        }
        assert_eq!(may_start(None, false), Ok(()));
        assert_eq!(may_start(None, true), Err(NotStartable::Unknown));
    }
}
