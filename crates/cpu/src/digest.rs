//! [`Digest`]: a number that stands for a sequence of bytes.

/// FNV-1a, 64 bits.
pub(crate) struct Digest {
    state: u64,
}

impl Digest {
    pub(crate) fn new() -> Self {
        Self { state: 0xcbf2_9ce4_8422_2325 }
    }

    /// What was added so far comes to this.
    pub(crate) fn value(&self) -> u64 {
        self.state
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.state = (self.state ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
