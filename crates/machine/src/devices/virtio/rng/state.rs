//! Saved state of virtio-rng.

use serde::{Deserialize, Serialize};

/// What is saved of a [`super::Rng`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// Bytes taken from the entropy source since power-on: where a recorded or seeded source has to go on.
    pub taken_bytes: u64,
}
