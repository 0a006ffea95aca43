//! Quantiles of many durations in little memory.

use std::time::Duration;

/// log2 of the buckets for each doubling: the width of a bucket is at most 1/64 of its value.
const SUB_BITS: u32 = 6;
/// Values below this have a bucket each.
const EXACT: u64 = 1 << (SUB_BITS + 1);
const BUCKETS: usize = ((64 - SUB_BITS as usize) << SUB_BITS) + (1 << SUB_BITS);

/// A histogram whose buckets are linear within a doubling and grow with the value, after Gil Tene's HdrHistogram. Values are
/// in nanoseconds; what a quantile says is at most 1.6% above the value it stands for.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], count: 0, max: Duration::ZERO }
    }
}

fn bucket(value_ns: u64) -> usize {
    if value_ns < EXACT {
        return value_ns as usize;
    }
    let shift = value_ns.ilog2() - SUB_BITS;
    ((u64::from(shift) << SUB_BITS) + (value_ns >> shift)) as usize
}

/// The highest value of a bucket.
fn top_ns(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT {
        return bucket;
    }
    let shift = (bucket >> SUB_BITS) - 1;
    let mantissa = (bucket & ((1 << SUB_BITS) - 1)) + (1 << SUB_BITS);
    (((mantissa + 1) as u128) << shift).saturating_sub(1).min(u128::from(u64::MAX)) as u64
}

impl Histogram {
    /// Adds a duration.
    pub fn add(&mut self, value: Duration) {
        let value_ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(value_ns)) {
            *count += 1;
            self.count += 1;
        }
        self.max = self.max.max(value);
    }

    /// Adds all of another one's.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// How many there are.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest, exactly.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The duration that a share of all, 0 to 1, do not exceed; zero if there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(top_ns(bucket)).min(self.max);
            }
        }
        self.max
    }

    /// The same in ms.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        self.quantile(share).as_secs_f64() * 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for at in 0..BUCKETS - 1 {
            assert_eq!(bucket(top_ns(at)), at, "top of bucket {at}");
            assert_eq!(bucket(top_ns(at) + 1), at + 1, "above bucket {at}");
        }
        assert_eq!((bucket(u64::MAX), top_ns(BUCKETS - 1)), (BUCKETS - 1, u64::MAX));
    }

    #[test]
    fn quantiles_are_close_from_above() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for us in 1..=1000 {
            histogram.add(Duration::from_micros(us));
        }
        for (share, us) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found_us = histogram.quantile(share).as_secs_f64() * 1e6;
            assert!((us..=us * 1.016).contains(&found_us), "{share}: {found_us}");
        }
        assert_eq!((histogram.count(), histogram.max()), (1000, Duration::from_millis(1)));
    }

    #[test]
    fn merged_histograms_hold_both() {
        let (mut a, mut b) = (Histogram::default(), Histogram::default());
        a.add(Duration::from_millis(1));
        b.add(Duration::from_secs(3));
        a.merge(&b);
        assert_eq!((a.count(), a.quantile(1.0), a.quantile(0.5).as_millis()), (2, Duration::from_secs(3), 1));
    }
}
