//! Where random bytes come from.

use std::fs::File;
use std::io::{self, Read};

/// A source of the bytes that a guest takes for random. What it returns is an input of the machine: lockstep records
/// it on one side and replays it on the other.
pub trait EntropySource: Send {
    /// Fills `buf`.
    ///
    /// # Errors
    /// When there are no bytes; the device then stops, as a guest must not take zeros for randomness.
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<()>;
}

/// The host kernel's random number generator.
#[derive(Debug)]
pub struct OsEntropy(File);

impl OsEntropy {
    /// Opens `/dev/urandom`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open() -> io::Result<Self> {
        File::open("/dev/urandom").map(Self)
    }
}

impl EntropySource for OsEntropy {
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(buf)
    }
}

/// The same bytes for the same seed, for tests and repeatable runs. Not for guests that keep secrets.
///
/// Byte n of the stream belongs to output n / 8 of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014), so the stream can be entered anywhere.
#[derive(Clone, Debug)]
pub struct SeededEntropy {
    seed: u64,
    position_bytes: u64,
}

impl SeededEntropy {
    /// The stream of `seed` from byte `position_bytes` on: 0 at power-on, [`super::RngState::taken_bytes`] after a
    /// restore.
    pub fn new(seed: u64, position_bytes: u64) -> Self {
        Self { seed, position_bytes }
    }

    fn byte(&self, position: u64) -> u8 {
        let z = self.seed.wrapping_add((position / 8).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> (position % 8 * 8)) as u8
    }
}

impl EntropySource for SeededEntropy {
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        for byte in buf {
            *byte = self.byte(self.position_bytes);
            self.position_bytes = self.position_bytes.wrapping_add(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_stream_can_be_entered_anywhere() {
        let mut whole = [0; 40];
        SeededEntropy::new(7, 0).fill(&mut whole).unwrap();
        let mut part = [0; 13];
        SeededEntropy::new(7, 21).fill(&mut part).unwrap();
        assert_eq!(part, whole[21..34]);
        // The first output of SplitMix64 for seed 0, as published with it.
        let mut first = [0; 8];
        SeededEntropy::new(0, 0).fill(&mut first).unwrap();
        assert_eq!(u64::from_le_bytes(first), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn the_operating_system_gives_bytes_that_differ() {
        let mut source = OsEntropy::open().unwrap();
        let (mut a, mut b) = ([0; 32], [0; 32]);
        source.fill(&mut a).unwrap();
        source.fill(&mut b).unwrap();
        assert_ne!(a, b);
    }
}
