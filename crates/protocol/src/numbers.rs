//! [`Epoch`] and [`Generation`]: the two counters of replication, which must not be taken for each other.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Counts the checkpoints of a VM, and the segments of its log. Within a process it never goes back, whatever becomes of secondaries.
/// Epochs begin with 1; 0 is the one before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

/// Counts the changes of the set of replicas that may run a VM. The first claim of a VM has generation 1; 0 stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(u64);

impl Epoch {
    /// The epoch before the first.
    pub const NONE: Self = Self(0);

    /// The epoch of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, as it is sent and stored.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The epoch after it. The last one, which no VM lives to see, is followed by itself.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The epoch before it; there is none before [`Self::NONE`].
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Generation {
    /// No generation: nobody has claimed the VM.
    pub const NONE: Self = Self(0);

    /// The generation of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, as it is sent and stored.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The generation after it. The last one, which is never claimed, is followed by itself.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The generation before it, which a claim of this one replaces.
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
