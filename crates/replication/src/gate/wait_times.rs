//! How long frames waited.

use std::time::Duration;

/// Each power of two is divided into so many buckets, so a quantile is at most an eighth too high.
const BUCKETS_PER_OCTAVE: u64 = 8;
const OCTAVE_BITS: u32 = BUCKETS_PER_OCTAVE.trailing_zeros();
/// Up to 2^32 microseconds, more than an hour; what is longer counts as that.
const BUCKETS: usize = (32 - OCTAVE_BITS as usize + 1) * BUCKETS_PER_OCTAVE as usize;
/// When so many were counted all counts are halved, so that what was long ago weighs less and less.
const COUNTED_MAX: u32 = 1 << 14;

/// A histogram of constant size with buckets of constant relative width.
#[derive(Debug)]
pub(super) struct WaitTimes {
    buckets: [u32; BUCKETS],
    counted: u32,
}

impl Default for WaitTimes {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], counted: 0 }
    }
}

impl WaitTimes {
    pub fn add(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        if let Some(bucket) = self.buckets.get_mut(bucket_of(us)) {
            *bucket += 1;
            self.counted += 1;
        }
        if self.counted >= COUNTED_MAX {
            self.buckets.iter_mut().for_each(|bucket| *bucket /= 2);
            self.counted = self.buckets.iter().sum();
        }
    }

    /// The least time in microseconds, rounded up to its bucket, that `percent` of 100 frames did not exceed; 0 if there
    /// were no frames.
    pub fn quantile_us(&self, percent: u32) -> u64 {
        let wanted = (self.counted * percent).div_ceil(100).max(1);
        let mut below = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= wanted {
                return last_us_of(index as u64);
            }
        }
        0
    }
}

fn bucket_of(us: u64) -> usize {
    // Below the first octave that can be divided, a bucket is a microsecond.
    let octave = us.checked_ilog2().unwrap_or(0).saturating_sub(OCTAVE_BITS);
    (u64::from(octave) * BUCKETS_PER_OCTAVE + (us >> octave)) as usize
}

/// The greatest time of a bucket, in microseconds.
fn last_us_of(index: u64) -> u64 {
    let octave = (index / BUCKETS_PER_OCTAVE).saturating_sub(1);
    let first_of_octave = index - octave * BUCKETS_PER_OCTAVE;
    ((first_of_octave + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        let mut last = 0;
        for us in (0..100_000).chain([1 << 20, 1 << 31, u64::from(u32::MAX)]) {
            let bucket = bucket_of(us);
            assert!((last..BUCKETS).contains(&bucket), "{us}");
            last = bucket;
            let end = last_us_of(bucket as u64);
            assert!(end >= us && end - us <= us / BUCKETS_PER_OCTAVE, "{us}: {end}");
        }
        assert_eq!(last, BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_counted_lately() {
        let mut times = WaitTimes::default();
        assert_eq!((times.quantile_us(50), times.quantile_us(99)), (0, 0));
        (1..=1000).for_each(|ms| times.add(Duration::from_millis(ms)));
        let near = |us: u64, right: u64| (right..=right * 9 / 8).contains(&us);
        assert!(near(times.quantile_us(50), 500_000) && near(times.quantile_us(99), 990_000));
        (0..10 * COUNTED_MAX).for_each(|_| times.add(Duration::from_micros(3)));
        assert_eq!((times.quantile_us(50), times.quantile_us(99)), (3, 3));
        times.add(Duration::MAX);
        assert_eq!(times.quantile_us(100), u64::from(u32::MAX));
    }
}
