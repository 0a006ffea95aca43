//! The progress of an image's build on the terminal.

use indicatif::{ProgressBar, ProgressStyle};
use storage::image::{Progress, Stage};

use crate::interrupt;

/// A progress bar a stage, on standard error if that is a terminal.
#[derive(Default)]
pub struct Bar {
    current: Option<(Stage, ProgressBar)>,
}

impl Bar {
    /// Takes it off the terminal.
    pub fn clear(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn update(&mut self, stage: Stage, done: u64, total: u64) {
        if self.current.as_ref().is_none_or(|(current, _)| *current != stage) {
            self.clear();
            let template = match (total, stage.counts_bytes()) {
                (0, _) => "{spinner} {msg}",
                (_, true) => "{msg:26} [{bar:30}] {binary_bytes}/{binary_total_bytes}",
                (_, false) => "{msg:26} [{bar:30}] {pos}/{len}",
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(stage.label());
            self.current = Some((stage, bar));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn is_cancelled(&self) -> bool {
        interrupt::is_requested()
    }
}
