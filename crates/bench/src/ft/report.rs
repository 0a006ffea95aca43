//! What was found, for people and programs.

use anyhow::Result;
use serde::Serialize;
use spec::{EngineKind, FtMode};
use terminal::output::{print_line, print_table, table};

use super::checkpoints::CheckpointCost;
use super::colo::{self, Colo};
use super::execution::ExecutionCost;
use super::measure::{LoadFigures, Protected, Side};
use crate::demo::{Blackout, Failover, Pins};
use crate::load::Histogram;
use crate::report::median;

/// What was measured, and where.
#[derive(Clone, Debug, Serialize)]
pub struct Subject {
    /// Version of twinvm.
    pub twinvm_version: &'static str,
    /// What executed the vCPUs.
    pub engine: EngineKind,
    /// How the VM was protected.
    pub mode: FtMode,
    /// Which processors the replicas had for themselves, without and with protection; they had none if it is not said.
    pub pins: Option<Pins>,
    /// Measurements of each side.
    pub runs: u32,
    /// How long each load ran.
    pub seconds: u32,
    /// Silence after which a replica suspected the other one.
    pub suspicion_ms: u32,
    /// Steps of the CPU-bound loop.
    pub cpu_steps: u64,
    /// The host's processor.
    pub host_cpu: Option<String>,
    /// Processors of the host.
    pub host_cpus: usize,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// Each run without protection.
    pub unprotected: Vec<Side>,
    /// Each run with protection.
    pub protected: Vec<Protected>,
    /// Each kill.
    pub failovers: Vec<Failover>,
    /// Each silence.
    pub silences: Vec<Failover>,
}

/// A figure: its name, without and with protection, what protection costs, and the same of COLO with long and short intervals.
pub type Row = [String; 6];

/// Half and 99 of 100 of something are not above these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half of them are not above it.
    pub p50: f64,
    /// 99 of 100 are not above it.
    pub p99: f64,
}

impl Quantiles {
    fn of(latencies: &Histogram) -> Self {
        Self { p50: latencies.quantile_ms(0.5), p99: latencies.quantile_ms(0.99) }
    }
}

/// The result of `twinvm bench ft`. Ratios are protected over unprotected, in speed: 1 is no loss.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    checkpoints: Option<CheckpointCost>,
    #[serde(flatten)]
    execution: Option<ExecutionCost>,
    /// Speed of the CPU-bound loop.
    cpu_ratio: f64,
    cpu_s_unprotected: f64,
    cpu_s_protected: f64,
    /// Requests with 64 under way.
    pipelined_ratio: f64,
    pipelined_requests_per_s_unprotected: f64,
    pipelined_requests_per_s_protected: f64,
    /// What protection adds to the latency of one request at a time.
    added_latency_ms: Quantiles,
    latency_ms_unprotected: Quantiles,
    latency_ms_protected: Quantiles,
    single_requests_per_s_unprotected: f64,
    single_requests_per_s_protected: f64,
    /// Writes to many keys, 64 under way.
    key_writes_ratio: f64,
    key_writes_per_s_unprotected: f64,
    key_writes_per_s_protected: f64,
    /// Resident memory of the secondary, relative to that of an unprotected primary.
    secondary_memory_ratio: f64,
    memory_bytes_unprotected: f64,
    memory_bytes_primary: f64,
    memory_bytes_secondary: f64,
    /// The longest gap between two replies around each kill. Without protection the VM would be gone.
    blackout_ms: Blackout,
    blackout_ms_unprotected: Option<f64>,
    /// The same when the primary's host stands still with its connections open: with the time until that is suspected.
    blackout_silence_ms: Blackout,
    /// The peer's figures.
    colo_source: &'static str,
    colo: [Colo; 3],
    subject: Subject,
    each: Measured,
}

