//! [`EncodingCounts`]: what an encoder did, for figures.

use super::Encoding;

/// Pages of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindCount {
    /// Pages.
    pub pages: u64,
    /// Bytes of their records, headers included.
    pub bytes: u64,
}

/// What an encoder did since it was made, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodingCounts {
    kinds: [KindCount; Encoding::ALL.len()],
}

impl EncodingCounts {
    pub(super) fn add(&mut self, encoding: Encoding, bytes: usize) {
        if let Some(count) = self.kinds.get_mut(encoding as usize) {
            count.pages += 1;
            count.bytes += bytes as u64;
        }
    }

    /// These and others.
    pub(super) fn with(mut self, others: &Self) -> Self {
        for (count, other) in self.kinds.iter_mut().zip(others.kinds) {
            count.pages += other.pages;
            count.bytes += other.bytes;
        }
        self
    }

    /// Pages of one kind.
    pub fn of(&self, encoding: Encoding) -> KindCount {
        self.kinds.get(encoding as usize).copied().unwrap_or_default()
    }

    /// Pages of all kinds.
    pub fn total(&self) -> KindCount {
        self.kinds.iter().fold(KindCount::default(), |sum, kind| KindCount {
            pages: sum.pages + kind.pages,
            bytes: sum.bytes + kind.bytes,
        })
    }
}
