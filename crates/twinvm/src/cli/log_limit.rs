//! [`Limited`]: at most so many lines of one kind at a time.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use machine::bus::lock;
use tracing::Metadata;
use tracing::callsite::Identifier;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::OptionalWriter;

/// Lines of one kind that are written in a row.
const BURST: u32 = 20;
/// How long after that it takes until the next line of the kind is written.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Writes to `W`, but of each place in the program that traces something only [`BURST`] lines in a row and one each [`LINE_INTERVAL`] after that: a guest can
/// cause some of them as often as it likes. How many were left out is said before the next one.
pub struct Limited<W> {
    inner: W,
    budgets: Mutex<HashMap<Identifier, Budget>>,
}

impl<W> Limited<W> {
    /// Writes to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, budgets: Mutex::default() }
    }
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Limited<W> {
    type Writer = OptionalWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OptionalWriter::some(self.inner.make_writer())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        let now = Instant::now();
        let spent = lock(&self.budgets).entry(metadata.callsite()).or_insert_with(|| Budget::full(now)).spend(now);
        let Some(left_out) = spent else { return OptionalWriter::none() };
        let mut writer = self.inner.make_writer_for(metadata);
        if left_out > 0 {
            // The line itself still counts if this one cannot be written.
            let _ = writer.write_all(format!("({left_out} lines like the next one were left out)\n").as_bytes());
        }
        OptionalWriter::some(writer)
    }
}

/// What may still be written of one kind.
struct Budget {
    /// Time that has been saved up; a line costs [`LINE_INTERVAL`].
    saved: Duration,
    at: Instant,
    left_out: u64,
}

impl Budget {
    /// Most that is saved up.
    const SAVED_MAX: Duration = LINE_INTERVAL.saturating_mul(BURST);

    fn full(now: Instant) -> Self {
        Self { saved: Self::SAVED_MAX, at: now, left_out: 0 }
    }

    /// Whether a line may be written; how many were left out before it.
    fn spend(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.at);
        self.saved = self.saved.saturating_add(passed).min(Self::SAVED_MAX);
        self.at = now;
        let Some(saved) = self.saved.checked_sub(LINE_INTERVAL) else {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        };
        self.saved = saved;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_burst_and_one_line_in_a_second() {
        let start = Instant::now();
        let mut budget = Budget::full(start);
        let written = (0..10_000u64).filter(|ms| budget.spend(start + Duration::from_millis(*ms)).is_some()).count();
        assert_eq!(written, 29);
        // After a quiet time, a burst again; it says first what was left out.
        assert_eq!(budget.spend(start + Duration::from_secs(60)), Some(999));
        let burst = (0..100).filter(|_| budget.spend(start + Duration::from_secs(60)).is_some()).count();
        assert_eq!(burst, 19);
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_guest_that_panics_without_end_does_not_fill_the_log_and_hides_nothing_else() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(Limited::new(move || writer.clone())).finish();
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..10_000 {
                tracing::warn!("the guest's kernel has panicked");
            }
            tracing::warn!("the secondary is lost");
        });
        let text = String::from_utf8(lock(&sink.0).clone()).unwrap();
        let panics = text.matches("panicked").count();
        assert!((20..40).contains(&panics), "{panics} lines");
        assert!(text.contains("the secondary is lost"));
    }
}