impl Report {
    /// Puts it together; none if a side was not measured.
    pub fn new(subject: Subject, measured: Measured) -> Option<Self> {
        let unprotected = |value: fn(&Side) -> f64| median(measured.unprotected.iter().map(value).collect());
        let protected = |value: fn(&Protected) -> f64| median(measured.protected.iter().map(value).collect());
        let latencies = |sides: &mut dyn Iterator<Item = &Side>| {
            let mut sum = Histogram::default();
            sides.for_each(|side| sum.merge(&side.latencies));
            Quantiles::of(&sum)
        };
        let latency_unprotected = latencies(&mut measured.unprotected.iter());
        let latency_protected = latencies(&mut measured.protected.iter().map(|run| &run.side));
        let (cpu_unprotected, cpu_protected) = (unprotected(|side| side.cpu_s)?, protected(|run| run.side.cpu_s)?);
        let pipelined_unprotected = unprotected(|side| side.pipelined_requests_per_s)?;
        let pipelined_protected = protected(|run| run.side.pipelined_requests_per_s)?;
        let key_writes_unprotected = unprotected(|side| side.key_writes_per_s)?;
        let key_writes_protected = protected(|run| run.side.key_writes_per_s)?;
        let memory_unprotected = unprotected(|side| side.memory_bytes as f64)?;
        let memory_secondary = protected(|run| run.secondary_memory_bytes as f64)?;
        Some(Self {
            checkpoints: CheckpointCost::of(&measured.protected),
            execution: ExecutionCost::of(&measured.protected),
            cpu_ratio: ratio(cpu_unprotected, cpu_protected),
            cpu_s_unprotected: cpu_unprotected,
            cpu_s_protected: cpu_protected,
            pipelined_ratio: ratio(pipelined_protected, pipelined_unprotected),
            pipelined_requests_per_s_unprotected: pipelined_unprotected,
            pipelined_requests_per_s_protected: pipelined_protected,
            added_latency_ms: Quantiles {
                p50: latency_protected.p50 - latency_unprotected.p50,
                p99: latency_protected.p99 - latency_unprotected.p99,
            },
            latency_ms_unprotected: latency_unprotected,
            latency_ms_protected: latency_protected,
            single_requests_per_s_unprotected: unprotected(|side| side.single_requests_per_s)?,
            single_requests_per_s_protected: protected(|run| run.side.single_requests_per_s)?,
            key_writes_ratio: ratio(key_writes_protected, key_writes_unprotected),
            key_writes_per_s_unprotected: key_writes_unprotected,
            key_writes_per_s_protected: key_writes_protected,
            secondary_memory_ratio: ratio(memory_secondary, memory_unprotected),
            memory_bytes_unprotected: memory_unprotected,
            memory_bytes_primary: protected(|run| run.side.memory_bytes as f64)?,
            memory_bytes_secondary: memory_secondary,
            blackout_ms: Blackout::of(&measured.failovers),
            blackout_ms_unprotected: None,
            blackout_silence_ms: Blackout::of(&measured.silences),
            colo_source: colo::SOURCE,
            colo: [colo::UNPROTECTED, colo::DEFAULT, colo::FREQUENT],
            subject,
            each: measured,
        })
    }

