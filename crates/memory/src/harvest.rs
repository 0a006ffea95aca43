//! A set of dirty pages on its way to a secondary.

use std::sync::Arc;

use crate::tracker::Tracker;

/// The pages that were dirty when [`crate::GuestRam::harvest`] took them.
///
/// Dropping it gives the pages back to the dirty set, so that a checkpoint that failed is simply part of the next one;
/// [`Harvest::acknowledge`] lets them go for good.
#[must_use = "dropping a harvest makes its pages dirty again"]
#[derive(Debug)]
pub struct Harvest {
    tracker: Arc<Tracker>,
    words: Vec<u64>,
}

impl Harvest {
    pub(crate) fn new(tracker: Arc<Tracker>) -> Self {
        let words = tracker.take();
        Self { tracker, words }
    }

    /// Page numbers (offset in RAM / 4096), ascending.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            std::iter::successors((word != 0).then_some(word), |&rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| index as u64 * 64 + u64::from(rest.trailing_zeros()))
        })
    }

    /// How many pages.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no page was dirty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// The secondary holds these pages: they are dirty no more, unless written again since.
    pub fn acknowledge(mut self) {
        self.words.clear();
    }
}

impl Drop for Harvest {
    fn drop(&mut self) {
        self.tracker.give_back(&self.words);
    }
}
