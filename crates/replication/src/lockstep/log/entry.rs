//! [`Entry`]: one event of the log.

use machine::input::InputEvent;

/// One event of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Something from outside enters.
    Input(InputEvent),
    /// What the primary was at a point that both replicas stop at.
    Digest {
        /// Instructions retired since power-on, by all vCPUs.
        instructions: u64,
        /// Digest of processors, devices and touched pages.
        digest: u128,
    },
}

impl Entry {
    /// Instructions retired since power-on when it happens.
    pub fn instructions(&self) -> u64 {
        match self {
            Self::Input(event) => event.instructions,
            Self::Digest { instructions, .. } => *instructions,
        }
    }
}
