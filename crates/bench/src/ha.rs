//! `twinvm bench ha`: how long it takes to restart a VM with high availability on another host after its own is lost.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use terminal::interrupt;
use terminal::output::{check_json, is_stdout, print_line, write_json};

use crate::demo::{Hosts, IMAGE, Setup, VM, build_image, pause};
use crate::report::{Progress, host_cpu};

/// The datastore that all hosts share.
const DATASTORE: &str = "shared";
/// How long anything may take before it counts as hung.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long hosts are left alone before one is lost: one that has just started restarts nothing of others for its first two seconds.
const CALM: Duration = Duration::from_secs(3);

#[derive(Args)]
#[command(after_help = "\
Three hosts run on this machine, with their defaults; a folder of it stands for the datastore that they share. A host is lost with all its processes at
once: daemon, VM and whatever acts for the VM. The time ends when another host starts the VM's process; how long the guest then takes to boot
depends on the guest. Most of it is the run lease of the lost host, which nobody may cut short: docs/ha.md says what each part takes.

Example:
  twinvm bench ha --json ha.json")]
pub struct HaArguments {
    /// How often the VM's host is lost
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write the result to this file, as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One loss.
#[derive(Clone, Debug, Serialize)]
struct Restart {
    from: &'static str,
    to: &'static str,
    seconds: f64,
}

/// Times from the loss of a host to the start of its VM's process on another one, in s.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Seconds {
    /// Half of them were not longer.
    p50: f64,
    /// The longest.
    max: f64,
}

impl Seconds {
    fn of(restarts: &[Restart]) -> Option<Self> {
        let mut each: Vec<f64> = restarts.iter().map(|restart| restart.seconds).collect();
        each.sort_by(f64::total_cmp);
        Some(Self { p50: *each.get(each.len().checked_sub(1)? / 2)?, max: *each.last()? })
    }
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    twinvm_version: &'static str,
    runs: u32,
    restart_s: Seconds,
    /// Each loss.
    restarts: Vec<Restart>,
    /// What the machine is, if it says so.
    host_cpu: Option<String>,
}

pub fn run(arguments: &HaArguments) -> Result<ExitCode> {
    interrupt::catch(|| {})?;
    check_json(arguments.json.as_deref())?;
    let is_stdout_taken = is_stdout(arguments.json.as_deref());
    let progress = Progress::new(is_stdout_taken);
    build_image()?;
    progress.say("starting three hosts and a VM")?;
    let mut hosts = Hosts::start(Setup { count: 3, suspicion_ms: None })?;
    create(&hosts)?;
    let mut restarts = Vec::new();
    for run in 1..=arguments.runs {
        let restart = lose(&mut hosts)?;
        let Restart { from, to, seconds } = &restart;
        progress
            .say(&format!("{run} of {}: host {from} lost, restarted on {to} after {seconds:.2} s", arguments.runs))?;
        restarts.push(restart);
    }
    let restart_s = Seconds::of(&restarts).context("there is nothing to report")?;
    let twinvm_version = env!("CARGO_PKG_VERSION");
    let report = Report { twinvm_version, runs: arguments.runs, restart_s, restarts, host_cpu: host_cpu() };
    if !is_stdout_taken {
        let Seconds { p50, max } = report.restart_s;
        print_line(&format!("from the loss of a host to the restart of its VM: p50 {p50:.2} s, longest {max:.2} s"))?;
    }
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the datastore, and the VM on it.
fn create(hosts: &Hosts) -> Result<()> {
    let files = hosts.files();
    hosts.ask(&["datastore", "add", DATASTORE, "--shared", &files.to_string_lossy()])?;
    wait_for("all hosts to reach the datastore", || reaching(hosts).map(|count| count == 3))?;
    let spec = files.join("spec.toml");
    let text = format!(
        "name = \"{VM}\"\nmemory = \"128M\"\nprotection = \"ha\"\nimage = \"{IMAGE}\"\n[[disk]]\npath = \"{VM}.qcow2\"\nformat = \"qcow2\"\n\
         base_image = \"{IMAGE}\"\ndatastore = \"{DATASTORE}\"\n"
    );
    fs::write(&spec, text).context("cannot write a VM spec")?;
    hosts.ask(&["vm", "create", &spec.to_string_lossy(), "--start"]).map(drop)
}

/// How many hosts reach the datastore.
fn reaching(hosts: &Hosts) -> Result<usize> {
    let view = json(&hosts.ask(&["datastore", "show", DATASTORE, "--json"])?)?;
    Ok(view.get("hosts").and_then(Value::as_array).map_or(0, Vec::len))
}

/// The host that runs the VM under its lease, so that others restart it.
fn runs_under_lease(hosts: &Hosts) -> Result<Option<&'static str>> {
    let view = json(&hosts.ask(&["vm", "show", VM, "--json"])?)?;
    let is_restarted = view.pointer("/ha/restarts").and_then(Value::as_bool) == Some(true);
    let runs = is_restarted && view.get("running").and_then(Value::as_bool) == Some(true);
    let with_replicas = hosts.with_replicas();
    Ok(with_replicas.first().copied().filter(|host| runs && view.get("host").and_then(Value::as_str) == Some(*host)))
}

/// Loses the VM's host, waits until another one starts the VM, and starts the lost host again.
fn lose(hosts: &mut Hosts) -> Result<Restart> {
    wait_for("the VM to run", || Ok(runs_under_lease(hosts)?.is_some() && reaching(hosts)? == 3))?;
    let from = runs_under_lease(hosts)?.context("the VM has ended by itself")?;
    let calm = Instant::now() + CALM;
    while Instant::now() < calm {
        pause()?;
    }
    let begin = Instant::now();
    hosts.kill(from)?;
    let deadline = begin + TIMEOUT;
    let to = loop {
        // What was killed may be there for a moment still.
        let mut elsewhere = hosts.with_replicas();
        elsewhere.retain(|host| *host != from);
        match elsewhere[..] {
            [] => {}
            [to] => break to,
            _ => bail!("the VM runs on two hosts{}", hosts.log_tails()),
        }
        if Instant::now() > deadline {
            bail!("the VM is not restarted{}", hosts.log_tails());
        }
        pause()?;
    };
    let seconds = begin.elapsed().as_secs_f64();
    hosts.restart(from)?;
    Ok(Restart { from, to, seconds })
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).context("twinvm did not print JSON")
}

fn wait_for(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so()? {
        if Instant::now() > deadline {
            bail!("waited in vain for {what}");
        }
        pause()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_restarts_are_not_longer_than_the_median() {
        let restarts = [3.0, 1.0, 2.0, 9.0].map(|seconds| Restart { from: "a", to: "b", seconds });
        assert_eq!(Seconds::of(&restarts), Some(Seconds { p50: 2.0, max: 9.0 }));
        assert_eq!(Seconds::of(&[]), None);
    }
}
