//! [`Agenda`]: what happens when.

use crate::time::Nanoseconds;

/// Bits of a key that name a place.
const PLACE_BITS: u32 = 24;
const NUMBER_BITS: u32 = 64 - PLACE_BITS;

/// What happens, by time; what happens at the same time does so in the order in which it was scheduled.
#[derive(Debug)]
pub(crate) struct Agenda<T> {
    /// Time, number and place of each, the last first. There are some dozens, most of what is added comes soon, and so a list is faster than a heap.
    keys: Vec<u128>,
    places: Vec<Option<T>>,
    free: Vec<u32>,
    scheduled: u64,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self { keys: Vec::with_capacity(128), places: Vec::with_capacity(128), free: Vec::new(), scheduled: 0 }
    }
}

impl<T> Agenda<T> {
    pub fn push(&mut self, at: Nanoseconds, item: T) {
        let place = self.free.pop().unwrap_or(self.places.len() as u32);
        match self.places.get_mut(place as usize) {
            Some(free) => *free = Some(item),
            None => self.places.push(Some(item)),
        }
        let order = self.scheduled << PLACE_BITS | u64::from(place);
        let key = u128::from(at) << u64::BITS | u128::from(order);
        let index = self.keys.partition_point(|&other| other > key);
        self.keys.insert(index, key);
        self.scheduled = (self.scheduled + 1) & ((1 << NUMBER_BITS) - 1);
    }

    /// What is next, and when.
    pub fn pop(&mut self) -> Option<(Nanoseconds, T)> {
        let key = self.keys.pop()?;
        let place = key as u32 & ((1 << PLACE_BITS) - 1);
        let item = self.places[place as usize].take()?;
        self.free.push(place);
        Some(((key >> u64::BITS) as Nanoseconds, item))
    }

    /// How much was scheduled so far.
    pub fn scheduled(&self) -> u64 {
        self.scheduled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_scheduled_first_happens_first_at_its_time() {
        let mut agenda = Agenda::default();
        for (at, item) in [(7, 'c'), (5, 'a'), (7, 'd'), (5, 'b')] {
            agenda.push(at, item);
        }
        assert_eq!(agenda.pop(), Some((5, 'a')));
        agenda.push(7, 'e');
        let rest: Vec<char> = std::iter::from_fn(|| agenda.pop().map(|(_, item)| item)).collect();
        assert_eq!((rest, agenda.scheduled()), (vec!['b', 'c', 'd', 'e'], 5));
    }
}
