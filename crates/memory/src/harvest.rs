//! A set of dirty pages on its way to a secondary.

use std::sync::Arc;

use crate::tracker::{DirtyWord, Tracker};

/// The pages that were dirty when [`crate::GuestRam::harvest`] took them.
///
/// Dropping it gives the pages back to the dirty set, so that a checkpoint that failed is simply part of the next one;
/// [`Harvest::acknowledge`] lets them go for good.
#[must_use = "dropping a harvest makes its pages dirty again"]
#[derive(Debug)]
pub struct Harvest {
    tracker: Arc<Tracker>,
    /// By ascending index, none without bits.
    words: Vec<DirtyWord>,
}

impl Harvest {
    pub(crate) fn new(tracker: Arc<Tracker>) -> Self {
        let words = tracker.take();
        Self { tracker, words }
    }

    /// Page numbers (offset in RAM / 4096), ascending.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().flat_map(|&DirtyWord { index, bits }| {
            std::iter::successors((bits != 0).then_some(bits), |&rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| index as u64 * 64 + u64::from(rest.trailing_zeros()))
        })
    }

    /// How many pages.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.bits.count_ones())).sum()
    }

    /// Whether no page was dirty.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Adds the pages of a later harvest of the same RAM: both are acknowledged, or given back, as one from now on.
    pub fn merge(&mut self, mut later: Self) {
        debug_assert!(Arc::ptr_eq(&self.tracker, &later.tracker));
        self.words.append(&mut later.words);
        // Two sorted runs, which a stable sort merges.
        self.words.sort_by_key(|word| word.index);
        self.words.dedup_by(|next, kept| {
            let same = next.index == kept.index;
            if same {
                kept.bits |= next.bits;
            }
            same
        });
    }

    /// The secondary holds these pages: they are dirty no more, unless written again since.
    pub fn acknowledge(mut self) {
        self.words.clear();
    }

    /// The secondary will not hold these pages: they are dirty again. The same as dropping it, said aloud.
    pub fn give_back(self) {}
}

impl Drop for Harvest {
    fn drop(&mut self) {
        self.tracker.give_back(&self.words);
    }
}