    /// Prints it for people.
    pub fn print(&self) -> Result<()> {
        let subject = &self.subject;
        print_line(&format!(
            "\nmode: {}; engine: {}; host: {}; medians of {}, {} s for each load; COLO: {}",
            subject.mode,
            subject.engine,
            subject.host_cpu.as_deref().unwrap_or("unknown processor"),
            subject.runs,
            subject.seconds,
            colo::SOURCE,
        ))?;
        print_line(&match &subject.pins {
            Some(pins) => format!("{}; the same without protection\n", pins.describe()),
            None => "all processes share all processors\n".to_owned(),
        })?;
        let mut rows = table(&["FIGURE", "UNPROTECTED", "PROTECTED", "COST", "COLO 20 s", "COLO 200 ms"]);
        for row in self.rows() {
            rows.add_row(row);
        }
        print_table(&rows)?;
        print_line("\nWhat limits each:")?;
        for line in self.limits() {
            print_line(&format!("  {line}"))?;
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.checkpoints.iter().flat_map(CheckpointCost::rows).collect();
        rows.extend(self.execution.iter().flat_map(ExecutionCost::rows));
        self.load_rows(&mut rows);
        self.blackout_rows(&mut rows);
        rows
    }

    fn load_rows(&self, rows: &mut Vec<Row>) {
        let mut row = rows_beside_colo(rows);
        row(
            "CPU-bound loop",
            format!("{:.2} s", self.cpu_s_unprotected),
            format!("{:.2} s", self.cpu_s_protected),
            percent(self.cpu_ratio),
            colo(|colo| percent(colo.cpu_ratio())),
        );
        row(
            "requests/s, 64 under way",
            format!("{:.0}", self.pipelined_requests_per_s_unprotected),
            format!("{:.0}", self.pipelined_requests_per_s_protected),
            percent(self.pipelined_ratio),
            colo(|colo| percent(colo.pipelined_ratio())),
        );
        row(
            "writes to 10,000 keys/s",
            format!("{:.0}", self.key_writes_per_s_unprotected),
            format!("{:.0}", self.key_writes_per_s_protected),
            percent(self.key_writes_ratio),
            [none(), none()],
        );
        row(
            "latency one at a time, p50",
            ms(self.latency_ms_unprotected.p50),
            ms(self.latency_ms_protected.p50),
            format!("{:+.2} ms", self.added_latency_ms.p50),
            colo(|colo| format!("{:+.2} ms", colo.added_latency_p50_ms())),
        );
        row(
            "  p99",
            ms(self.latency_ms_unprotected.p99),
            ms(self.latency_ms_protected.p99),
            format!("{:+.2} ms", self.added_latency_ms.p99),
            colo(|colo| format!("{:+.2} ms", colo.added_latency_p99_ms())),
        );
        row(
            "memory of primary / secondary",
            format!("{:.0} MiB", self.memory_bytes_unprotected / MIB),
            format!("{:.0} / {:.0} MiB", self.memory_bytes_primary / MIB, self.memory_bytes_secondary / MIB),
            percent(self.secondary_memory_ratio),
            colo(|colo| colo.secondary_memory_ratio().map_or_else(none, percent)),
        );
    }

    fn blackout_rows(&self, rows: &mut Vec<Row>) {
        let mut row = rows_beside_colo(rows);
        row(
            "blackout after kill -9, p50",
            "for good".to_owned(),
            self.blackout_ms.p50.map_or_else(none, ms),
            none(),
            colo(|colo| colo.blackout_ms.map_or_else(none, ms)),
        );
        row(
            "  longest",
            none(),
            self.blackout_ms.max.map_or_else(none, ms),
            none(),
            colo(|colo| colo.blackout_ms_max.map_or_else(none, ms)),
        );
        row(
            "blackout when the host falls silent, p50",
            "for good".to_owned(),
            self.blackout_silence_ms.p50.map_or_else(none, ms),
            none(),
            [none(), none()],
        );
        row("  longest", none(), self.blackout_silence_ms.max.map_or_else(none, ms), none(), [none(), none()]);
    }

    /// What the last protected run, and the kills, show of causes.
    fn limits(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.checkpoints.iter().flat_map(CheckpointCost::limits).collect();
        lines.extend(self.execution.iter().flat_map(ExecutionCost::limits));
        if let Some(LoadFigures { single, pipelined, key_writes, .. }) =
            self.each.protected.last().map(|run| &run.figures)
        {
            for (load, figures) in [("64 under way", pipelined), ("many keys", key_writes), ("one at a time", single)] {
                lines.push(format!(
                    "{load}: replies wait {:.2} ms for their commit (p50; p99 {:.2} ms)",
                    figures.latency_added_ms.p50, figures.latency_added_ms.p99,
                ));
            }
        }
        let takeovers: Vec<_> = self.each.failovers.iter().filter_map(|failover| failover.takeover).collect();
        let part = |value: fn(&api::figures::Takeover) -> f64| {
            median(takeovers.iter().map(value).collect()).unwrap_or_default()
        };
        if !takeovers.is_empty() {
            lines.push(format!(
                "blackout: detection {:.1} ms, arbitration {:.1} ms, restoring {:.1} ms (medians); the rest is output that was not \
                 committed, made again",
                part(|takeover| takeover.detected_ms),
                part(|takeover| takeover.arbitration_ms),
                part(|takeover| takeover.restore_ms),
            ));
        }
        lines
    }
}

/// Appends rows: the figure, without and with protection, what that costs, and COLO's cost at its two rates.
fn rows_beside_colo(rows: &mut Vec<Row>) -> impl FnMut(&str, String, String, String, [String; 2]) {
    move |figure, unprotected, protected, cost, [slow, fast]| {
        rows.push([figure.to_owned(), unprotected, protected, cost, slow, fast]);
    }
}

/// What COLO reached at its default rate, and with frequent checkpoints.
fn colo(text: fn(&Colo) -> String) -> [String; 2] {
    [text(&colo::DEFAULT), text(&colo::FREQUENT)]
}

/// Stands for a figure that there is not.
fn none() -> String {
    "-".to_owned()
}

const MIB: f64 = (1 << 20) as f64;

/// How many times the base.
pub fn ratio(value: f64, base: f64) -> f64 {
    if base > 0.0 { value / base } else { 0.0 }
}

/// A time in us.
pub fn us(value: f64) -> String {
    format!("{value:.0} us")
}

/// A time in ms.
pub fn ms(value: f64) -> String {
    format!("{value:.2} ms")
}

/// A ratio in percent.
pub fn percent(ratio: f64) -> String {
    format!("{:.0}%", ratio * 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::measure::{Bytes, Checkpoints, Cost, Execution, Log};
    use super::*;
    use api::figures::{Figures, PauseClass};

    fn side(cpu_s: f64, pipelined_requests_per_s: f64, latency_ms: u64) -> Side {
        let mut latencies = Histogram::default();
        latencies.add(Duration::from_millis(latency_ms));
        Side {
            cpu_s,
            single_requests_per_s: 1.0,
            latencies,
            pipelined_requests_per_s,
            key_writes_per_s: 1.0,
            memory_bytes: 100,
        }
    }

    fn mirrored() -> Cost {
        Cost::Mirror(Box::new(Checkpoints {
            page_writes: Figures::default(),
            pauses: PauseClass {
                pages_min: 800,
                pages_max: Some(1499),
                checkpoints: 7,
                dirty_pages: 1000,
                ..PauseClass::default()
            },
            pipelined_bytes: Bytes { dirty: 10, sent: 1 },
            key_writes_bytes: Bytes { dirty: 100, sent: 25 },
        }))
    }

    fn executed(bytes: u64, lag_ms_max: f64) -> Cost {
        Cost::Lockstep(Execution {
            log: Log { bytes, inbound_bytes: 1000, segments: 9, seconds: 1.0 },
            idle: Log { bytes: 12_500, inbound_bytes: 0, segments: 1, seconds: 10.0 },
            lag_ms_max,
            throttled_ms: 0.0,
            digests: 5,
            divergences: 0,
        })
    }

    fn protected(side: Side, cost: Cost) -> Protected {
        let figures = Figures::default();
        Protected {
            side,
            secondary_memory_bytes: 150,
            figures: LoadFigures {
                cpu: figures.clone(),
                single: figures.clone(),
                pipelined: figures.clone(),
                key_writes: figures,
            },
            cost,
        }
    }

    fn report(measured: Measured) -> Option<Report> {
        let subject = Subject {
            twinvm_version: "0",
            engine: EngineKind::Soft,
            mode: FtMode::Mirror,
            pins: None,
            runs: 1,
            seconds: 1,
            suspicion_ms: 100,
            cpu_steps: 1,
            host_cpu: None,
            host_cpus: 1,
        };
        Report::new(subject, measured)
    }

    #[test]
    fn ratios_compare_protected_with_unprotected() {
        let measured = Measured {
            unprotected: vec![side(1.0, 1000.0, 1), side(1.0, 1000.0, 1), side(9.0, 10.0, 1)],
            protected: vec![protected(side(2.0, 700.0, 3), mirrored())],
            failovers: Vec::new(),
            silences: Vec::new(),
        };
        let json = serde_json::to_value(report(measured).unwrap()).unwrap();
        for (key, value) in [
            ("cpu_ratio", 0.5),
            ("cpu_s_unprotected", 1.0),
            ("pipelined_ratio", 0.7),
            ("bytes_ratio", 0.25),
            ("bytes_ratio_pipelined", 0.1),
            ("secondary_memory_ratio", 1.5),
            ("pause_dirty_pages", 1000.0),
            ("pause_checkpoints", 7.0),
        ] {
            assert_eq!(json[key].as_f64(), Some(value), "{key}");
        }
        assert_eq!(json["added_latency_ms"]["p50"].as_f64(), Some(2.0));
        for key in ["pause_us", "latency_ms_unprotected", "latency_ms_protected"] {
            assert!(json[key]["p50"].is_number() && json[key]["p99"].is_number(), "{key}");
        }
        assert_eq!(json["blackout_ms"]["each"].as_array().map(Vec::len), Some(0));
    }

    #[test]
    fn the_log_is_compared_with_what_came_in() {
        let run = |bytes, lag| protected(side(1.0, 1.0, 1), executed(bytes, lag));
        let measured = Measured {
            unprotected: vec![side(1.0, 1.0, 1)],
            protected: vec![run(1100, 3.0), run(1200, 9.0), run(1000, 1.0)],
            ..Measured::default()
        };
        let json = serde_json::to_value(report(measured).unwrap()).unwrap();
        for (key, value) in [
            ("log_ratio", 1.1),
            ("log_bytes", 3300.0),
            ("log_inbound_bytes", 3000.0),
            ("log_idle_kbit_per_s", 10.0),
            ("lag_ms_max", 9.0),
            ("digests", 15.0),
        ] {
            assert_eq!(json[key].as_f64(), Some(value), "{key}");
        }
        assert!(json.get("pause_us").is_none() && json.get("bytes_ratio").is_none(), "{json}");
    }

    #[test]
    fn one_side_alone_is_no_result() {
        assert!(report(Measured { unprotected: vec![side(1.0, 1.0, 1)], ..Measured::default() }).is_none());
        assert!(
            report(Measured { protected: vec![protected(side(1.0, 1.0, 1), mirrored())], ..Measured::default() })
                .is_none()
        );
    }

    #[test]
    fn the_peer_is_compared_with_its_own_unprotected_guest() {
        assert_eq!(percent(colo::DEFAULT.pipelined_ratio()), "50%");
        assert_eq!(percent(colo::FREQUENT.cpu_ratio()), "93%");
    }
}
