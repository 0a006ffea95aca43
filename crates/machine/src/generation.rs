//! [`GenerationId`]: by which a guest knows whether it is the only one that goes on from what it remembers.
//!
//! The specification is Microsoft's "Virtual Machine Generation ID" (2012); Linux' driver is `drivers/virt/vmgenid.c`. The ID lies in guest memory
//! ([`map::GENERATION_ID`]), so whatever copies a VM copies it: a secondary that takes over is the same VM, and a reset keeps it. A VM that is
//! restored from a snapshot gets a new one, as it may be the second that goes on from there: its kernel is told, and makes its random numbers
//! others than those of the first.

use std::io;

use memory::{GuestRam, MemoryError};

use crate::devices::virtio::rng::{EntropySource, OsEntropy};
use crate::map;

/// What is to be known of a snapshot whose guest does not heed its generation ID, as a whole sentence.
pub const NOT_HEEDED: &str = "the guest does not notice that it is restored, as its kernel has no driver for the VM generation ID (CONFIG_VMGENID, or not loaded): \
                              until it takes new entropy, in a minute at most, its random numbers are those of every other restore of this snapshot";

/// A VM generation ID: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationId([u8; 16]);

impl GenerationId {
    /// One that no VM has had.
    ///
    /// # Errors
    /// If the host gives no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut id = [0; 16];
        OsEntropy::open()?.fill(&mut id)?;
        Ok(Self(id))
    }

    /// The one that a guest has in its memory. None, if that is of a VM that was powered on without one.
    pub fn of(ram: &GuestRam) -> Option<Self> {
        let mut id = [0; 16];
        ram.read_bytes(map::GENERATION_ID, &mut id).ok()?;
        (id != [0; 16]).then_some(Self(id))
    }

    /// Puts it into a guest's memory.
    pub(crate) fn write(self, ram: &GuestRam) -> Result<(), MemoryError> {
        ram.write_bytes(map::GENERATION_ID, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_the_one_that_it_was_given_and_each_is_another() {
        let ram = GuestRam::new(2 << 20).unwrap();
        assert_eq!(GenerationId::of(&ram), None);
        let (first, second) = (GenerationId::random().unwrap(), GenerationId::random().unwrap());
        assert_ne!(first, second);
        for id in [first, second] {
            id.write(&ram).unwrap();
            assert_eq!(GenerationId::of(&ram), Some(id));
        }
        assert!(first.write(&GuestRam::new(4096).unwrap()).is_err());
    }
}
