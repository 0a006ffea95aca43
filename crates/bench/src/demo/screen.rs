//! What the demo shows while it runs: on a terminal a few lines that change below the events, elsewhere the events only.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use api::status::{Protection, SyncPhase, SyncProgress};
use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use terminal::output::{print_line, say};

use super::view::View;
use crate::load::{Counter, Histogram, Load};

/// How often the lines change.
const REFRESH: Duration = Duration::from_millis(200);
/// So many refreshes make up the latencies that are shown.
const LATENCY_REFRESHES: usize = 5;

/// The display.
pub struct Screen {
    start: Instant,
    /// Events go to standard error: standard output is for JSON.
    is_stdout_taken: bool,
    lines: Option<Lines>,
    refreshed: Option<Instant>,
    /// Of the last refreshes, the last first.
    latencies: Vec<Histogram>,
    /// The phase of the first sync that was told last.
    phase: Option<SyncPhase>,
}

struct Lines {
    all: MultiProgress,
    replicas: ProgressBar,
    client: ProgressBar,
    /// While there is a first sync.
    sync: Option<ProgressBar>,
    sync_style: ProgressStyle,
}

impl Lines {
    fn new() -> Option<Self> {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let text = ProgressStyle::with_template("{wide_msg}").ok()?;
        let sync_style = ProgressStyle::with_template("first sync {wide_bar} {percent:>3}%  {msg}").ok()?;
        let line = || all.add(ProgressBar::new(0).with_style(text.clone()));
        let (replicas, client) = (line(), line());
        Some(Self { all, replicas, client, sync: None, sync_style })
    }

    fn show_sync(&mut self, sync: Option<SyncProgress>) {
        match sync {
            Some(SyncProgress { phase, done_bytes, total_bytes }) => {
                let new = || self.all.add(ProgressBar::new(1).with_style(self.sync_style.clone()));
                let bar = self.sync.get_or_insert_with(new);
                bar.set_length(total_bytes.max(1));
                bar.set_position(done_bytes.min(total_bytes));
                bar.set_message(phase.to_string());
            }
            None => {
                if let Some(bar) = self.sync.take() {
                    bar.finish_and_clear();
                    self.all.remove(&bar);
                }
            }
        }
    }
}

impl Screen {
    /// An empty display. With `is_stdout_taken`, standard output is left alone.
    pub fn new(is_stdout_taken: bool) -> Self {
        let is_terminal = io::stderr().is_terminal() && (is_stdout_taken || io::stdout().is_terminal());
        Self {
            start: Instant::now(),
            is_stdout_taken,
            lines: if is_terminal { Lines::new() } else { None },
            refreshed: None,
            latencies: Vec::new(),
            phase: None,
        }
    }

    /// Says what has happened, for good.
    pub fn event(&self, text: &str) {
        let line = format!("{:>7.1} s  {text}", self.start.elapsed().as_secs_f64());
        // Events are told as far as somebody listens; what counts is the result.
        let _ = match &self.lines {
            Some(lines) => lines.all.println(line),
            None if self.is_stdout_taken => {
                say(line);
                Ok(())
            }
            None => {
                let _ = print_line(&line);
                Ok(())
            }
        };
    }

    /// Whether it is time to show something new.
    pub fn is_due(&self) -> bool {
        self.refreshed.is_none_or(|refreshed| refreshed.elapsed() >= REFRESH)
    }

    /// Shows how things are.
    pub fn update(&mut self, view: &View, client: Option<&Load<Counter>>) {
        if !self.is_due() {
            return;
        }
        self.refreshed = Some(Instant::now());
        self.tell_phase(view);
        let latency = client.map(|client| self.latency(client));
        let Some(lines) = &mut self.lines else { return };
        lines.replicas.set_message(replicas_line(view));
        if let (Some(client), Some(latency)) = (client, latency) {
            let seen = client.snapshot();
            lines.client.set_message(format!(
                "client: {:>8} requests/s   p50 {:>6.2} ms   {} increments acknowledged, {} lost",
                HumanCount(seen.requests_per_s as u64).to_string(),
                latency.quantile_ms(0.5),
                HumanCount(seen.acknowledged),
                seen.lost + seen.repeated,
            ));
        }
        lines.show_sync(view.sync());
    }

    /// Takes the live lines away.
    pub fn finish(&self) {
        if let Some(lines) = &self.lines {
            // A terminal that is gone shows nothing anyway.
            let _ = lines.all.clear();
            lines.all.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Latencies of about the last second.
    fn latency(&mut self, client: &Load<Counter>) -> Histogram {
        self.latencies.truncate(LATENCY_REFRESHES - 1);
        self.latencies.insert(0, client.take_latencies());
        let mut sum = Histogram::default();
        self.latencies.iter().for_each(|latencies| sum.merge(latencies));
        sum
    }

    /// Without a terminal, each phase of a first sync is an event.
    fn tell_phase(&mut self, view: &View) {
        let sync = view.sync();
        let phase = sync.map(|sync| sync.phase);
        if phase == self.phase {
            return;
        }
        self.phase = phase;
        if let (None, Some(SyncProgress { phase, done_bytes, total_bytes })) = (&self.lines, sync) {
            let percent = done_bytes.min(total_bytes) * 100 / total_bytes.max(1);
            self.event(&format!("first sync: {phase}, {percent}% of {} MiB", total_bytes >> 20));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.finish();
    }
}

fn replicas_line(view: &View) -> String {
    let Some(primary) = view.primary() else { return "no primary".to_owned() };
    let secondary = view.secondary().map_or("none", |secondary| secondary.host.as_str());
    let Protection { state, reason, .. } = &primary.protection;
    let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    format!("primary: {}   secondary: {secondary}   {state}{reason}", primary.host)
}
