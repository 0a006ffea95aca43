//! What protection by executing the same costs, of all runs.

use serde::Serialize;

use super::measure::{Cost, Execution, LoadFigures, Protected};
use super::report::{Row, ms, percent, ratio};
use crate::report::median;

/// What others reach, for other guests and loads.
const PEER: &str = "VMware FT (Scales, Nelson, Venkitachalam: The Design of a Practical System for Fault-Tolerant Virtual Machines, \
                    2010): 94% to 99% of unprotected speed; log 1.5 to 18 Mbit/s, idle 0.5 to 1.5 Mbit/s; lag under 100 ms";

/// What the log and the secondary's execution cost.
#[derive(Debug, Serialize)]
pub struct ExecutionCost {
    /// Bytes of the log for each byte of the frames from outside in it, while clients work.
    log_ratio: f64,
    log_bytes: u64,
    log_inbound_bytes: u64,
    /// Bandwidth of the log meanwhile.
    log_kbit_per_s: f64,
    /// Segments of the log in a second meanwhile.
    segments_per_s: f64,
    /// That of a guest that has nothing to do.
    log_idle_kbit_per_s: f64,
    /// Greatest lag of the secondary that was seen.
    lag_ms_max: f64,
    /// How long the guest waited for the secondary in each run, median.
    throttled_ms: f64,
    /// Digests that were compared, in all runs.
    digests: u64,
    /// Digests that differed.
    divergences: u64,
    /// What another implementation reaches.
    vmware_ft: &'static str,
    /// The last run.
    #[serde(skip)]
    last: LoadFigures,
}

impl ExecutionCost {
    /// Puts it together; none if no secondary executed.
    pub fn of(runs: &[Protected]) -> Option<Self> {
        let (figures, runs): (Vec<&LoadFigures>, Vec<&Execution>) = runs
            .iter()
            .filter_map(|run| match &run.cost {
                Cost::Mirror(_) => None,
                Cost::Lockstep(execution) => Some((&run.figures, execution)),
            })
            .unzip();
        let middle = |value: fn(&Execution) -> f64| median(runs.iter().map(|run| value(run)).collect());
        let sum = |value: fn(&Execution) -> u64| runs.iter().map(|run| value(run)).sum::<u64>();
        let (log_bytes, log_inbound_bytes) = (sum(|run| run.log.bytes), sum(|run| run.log.inbound_bytes));
        Some(Self {
            log_ratio: ratio(log_bytes as f64, log_inbound_bytes as f64),
            log_bytes,
            log_inbound_bytes,
            log_kbit_per_s: middle(|run| run.log.kbit_per_s())?,
            segments_per_s: middle(|run| run.log.segments_per_s())?,
            log_idle_kbit_per_s: middle(|run| run.idle.kbit_per_s())?,
            lag_ms_max: runs.iter().map(|run| run.lag_ms_max).fold(0.0, f64::max),
            throttled_ms: middle(|run| run.throttled_ms)?,
            digests: sum(|run| run.digests),
            divergences: sum(|run| run.divergences),
            vmware_ft: PEER,
            last: (*figures.last()?).clone(),
        })
    }

    /// For the table.
    pub fn rows(&self) -> [Row; 4] {
        let none = || "-".to_owned();
        let row = |figure: &str, unprotected: &str, protected: String, cost: String| {
            [figure.to_owned(), unprotected.to_owned(), protected, cost, none(), none()]
        };
        [
            row(
                "log for traffic from outside",
                "0",
                format!("{} for {} KiB", self.log_bytes >> 10, self.log_inbound_bytes >> 10),
                percent(self.log_ratio),
            ),
            row("log of an idle guest", "0", format!("{:.1} kbit/s", self.log_idle_kbit_per_s), none()),
            row("longest lag seen", "-", ms(self.lag_ms_max), format!("guest waits {:.0} ms", self.throttled_ms)),
            row(
                "digests compared",
                "-",
                self.digests.to_string(),
                match self.divergences {
                    0 => "none differ".to_owned(),
                    count => format!("{count} DIFFER"),
                },
            ),
        ]
    }

    /// What the last run shows of causes.
    pub fn limits(&self) -> Vec<String> {
        let LoadFigures { cpu, single, pipelined, key_writes } = &self.last;
        let mut lines = Vec::new();
        let loads =
            [("CPU-bound", cpu), ("64 under way", pipelined), ("many keys", key_writes), ("one at a time", single)];
        for (load, figures) in loads {
            let Some(log) = figures.lockstep else { continue };
            lines.push(format!(
                "{load}: log {:.0} kbit/s; right after it, lag {:.1} ms, {:.1} million instructions",
                log.log_bits_per_s / 1e3,
                log.lag_ms,
                log.lag_instructions as f64 / 1e6,
            ));
        }
        lines.push(format!(
            "log: {:.0} kbit/s and {:.0} segments/s over the loads with clients",
            self.log_kbit_per_s, self.segments_per_s
        ));
        lines.push(PEER.to_owned());
        lines
    }
}
