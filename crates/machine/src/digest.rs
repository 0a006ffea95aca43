//! Digests of whole VMs, for comparing two of them.

use std::fmt;

use memory::{GuestRam, PAGE_BYTES};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

/// 128 bits of XXH3: enough against accidents, not against an adversary.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(u128);

impl Digest {
    /// The digest as a number.
    pub fn value(self) -> u128 {
        self.0
    }
}

impl From<u128> for Digest {
    fn from(value: u128) -> Self {
        Self(value)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a [`Digest`].
pub(crate) struct StateHasher(Xxh3);

impl StateHasher {
    pub(crate) fn new() -> Self {
        Self(Xxh3::new())
    }

    pub(crate) fn value(&mut self, value: &impl Serialize) -> Result<(), postcard::Error> {
        self.0.update(&postcard::to_allocvec(value)?);
        Ok(())
    }

    pub(crate) fn memory(&mut self, ram: &GuestRam) {
        let mut page = [0; PAGE_BYTES as usize];
        for number in 0..ram.pages() {
            ram.read_offset(number * PAGE_BYTES, &mut page);
            self.0.update(&page);
        }
    }

    pub(crate) fn finish(&self) -> Digest {
        Digest(self.0.digest128())
    }
}
