//! What replication costs, as it is being paid.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memory::encoding::{Encoding, EncodingCounts};
use protocol::Epoch;
use serde::{Deserialize, Serialize};

use crate::lockstep::LockstepFigures;

/// Samples that a quantile is taken of.
const SAMPLES_MAX: usize = 1024;
/// Over which time rates are taken.
const RATE_WINDOW: Duration = Duration::from_secs(2);
/// Pauses are told apart by the number of dirty pages: each class begins where the one before ends, the last has no end.
const CLASS_STARTS: [u64; 5] = [0, 100, 400, 800, 1500];

/// Median, 99th percentile and last of a measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half of the samples are at most this.
    pub p50: u64,
    /// 99 of 100 samples are at most this.
    pub p99: u64,
    /// The newest sample.
    pub last: u64,
    /// The greatest sample of those kept.
    pub max: u64,
}

/// The newest samples of a measure.
#[derive(Clone, Debug, Default)]
struct Samples(VecDeque<u64>);

impl Samples {
    fn add(&mut self, sample: u64) {
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    fn quantiles(&self) -> Quantiles {
        let mut sorted: Vec<u64> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0);
        Quantiles { p50: at(50), p99: at(99), last: self.0.back().copied().unwrap_or(0), max: at(100) }
    }
}

/// Captured pages by how they were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encodings {
    /// All zero.
    pub zero: u64,
    /// As sent before: not sent.
    pub unchanged: u64,
    /// The 64-bit words that changed.
    pub word_runs: u64,
    /// The difference, compressed.
    pub delta: u64,
    /// The page, compressed.
    pub lz4: u64,
    /// The page as it is.
    pub raw: u64,
}

impl Encodings {
    /// Adds what an encoder did between two looks at its counts.
    fn add(&mut self, before: &EncodingCounts, after: &EncodingCounts) {
        for (count, encoding) in [
            (&mut self.zero, Encoding::Zero),
            (&mut self.unchanged, Encoding::Unchanged),
            (&mut self.word_runs, Encoding::WordRuns),
            (&mut self.delta, Encoding::Delta),
            (&mut self.lz4, Encoding::Lz4),
            (&mut self.raw, Encoding::Raw),
        ] {
            *count += after.of(encoding).pages.saturating_sub(before.of(encoding).pages);
        }
    }
}

/// What a pause is made of, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseParts {
    /// Until the vCPUs stood still.
    pub stop_us: Quantiles,
    /// Finding the dirty pages, and beginning the next round of tracking.
    pub tracking_us: Quantiles,
    /// Copying the pages that were not copied before.
    pub pages_us: Quantiles,
    /// Saving vCPUs and devices.
    pub state_us: Quantiles,
}

/// Pauses of checkpoints with about as many dirty pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseClass {
    /// Least number of dirty pages.
    pub pages_min: u64,
    /// Greatest number of dirty pages.
    pub pages_max: u64,
    /// How many checkpoints there were since protection began.
    pub checkpoints: u64,
    /// Dirty pages of the newest of them.
    pub dirty_pages: Quantiles,
    /// How long the guest stood still for them, in microseconds.
    pub pause_us: Quantiles,
}

/// A pause for a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    /// From when the vCPUs were told to stand still until they did.
    pub stop: Duration,
    /// From then on.
    pub stood_still: Duration,
}

/// When the steps of a capture were done, counted from when the vCPUs stood still.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CaptureTimes {
    pub tracking: Duration,
    pub pages: Duration,
    pub state: Duration,
}

/// What `twinvm top` shows of a primary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The last epoch that was captured.
    pub epoch: Epoch,
    /// Epochs captured per second, lately.
    pub epochs_per_s: f64,
    /// Length of an epoch, in microseconds.
    pub epoch_us: Quantiles,
    /// Pages written during an epoch.
    pub dirty_pages: Quantiles,
    /// How long the guest stood still for a checkpoint, in microseconds.
    pub pause_us: Quantiles,
    /// What that time went into.
    pub pause_parts: PauseParts,
    /// The same by the number of dirty pages, by ascending number.
    pub pauses_by_pages: Vec<PauseClass>,
    /// From the capture of a checkpoint to its ack, in microseconds.
    pub commit_us: Quantiles,
    /// Bytes of pages that checkpoints captured, since protection began.
    pub dirty_bytes: u64,
    /// Bytes sent for them, since protection began.
    pub sent_bytes: u64,
    /// Captured pages by how they were encoded.
    pub encodings: Encodings,
    /// Checkpoints captured that the secondary has not acknowledged.
    pub lag_epochs: u64,
    /// How often the guest had to wait because the secondary was slow.
    pub throttled: u64,
    /// For how long in all, in microseconds.
    pub throttled_us: u64,
    /// What the log costs, while the secondary follows that rather than checkpoints.
    pub lockstep: Option<LockstepFigures>,
}

/// Samples of the pauses of one class.
#[derive(Clone, Default)]
struct Class {
    checkpoints: u64,
    dirty_pages: Samples,
    pause_us: Samples,
}

#[derive(Clone, Default)]
struct Inner {
    figures: Figures,
    epoch_us: Samples,
    dirty_pages: Samples,
    pause_us: Samples,
    stop_us: Samples,
    tracking_us: Samples,
    pages_us: Samples,
    state_us: Samples,
    commit_us: Samples,
    classes: [Class; CLASS_STARTS.len()],
    captures: VecDeque<Instant>,
}

