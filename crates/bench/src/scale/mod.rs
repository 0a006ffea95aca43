//! `twinvm bench cluster`: whether a large cluster plans in time after a loss, by the controller that ships, and what a daemon with many VMs costs.

mod daemon;
mod made_up;
mod planning;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use terminal::interrupt;
use terminal::output::{check_json, is_stdout, print_table, table, write_json};

use self::daemon::DaemonFigures;
use self::planning::PlanFigures;
use crate::report::{Progress, host_cpu};

#[derive(Args)]
#[command(after_help = "\
A plan is what one host decides right after others are lost: which VMs of theirs are restarted where, which of its own need another
secondary, and what it does about the rest. It is decided by the controller that ships, from a state that is made up: each host has 20 VMs,
of which 4 are fault tolerant, 12 have high availability on shared datastores, and 4 neither. Nothing is started, and no store is asked.
Figures are the longest of all runs; each run loses other hosts.

Then a real daemon is given VMs that are off. `vm list` is timed from its start to its end, and the daemon's CPU time is read while nobody asks it
anything.

Examples:
  twinvm bench cluster --json cluster.json
  twinvm bench cluster --hosts 100 --vms 2000 --records 0     Planning alone, for a cluster of this size")]
pub struct ClusterArguments {
    /// Hosts of the cluster that is made up
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(12..=10_000))]
    hosts: u32,
    /// Its VMs
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    vms: u32,
    /// How often hosts are lost
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// VMs of the real daemon; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    records: u32,
    /// How long the daemon is watched while it has nothing to do, in s
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Write the result to this file, as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    twinvm_version: &'static str,
    hosts: u32,
    vms: u32,
    runs: u32,
    #[serde(flatten)]
    plan: PlanFigures,
    records: u32,
    #[serde(flatten)]
    daemon: Option<DaemonFigures>,
    /// What the machine is, if it says so.
    host_cpu: Option<String>,
}

pub fn run(arguments: &ClusterArguments) -> Result<ExitCode> {
    interrupt::catch(|| {})?;
    check_json(arguments.json.as_deref())?;
    let is_stdout_taken = is_stdout(arguments.json.as_deref());
    let ClusterArguments { hosts, vms, runs, records, seconds, .. } = *arguments;
    let progress = Progress::new(is_stdout_taken);
    let plan = planning::measure(hosts, vms, runs, &progress)?;
    let daemon = (records > 0).then(|| daemon::measure(records, seconds, &progress)).transpose()?;
    let twinvm_version = env!("CARGO_PKG_VERSION");
    let report = Report { twinvm_version, hosts, vms, runs, plan, records, daemon, host_cpu: host_cpu() };
    if !is_stdout_taken {
        report.print()?;
    }
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn print(&self) -> Result<()> {
        let mut rows = table(&["WHAT", "MEASURED"]);
        let mut row = |what: String, measured: String| {
            rows.add_row([what, measured]);
        };
        let of = format!("of {} hosts with {} VMs", self.hosts, self.vms);
        row(format!("plan after the loss of 1 {of}"), format!("{:.1} ms", self.plan.plan_1_ms));
        row(format!("plan after the loss of 10 {of}"), format!("{:.1} ms", self.plan.plan_10_ms));
        row("first plan of a daemon".to_owned(), format!("{:.1} ms", self.plan.plan_first_ms));
        row("plan while nothing happens".to_owned(), format!("{:.1} ms", self.plan.plan_idle_ms));
        row("admission of a VM, one host's loss tolerated".to_owned(), format!("{:.1} ms", self.plan.admit_ms));
        row("memory at its highest".to_owned(), format!("{:.0} MiB", self.plan.rss_mb));
        if let Some(daemon) = &self.daemon {
            row(format!("`vm list` of {} VMs", self.records), format!("{:.1} ms", daemon.list_ms));
            row(
                format!("daemon with {} VMs, idle", self.records),
                format!("{:.1}% of a core", daemon.idle_cpu_percent),
            );
        }
        print_table(&rows)
    }
}
