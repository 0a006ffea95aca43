//! What protection by checkpoints costs, of all runs.

use api::figures::Figures;
use serde::Serialize;

use super::colo;
use super::measure::{Bytes, Checkpoints, Cost, LoadFigures, Protected};
use super::report::{Quantiles, Row, percent, ratio, us};
use crate::report::median;

/// What checkpoints cost.
#[derive(Debug, Serialize)]
pub struct CheckpointCost {
    /// Pause of the guest for a checkpoint with about 1,000 changed pages: in the class of `pause_dirty_pages_range`.
    pause_us: Quantiles,
    /// Without protection there is none.
    pause_us_unprotected: Quantiles,
    /// Changed pages of the checkpoints that `pause_us` is about, median.
    pause_dirty_pages: f64,
    /// Their least and greatest number.
    pause_dirty_pages_range: (u64, Option<u64>),
    /// How many checkpoints these were, in all runs.
    pause_checkpoints: u64,
    /// Bytes sent for each byte of changed pages, while many keys are written to.
    bytes_ratio: f64,
    /// Nothing is sent without protection.
    sent_bytes_unprotected: u64,
    sent_bytes_protected: u64,
    dirty_bytes_protected: u64,
    /// The same while one counter is incremented.
    bytes_ratio_pipelined: f64,
    /// The last run.
    #[serde(skip)]
    last: (LoadFigures, Checkpoints),
}

impl CheckpointCost {
    /// Puts it together; none if there were no checkpoints.
    pub fn of(runs: &[Protected]) -> Option<Self> {
        let runs: Vec<(&LoadFigures, &Checkpoints)> = runs
            .iter()
            .filter_map(|run| match &run.cost {
                Cost::Mirror(checkpoints) => Some((&run.figures, &**checkpoints)),
                Cost::Lockstep(_) => None,
            })
            .collect();
        let middle = |value: fn(&Checkpoints) -> f64| median(runs.iter().map(|(_, run)| value(run)).collect());
        let bytes = |value: fn(&Checkpoints) -> Bytes| {
            runs.iter().map(|(_, run)| value(run)).fold(Bytes::default(), |sum, bytes| Bytes {
                dirty: sum.dirty.saturating_add(bytes.dirty),
                sent: sum.sent.saturating_add(bytes.sent),
            })
        };
        let key_writes = bytes(|run| run.key_writes_bytes);
        let (last_figures, last) = *runs.last()?;
        Some(Self {
            pause_us: Quantiles {
                p50: middle(|run| run.pauses.pause_us.p50)?,
                p99: middle(|run| run.pauses.pause_us.p99)?,
            },
            pause_us_unprotected: Quantiles::default(),
            pause_dirty_pages: middle(|run| run.pauses.dirty_pages as f64)?,
            pause_dirty_pages_range: (last.pauses.pages_min, last.pauses.pages_max),
            pause_checkpoints: runs.iter().map(|(_, run)| run.pauses.checkpoints).sum(),
            bytes_ratio: bytes_ratio(key_writes),
            sent_bytes_unprotected: 0,
            sent_bytes_protected: key_writes.sent,
            dirty_bytes_protected: key_writes.dirty,
            bytes_ratio_pipelined: bytes_ratio(bytes(|run| run.pipelined_bytes)),
            last: (last_figures.clone(), last.clone()),
        })
    }

    /// For the table.
    pub fn rows(&self) -> [Row; 3] {
        let none = || "-".to_owned();
        let (pages_min, pages_max) = self.pause_dirty_pages_range;
        let range = pages_max.map_or_else(|| format!("{pages_min} or more"), |max| format!("{pages_min} to {max}"));
        let pages = format!("pause at {range} dirty pages (median {:.0}), p50", self.pause_dirty_pages);
        let [slow, fast] = [colo::DEFAULT, colo::FREQUENT].map(|colo| colo.pause_us.map_or_else(none, us));
        [
            [pages, none(), us(self.pause_us.p50), none(), slow, fast],
            ["  p99".to_owned(), none(), us(self.pause_us.p99), none(), none(), none()],
            [
                "bytes sent for dirty bytes".to_owned(),
                "0".to_owned(),
                format!("{} of {} MiB", self.sent_bytes_protected >> 20, self.dirty_bytes_protected >> 20),
                percent(self.bytes_ratio),
                none(),
                none(),
            ],
        ]
    }

    /// What the last run shows of causes.
    pub fn limits(&self) -> Vec<String> {
        let (LoadFigures { cpu, single, pipelined, key_writes }, Checkpoints { page_writes, pauses, .. }) = &self.last;
        let parts = &page_writes.pause_parts_us;
        let mut lines = vec![
            format!(
                "pause: finding {} dirty pages {:.0} us, copying or freezing them {:.0} us, saving vCPUs and devices {:.0} us \
                 (medians); the rest is waking the sender; {:.0} checkpoints/s",
                pauses.dirty_pages, parts.tracking, parts.pages, parts.state, page_writes.epochs_per_s,
            ),
            format!(
                "CPU-bound: paused {:.1}% of the time ({:.0} checkpoints/s, {} pages each); the rest is first writes to \
                 pages after a checkpoint, and sharing processors with encoder, sender and secondary",
                paused_percent(cpu),
                cpu.epochs_per_s,
                cpu.dirty_pages,
            ),
        ];
        for (load, figures) in [("64 under way", pipelined), ("many keys", key_writes), ("one at a time", single)] {
            lines.push(format!(
                "{load}: the guest is paused {:.1}% of the time; {:.0} checkpoints/s, {} pages each",
                paused_percent(figures),
                figures.epochs_per_s,
                figures.dirty_pages,
            ));
        }
        let pages = key_writes.pages;
        lines.push(format!(
            "bytes: pages sent as zero {}, unchanged {}, word runs {}, XOR+LZ4 {}, LZ4 {}, raw {}; with one counter only {}",
            pages.zero,
            pages.unchanged,
            pages.word_runs,
            pages.delta,
            pages.lz4,
            pages.raw,
            percent(self.bytes_ratio_pipelined),
        ));
        lines
    }
}

/// Share of the time in which the guest stands still, in percent, as far as the median pause tells.
fn paused_percent(figures: &Figures) -> f64 {
    figures.epochs_per_s * figures.pause_us.p50 / 1e4
}

fn bytes_ratio(bytes: Bytes) -> f64 {
    ratio(bytes.sent as f64, bytes.dirty as f64)
}
