//! How long plans take.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cluster::controller::{Action, Controller, Plan, Settings};
use cluster::planner::{Basis, Failures, admits, place_restarts};
use cluster::records::ClusterState;
use host::config::first_copies_max_default;
use serde::Serialize;
use spec::{AdmissionPolicy, HostName};
use terminal::interrupt;

use super::made_up::{MadeUp, now};
use crate::report::Progress;

/// What hosts have by default.
fn settings() -> Settings {
    Settings { first_copies_max: first_copies_max_default() }
}

/// Hosts whose plan is made after each loss: all others do the same at that time, each on a machine of its own.
const PLANNERS: u32 = 5;

/// What was measured. Times are the longest of all runs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PlanFigures {
    /// Right after one host is lost.
    pub plan_1_ms: f64,
    /// Right after ten are lost at once.
    pub plan_10_ms: f64,
    /// The first of a daemon, to which specs are new.
    pub plan_first_ms: f64,
    /// When nothing has happened.
    pub plan_idle_ms: f64,
    /// Whether a VM may be started, where any host's loss is to be tolerated.
    pub admit_ms: f64,
    /// The most memory that this process had, in MiB.
    pub rss_mb: f64,
}

/// Loses hosts, and times the plans of some that are left.
pub fn measure(hosts: u32, vms: u32, runs: u32, progress: &Progress) -> Result<PlanFigures> {
    progress.say(&format!("making up {hosts} hosts with {vms} VMs"))?;
    let made_up = MadeUp::new(hosts, vms)?;
    let mut figures = PlanFigures::default();
    let mut warm = Vec::new();
    for number in 0..PLANNERS {
        let mut planner = Planner::new(&made_up, number * hosts / PLANNERS)?;
        let (_, first_ms) = planner.plan(&made_up, &made_up.state);
        let (_, idle_ms) = planner.plan(&made_up, &made_up.state);
        if number == 0 {
            figures.plan_first_ms = first_ms;
        }
        figures.plan_idle_ms = figures.plan_idle_ms.max(idle_ms);
        warm.push(planner);
    }
    for run in 0..runs {
        for (count, longest) in [(1, &mut figures.plan_1_ms), (10, &mut figures.plan_10_ms)] {
            let ms = lose(&made_up, &warm, run, count)?;
            progress.say(&format!("run {} of {runs}: {count} lost: {ms:.1} ms", run + 1))?;
            *longest = longest.max(ms);
        }
    }
    let (state, vm, host) = made_up.with_one_more()?;
    let begin = Instant::now();
    admits(&AdmissionPolicy::HostFailures { hosts: 1 }, &vm, &host, &state, &now())?;
    figures.admit_ms = ms_since(begin);
    figures.rss_mb = memory_max_mib()?;
    Ok(figures)
}

/// One host that plans, and remembers what was before.
#[derive(Clone)]
struct Planner {
    host: HostName,
    controller: Controller,
}

impl Planner {
    fn new(made_up: &MadeUp, number: u32) -> Result<Self> {
        Ok(Self { host: made_up.host(number)?, controller: Controller::new(settings()) })
    }

    /// What it decides in this state, and how long that takes, in ms.
    fn plan(&mut self, made_up: &MadeUp, state: &ClusterState) -> (Plan, f64) {
        let (report, now) = (made_up.report(&self.host, state), now());
        let begin = Instant::now();
        let plan = self.controller.decide(state, &report, &now);
        (plan, ms_since(begin))
    }
}

/// Loses so many hosts; the longest plan of the planners that are left.
fn lose(made_up: &MadeUp, warm: &[Planner], run: u32, count: u32) -> Result<f64> {
    // Beside the planners, and others each time.
    let lost: BTreeSet<HostName> =
        (0..count).map(|number| made_up.host(1 + run * count + number)).collect::<Result<_>>()?;
    let state = made_up.after_loss(&lost);
    let placed = place_restarts(&Basis { state: &state, failures: &Failures::default(), now: &now() }).placed;
    let (_, restarter) = placed.first().context("no VM is restarted after the loss of its host")?;
    let mut restarter = Planner { host: restarter.clone(), controller: Controller::new(settings()) };
    restarter.plan(made_up, &made_up.state);
    let (mut longest_ms, mut restarts) = (0.0_f64, 0);
    let left = warm.iter().filter(|planner| !lost.contains(&planner.host));
    for planner in left.chain([&restarter]) {
        if interrupt::is_requested() {
            bail!("interrupted");
        }
        let (plan, ms) = planner.clone().plan(made_up, &state);
        longest_ms = longest_ms.max(ms);
        restarts += plan.actions.iter().filter(|it| matches!(it.action, Action::Restart { .. })).count();
    }
    if restarts == 0 {
        bail!("host {} does not restart what is its to restart", restarter.host);
    }
    Ok(longest_ms)
}

fn ms_since(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

/// The most memory that this process has had so far, in MiB.
fn memory_max_mib() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("/proc/self/status does not say VmHWM")? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster of a tenth of the size: what looks at all VMs for each host would take minutes.
    #[test]
    fn a_large_cluster_does_not_hang() {
        let begin = Instant::now();
        let figures = measure(100, 2000, 1, &Progress::new(true)).unwrap();
        assert!(begin.elapsed().as_secs() < 60, "{figures:?}");
        assert!(figures.plan_1_ms < 1000.0 && figures.plan_10_ms < 2000.0, "{figures:?}");
    }
}