/// Collects figures from several threads.
#[derive(Default)]
pub(super) struct Meter(Mutex<Inner>);

impl Meter {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn captured(&self, epoch: Epoch, epoch_length: Duration, pause: Pause, times: &CaptureTimes, dirty_pages: u64) {
        let Pause { stop, stood_still } = pause;
        let pause = stop + stood_still;
        let mut inner = self.inner();
        inner.figures.epoch = epoch;
        inner.epoch_us.add(micros(epoch_length));
        inner.pause_us.add(micros(pause));
        inner.stop_us.add(micros(stop));
        inner.tracking_us.add(micros(times.tracking));
        inner.pages_us.add(micros(times.pages.saturating_sub(times.tracking)));
        inner.state_us.add(micros(times.state.saturating_sub(times.pages)));
        inner.dirty_pages.add(dirty_pages);
        inner.figures.dirty_bytes += dirty_pages * memory::PAGE_BYTES;
        let class = CLASS_STARTS.iter().rposition(|&start| start <= dirty_pages).unwrap_or(0);
        if let Some(class) = inner.classes.get_mut(class) {
            class.checkpoints += 1;
            class.dirty_pages.add(dirty_pages);
            class.pause_us.add(micros(pause));
        }
        let now = Instant::now();
        inner.captures.push_back(now);
        while inner.captures.front().is_some_and(|&at| now.saturating_duration_since(at) > RATE_WINDOW) {
            inner.captures.pop_front();
        }
    }

    /// A checkpoint was sent in so many bytes; its pages were encoded between two looks at the encoder's counts.
    pub fn sent(&self, bytes: u64, before: &EncodingCounts, after: &EncodingCounts) {
        let mut inner = self.inner();
        inner.figures.sent_bytes += bytes;
        inner.figures.encodings.add(before, after);
    }

    /// Bytes sent for checkpoints.
    pub fn sent_bytes(&self) -> u64 {
        self.inner().figures.sent_bytes
    }

    pub fn committed(&self, after: Duration) {
        self.inner().commit_us.add(micros(after));
    }

    pub fn throttled(&self, wait: Duration) {
        let mut inner = self.inner();
        inner.figures.throttled += 1;
        inner.figures.throttled_us += micros(wait);
    }

    /// Everything starts anew, with a new secondary.
    pub fn reset(&self) {
        *self.inner() = Inner::default();
    }

    pub fn figures(&self) -> Figures {
        // Sorting takes longer than copying, and the thread of the VM needs the lock in its pauses.
        let inner = self.inner().clone();
        let now = Instant::now();
        let recent = inner.captures.iter().filter(|&&at| now.saturating_duration_since(at) <= RATE_WINDOW).count();
        let ends = CLASS_STARTS.iter().skip(1).map(|start| start - 1).chain([u64::MAX]);
        let classes = inner.classes.iter().zip(CLASS_STARTS).zip(ends);
        Figures {
            epochs_per_s: recent as f64 / RATE_WINDOW.as_secs_f64(),
            epoch_us: inner.epoch_us.quantiles(),
            dirty_pages: inner.dirty_pages.quantiles(),
            pause_us: inner.pause_us.quantiles(),
            pause_parts: PauseParts {
                stop_us: inner.stop_us.quantiles(),
                tracking_us: inner.tracking_us.quantiles(),
                pages_us: inner.pages_us.quantiles(),
                state_us: inner.state_us.quantiles(),
            },
            pauses_by_pages: classes
                .map(|((class, pages_min), pages_max)| PauseClass {
                    pages_min,
                    pages_max,
                    checkpoints: class.checkpoints,
                    dirty_pages: class.dirty_pages.quantiles(),
                    pause_us: class.pause_us.quantiles(),
                })
                .collect(),
            commit_us: inner.commit_us.quantiles(),
            ..inner.figures
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_newest_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.quantiles(), Quantiles::default());
        (0..5000).for_each(|sample| samples.add(sample));
        let quantiles = samples.quantiles();
        assert_eq!((quantiles.last, quantiles.max), (4999, 4999));
        assert!(quantiles.p50 > 4400 && quantiles.p50 < 4600 && quantiles.p99 > 4980);
    }

    #[test]
    fn pauses_are_told_apart_by_dirty_pages() {
        let meter = Meter::default();
        for (pages, pause_us) in [(0, 10), (99, 20), (800, 300), (1499, 400), (1500, 900), (1 << 40, 1000)] {
            let times = CaptureTimes::default();
            let pause = Pause { stop: Duration::from_micros(1), stood_still: Duration::from_micros(pause_us - 1) };
            meter.captured(Epoch::new(1), Duration::ZERO, pause, &times, pages);
        }
        let classes = meter.figures().pauses_by_pages;
        let seen: Vec<_> =
            classes.iter().map(|class| (class.pages_min, class.checkpoints, class.pause_us.max)).collect();
        assert_eq!(seen, [(0, 2, 20), (100, 0, 0), (400, 0, 0), (800, 2, 400), (1500, 2, 1000)]);
        assert_eq!(classes.iter().map(|class| class.pages_max).collect::<Vec<_>>(), [99, 399, 799, 1499, u64::MAX]);
    }
}
