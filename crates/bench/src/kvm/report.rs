//! What the benchmark found, for people and programs.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use terminal::output::{print_line, print_table, table};

use super::work::Run;
use crate::report::median;

/// Something that is measured on both sides.
struct Figure {
    /// Its name in the report; its ratio is `ratio_` and this.
    key: &'static str,
    /// For people, with the unit.
    what: &'static str,
    value: fn(&Run) -> Option<f64>,
    /// Whether less of it is better.
    is_time: bool,
}

const fn time(key: &'static str, what: &'static str, value: fn(&Run) -> Option<f64>) -> Figure {
    Figure { key, what, value, is_time: true }
}

const fn rate(key: &'static str, what: &'static str, value: fn(&Run) -> Option<f64>) -> Figure {
    Figure { key, what, value, is_time: false }
}

const FIGURES: [Figure; 11] = [
    time("boot", "boot to ready, s", |run| Some(run.boot_s)),
    time("cpu_loop", "shell loop, s", |run| run.cpu_loop_s),
    rate("redis_single", "Redis, one at a time, requests/s", |run| run.redis_single_per_s),
    rate("redis_pipelined", "Redis, 64 under way, requests/s", |run| run.redis_pipelined_per_s),
    rate("network_in", "network into the guest, MB/s", |run| run.network_in_bytes_per_s.map(|rate| rate / 1e6)),
    rate("network_out", "network out of the guest, MB/s", |run| run.network_out_bytes_per_s.map(|rate| rate / 1e6)),
    rate("disk_sequential_read", "disk, 256 KiB reads in order, 1/s", |run| run.disk_sequential_reads_per_s),
    rate("disk_sequential_write", "disk, 256 KiB writes in order, 1/s", |run| run.disk_sequential_writes_per_s),
    rate("disk_random_read", "disk, 4 KiB reads anywhere, 1/s", |run| run.disk_random_reads_per_s),
    rate("disk_random_write", "disk, 4 KiB writes anywhere, 1/s", |run| run.disk_random_writes_per_s),
    rate("disk_synced_write", "disk, 4 KiB writes with fsync, 1/s", |run| run.disk_synced_writes_per_s),
];

/// The result of `twinvm bench kvm`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Runs of each side.
    pub runs: u32,
    /// How long each load ran, in s.
    pub seconds: u32,
    /// `ratio_*`: speed relative to the peer's, by medians; more is better.
    #[serde(flatten)]
    pub ratios: BTreeMap<String, Option<f64>>,
    /// Medians of twinvm's kvm engine.
    pub ours: BTreeMap<&'static str, Option<f64>>,
    /// Medians of QEMU on KVM.
    pub peer: BTreeMap<&'static str, Option<f64>>,
    /// Every run.
    pub each: Each,
    /// What was measured, and where.
    pub subject: Subject,
}

/// Every run, in the order in which they took turns.
#[derive(Debug, Default, Serialize)]
pub struct Each {
    /// twinvm's.
    pub ours: Vec<Run>,
    /// QEMU's.
    pub peer: Vec<Run>,
}

/// What was measured, and where.
#[derive(Debug, Serialize)]
pub struct Subject {
    /// Version of twinvm.
    pub twinvm_version: &'static str,
    /// Version of QEMU.
    pub qemu_version: String,
    /// Release of the guest's kernel.
    pub guest_kernel: String,
    /// What both guests had on their kernel command line beside the usual.
    pub append: String,
    /// vCPUs of the guest.
    pub guest_cpus: u32,
    /// The host's processor.
    pub host_cpu: Option<String>,
    /// Processors of the host.
    pub host_cpus: usize,
}

impl Report {
    /// The report of some runs.
    pub fn new(runs: u32, seconds: u32, each: Each, subject: Subject) -> Self {
        let medians = |runs: &[Run]| -> BTreeMap<&'static str, Option<f64>> {
            let of = |figure: &Figure| (figure.key, median(runs.iter().filter_map(figure.value).collect()));
            FIGURES.iter().map(of).collect()
        };
        let (ours, peer) = (medians(&each.ours), medians(&each.peer));
        let value = |side: &BTreeMap<&'static str, Option<f64>>, key| side.get(key).copied().flatten();
        let ratio = |figure: &Figure| {
            let ratio = speed(value(&ours, figure.key), value(&peer, figure.key), figure.is_time);
            (format!("ratio_{}", figure.key), ratio)
        };
        let ratios = FIGURES.iter().map(ratio).collect();
        Self { runs, seconds, ratios, ours, peer, each, subject }
    }

    /// Prints it for people.
    pub fn print(&self) -> Result<()> {
        print_line(&format!(
            "guest: Linux {}, {} vCPUs; host: {}; QEMU {}; medians of {}\n",
            self.subject.guest_kernel,
            self.subject.guest_cpus,
            self.subject.host_cpu.as_deref().unwrap_or("unknown processor"),
            self.subject.qemu_version,
            self.runs
        ))?;
        let mut rows = table(&["WORK", "TWINVM", "QEMU", "SPEED"]);
        for Figure { key, what, .. } in &FIGURES {
            let [ours, peer] = [&self.ours, &self.peer].map(|side| side.get(key).copied().flatten());
            if ours.or(peer).is_none() {
                continue;
            }
            rows.add_row([
                (*what).to_owned(),
                number(ours),
                number(peer),
                number(self.ratios.get(&format!("ratio_{key}")).copied().flatten()),
            ]);
        }
        print_table(&rows)
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 100.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.0}"),
    }
}

/// Speed relative to the peer, from what both took or reached.
fn speed(ours: Option<f64>, peer: Option<f64>, is_time: bool) -> Option<f64> {
    let (over, under) = if is_time { (peer?, ours?) } else { (ours?, peer?) };
    (under > 0.0).then(|| over / under)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(boot_s: f64, redis_single_per_s: f64) -> Run {
        Run {
            boot_s,
            cpu_loop_s: Some(1.0),
            redis_single_per_s: Some(redis_single_per_s),
            disk_random_writes_per_s: Some(0.0),
            ..Run::default()
        }
    }

    #[test]
    fn more_is_better_in_every_ratio() {
        let subject = Subject {
            twinvm_version: "0",
            qemu_version: "7.2.22".to_owned(),
            guest_kernel: "6.1".to_owned(),
            append: String::new(),
            guest_cpus: 1,
            host_cpu: None,
            host_cpus: 2,
        };
        let each = Each { ours: vec![run(2.0, 300.0)], peer: vec![run(1.0, 200.0)] };
        let report = serde_json::to_value(Report::new(1, 5, each, subject)).unwrap();
        assert_eq!(report["ratio_boot"], 0.5);
        assert_eq!(report["ratio_redis_single"], 1.5);
        assert_eq!(report["ratio_cpu_loop"], 1.0);
        assert!(report["ratio_disk_random_write"].is_null(), "the peer did nothing");
        assert!(report["ratio_network_in"].is_null() && report["ours"]["network_in"].is_null(), "not measured");
        assert_eq!(report["ours"]["boot"], 2.0);
        let ratios = report.as_object().unwrap().keys().filter(|key| key.starts_with("ratio_")).count();
        assert_eq!(ratios, FIGURES.len());
    }
}
