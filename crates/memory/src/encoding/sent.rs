//! [`SentPages`]: the last sent version of pages, as many as there is room for.

use super::PageContent;

/// Pages that compete for the same places.
const WAYS: usize = 8;
/// No page has this number.
const EMPTY: u64 = u64::MAX;
/// Re-reference interval predictions: right again, and the farthest away.
const SOON: u8 = 0;
const DISTANT: u8 = 3;

/// Places for pages with the same hash.
#[derive(Clone)]
struct Set {
    pages: [u64; WAYS],
    /// Index of the content; [`UNUSED`] before the way's first page.
    slots: [u32; WAYS],
    /// When each page is expected again, [`SOON`] to [`DISTANT`].
    intervals: [u8; WAYS],
}

/// A way that never held a page.
const UNUSED: u32 = u32::MAX;

impl Set {
    const NEW: Self = Self { pages: [EMPTY; WAYS], slots: [UNUSED; WAYS], intervals: [DISTANT; WAYS] };
}

/// A set-associative cache. A page that is new is expected back late, one that came back soon, and the page expected the
/// latest is replaced (static re-reference interval prediction: Jaleel et al., "High Performance Cache Replacement Using
/// Re-Reference Interval Prediction", ISCA 2010). So pages that are written over and over outlive a sweep through all of memory.
///
/// Memory for contents is touched when a way gets its first page and kept from then on.
pub(super) struct SentPages {
    sets: Vec<Set>,
    contents: Vec<PageContent>,
}

impl SentPages {
    /// A cache that uses at most `bytes_max`, for less than a set's worth none at all.
    pub(super) fn new(bytes_max: u64) -> Self {
        let set_bytes = WAYS * size_of::<PageContent>() + size_of::<Set>();
        let sets = usize::try_from(bytes_max).unwrap_or(usize::MAX) / set_bytes;
        let sets = sets.min(UNUSED as usize / WAYS);
        Self { sets: vec![Set::NEW; sets], contents: Vec::with_capacity(sets * WAYS) }
    }

    /// The last sent version of a page, if it is still known.
    #[inline]
    pub(super) fn find(&mut self, page: u64) -> Option<&mut PageContent> {
        let set = self.set_of(page)?;
        let set = self.sets.get_mut(set)?;
        let way = set.pages.iter().position(|&held| held == page)?;
        *set.intervals.get_mut(way)? = SOON;
        self.contents.get_mut(*set.slots.get(way)? as usize)
    }

    /// Keeps a page that [`SentPages::find`] did not find, in the place of another if need be.
    pub(super) fn insert(&mut self, page: u64, content: &PageContent) {
        let Some(set) = self.set_of(page).and_then(|set| self.sets.get_mut(set)) else {
            return;
        };
        let way = victim(&set.intervals);
        // After the aging that makes the victim the most distant one.
        let age = DISTANT - set.intervals.get(way).copied().unwrap_or(DISTANT);
        for interval in &mut set.intervals {
            *interval += age;
        }
        if let (Some(held), Some(slot), Some(interval)) =
            (set.pages.get_mut(way), set.slots.get_mut(way), set.intervals.get_mut(way))
        {
            *held = page;
            *interval = DISTANT - 1;
            match self.contents.get_mut(*slot as usize) {
                Some(kept) => *kept = *content,
                None => {
                    *slot = self.contents.len() as u32;
                    self.contents.push(*content);
                }
            }
        }
    }

    /// Forgets all pages, and keeps the memory.
    pub(super) fn clear(&mut self) {
        for set in &mut self.sets {
            set.pages = [EMPTY; WAYS];
            set.intervals = [DISTANT; WAYS];
        }
    }

    /// Memory in use, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        (self.contents.len() * size_of::<PageContent>() + self.sets.len() * size_of::<Set>()) as u64
    }

    fn set_of(&self, page: u64) -> Option<usize> {
        // Fibonacci hashing, then the upper half scaled to the number of sets.
        let hash = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (!self.sets.is_empty()).then_some((hash as usize * self.sets.len()) >> 32)
    }
}

/// The first of the pages expected the latest.
fn victim(intervals: &[u8; WAYS]) -> usize {
    let mut way = 0;
    let mut latest = SOON;
    for (candidate, &interval) in intervals.iter().enumerate().rev() {
        if interval >= latest {
            (way, latest) = (candidate, interval);
        }
    }
    way
}

#[cfg(test)]
mod tests {
    use super::super::PAGE;
    use super::*;

    fn page(n: u64) -> PageContent {
        [n as u8; PAGE]
    }

    #[test]
    fn pages_in_use_survive_a_sweep() {
        let mut sent = SentPages::new(64 * 4096);
        for number in 0..4 {
            sent.insert(number, &page(number));
        }
        for sweep in 1000..2000 {
            for number in 0..4 {
                assert_eq!(sent.find(number), Some(&mut page(number)), "{sweep}");
            }
            assert!(sent.find(sweep).is_none());
            sent.insert(sweep, &page(sweep));
        }
        assert!(sent.bytes() <= 64 * 4096);
    }

    #[test]
    fn memory_is_bounded_and_reused() {
        let bytes_max = 100 * 4096;
        let mut sent = SentPages::new(bytes_max);
        for round in 0..3 {
            for number in 0..1000 {
                sent.insert(round * 1000 + number, &page(number));
            }
            assert!(sent.bytes() <= bytes_max);
            sent.clear();
            assert!((0..4000).all(|number| sent.find(number).is_none()));
        }
        let mut none = SentPages::new(4096);
        none.insert(1, &page(1));
        assert!(none.find(1).is_none());
        assert_eq!(none.bytes(), 0);
    }
}
