//! The words in which two pages differ, and their run-length code.

use super::{PAGE, PageContent};

/// 64-bit words of a page.
const WORDS: usize = PAGE / 8;
/// Bytes of a run before its words.
const RUN_HEADER_BYTES: usize = 2;
/// Most words of a run; longer ones are cut.
const RUN_WORDS_MAX: usize = 128;
/// Bits of a run's header that hold the words skipped.
const SKIP_BITS: u32 = 9;

/// Most bytes of a page's runs: all words changed.
pub(super) const BYTES_MAX: usize = PAGE + WORDS / RUN_WORDS_MAX * RUN_HEADER_BYTES;

/// Which words of a page differ: bit n % 64 of element n / 64 for word n.
pub(super) struct Changes([u64; WORDS / 64]);

impl Changes {
    /// Compares two pages.
    #[inline]
    pub(super) fn between(old: &PageContent, new: &PageContent) -> Self {
        let mut changes = [0; WORDS / 64];
        let (old, new) = (old.as_chunks::<512>().0, new.as_chunks::<512>().0);
        for ((bits, old), new) in changes.iter_mut().zip(old).zip(new) {
            *bits = changed_words(old, new);
        }
        Self(changes)
    }

    /// How many words differ.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.0.iter().map(|bits| bits.count_ones()).sum()
    }

    /// The first word from `from` on that differs (or, with `flip` all ones, that does not); [`WORDS`] if there is none.
    #[inline]
    fn find(&self, from: usize, flip: u64) -> usize {
        let mut index = from / 64;
        let mut mask = u64::MAX << (from % 64);
        while let Some(bits) = self.0.get(index) {
            let found = (bits ^ flip) & mask;
            if found != 0 {
                return index * 64 + found.trailing_zeros() as usize;
            }
            mask = u64::MAX;
            index += 1;
        }
        WORDS
    }
}

/// Which of 64 words differ.
#[inline]
fn changed_words(old: &[u8; 512], new: &[u8; 512]) -> u64 {
    let mut bits = 0;
    let lines = old.as_chunks::<64>().0.iter().zip(new.as_chunks::<64>().0);
    for (line, (old, new)) in lines.enumerate() {
        let words = old.as_chunks::<8>().0.iter().zip(new.as_chunks::<8>().0);
        let differences = words.clone().fold(0, |all, (old, new)| all | word(old) ^ word(new));
        if differences != 0 {
            for (index, (old, new)) in words.enumerate() {
                bits |= u64::from(old != new) << (line * 8 + index);
            }
        }
    }
    bits
}

#[inline(always)]
fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

/// Appends the runs that make `new` of `old`, and makes it so, touching no more of it than what changed.
pub(super) fn write(changes: &Changes, old: &mut PageContent, new: &PageContent, out: &mut Vec<u8>) {
    let (old, new) = (old.as_chunks_mut::<8>().0, new.as_chunks::<8>().0);
    out.reserve(BYTES_MAX);
    let (mut end, mut from) = (0, changes.find(0, 0));
    while from < WORDS {
        let stop = changes.find(from, u64::MAX).min(from + RUN_WORDS_MAX);
        let header = (from - end) | (stop - from - 1) << SKIP_BITS;
        out.extend_from_slice(&(header as u16).to_le_bytes());
        for (old, new) in old.iter_mut().zip(new).take(stop).skip(from) {
            out.extend_from_slice(&(word(old) ^ word(new)).to_le_bytes());
            *old = *new;
        }
        end = stop;
        from = changes.find(stop, 0);
    }
}

/// Runs as they were received.
pub(super) struct Runs<'a> {
    rest: &'a [u8],
    /// Byte in the page at which the last run ended.
    end: usize,
}

impl<'a> Runs<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload, end: 0 }
    }
}

/// A run that does not end within its payload or its page.
#[derive(Debug)]
pub(super) struct BadRun;

impl<'a> Iterator for Runs<'a> {
    /// Byte in the page, and the bytes to XOR into it, all within the page.
    type Item = Result<(usize, &'a [u8]), BadRun>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((header, rest)) = self.rest.split_first_chunk::<RUN_HEADER_BYTES>() else {
            return Some(self.fail());
        };
        let header = usize::from(u16::from_le_bytes(*header));
        let start = self.end + (header & ((1 << SKIP_BITS) - 1)) * 8;
        let len = ((header >> SKIP_BITS) + 1) * 8;
        let Some((words, rest)) = rest.split_at_checked(len).filter(|_| start + len <= PAGE) else {
            return Some(self.fail());
        };
        self.rest = rest;
        self.end = start + len;
        Some(Ok((start, words)))
    }
}

impl<'a> Runs<'a> {
    fn fail(&mut self) -> Result<(usize, &'a [u8]), BadRun> {
        self.rest = &[];
        Err(BadRun)
    }
}
