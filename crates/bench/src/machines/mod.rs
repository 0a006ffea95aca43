//! `twinvm bench machines`: how long a client waits when the machine of its VM's primary is lost, with the store in an etcd on the machines themselves.

mod namespaces;
mod scene;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::figures::Takeover;
use clap::Args;
use serde::Serialize;
use terminal::interrupt;
use terminal::output::{check_json, is_stdout, print_table, table, write_json};

use self::scene::{NAMES, Scene};
use crate::demo::{build_image, pause};
use crate::load::{Counter, Load, LoadOptions};
use crate::report::{Progress, host_cpu, median};

/// The counter that the client increments.
const COUNTER: &str = "counter";
/// Replies after which the client counts as served again.
const REPLIES: u64 = 10;
/// How long the client runs undisturbed before a loss.
const CALM: Duration = Duration::from_secs(1);
/// How long a takeover may take before it counts as failed.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(60);
/// For so long after the client is served again, a longer gap still belongs to the loss.
const AFTERMATH: Duration = Duration::from_millis(200);

#[derive(Args)]
#[command(after_help = "\
Needs root, etcd and iproute2. Three machines are network namespaces of this one, each with a member of etcd and a host, set up with their defaults as
docs/operators.md says. A machine is lost with all its processes and its link at once, so that nobody hears of its end. docs/etcd.md says what each
part of the time is.

Example:
  twinvm bench machines --json machines.json")]
pub struct MachinesArguments {
    /// Write the result to this file, as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often a machine is lost with etcd's leader elsewhere, and how often with etcd's leader on it
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

/// One loss.
#[derive(Clone, Debug, Serialize)]
struct Lost {
    /// The machine that was lost.
    machine: String,
    /// etcd's leader was on it.
    with_leader: bool,
    /// The longest gap between two replies around it.
    blackout_ms: f64,
    /// What the new primary says of its takeover.
    takeover: Option<Takeover>,
}

/// Blackouts of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Blackout {
    /// Half of them were not longer.
    p50: Option<f64>,
    /// The longest.
    max: Option<f64>,
}

/// What a takeover's time goes to, each the median, in ms: what the new primary says of it. The rest of a blackout is the way of the requests before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Parts {
    /// From the last sign of life of the machine that was lost to the suspicion.
    detected: Option<f64>,
    /// The compare-and-swap in etcd.
    arbitration: Option<f64>,
    /// From winning it to the guest running.
    restore: Option<f64>,
}

impl Parts {
    fn of(losses: &[Lost], with_leader: bool) -> Self {
        let takeovers: Vec<Takeover> =
            losses.iter().filter(|lost| lost.with_leader == with_leader).filter_map(|lost| lost.takeover).collect();
        let of = |part: fn(&Takeover) -> f64| median(takeovers.iter().map(part).collect());
        Self {
            detected: of(|takeover| takeover.detected_ms),
            arbitration: of(|takeover| takeover.arbitration_ms),
            restore: of(|takeover| takeover.restore_ms),
        }
    }
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    twinvm_version: &'static str,
    /// With etcd's leader on another machine.
    blackout_ms: Blackout,
    /// With etcd's leader on the machine that was lost.
    blackout_leader_ms: Blackout,
    /// What takeovers took with etcd's leader on another machine.
    parts_ms: Parts,
    /// The same with the leader on the machine that was lost.
    parts_leader_ms: Parts,
    /// Increments that were acknowledged.
    acknowledged: u64,
    /// Each loss.
    losses: Vec<Lost>,
    /// What the machine is, if it says so.
    host_cpu: Option<String>,
}

impl Blackout {
    fn of(losses: &[Lost], with_leader: bool) -> Self {
        let mut each: Vec<f64> =
            losses.iter().filter(|lost| lost.with_leader == with_leader).map(|lost| lost.blackout_ms).collect();
        each.sort_by(f64::total_cmp);
        Self { p50: each.get(each.len().saturating_sub(1) / 2).copied(), max: each.last().copied() }
    }
}

pub fn run(arguments: &MachinesArguments) -> Result<ExitCode> {
    interrupt::catch(|| {})?;
    check_json(arguments.json.as_deref())?;
    let is_stdout_taken = is_stdout(arguments.json.as_deref());
    let progress = Progress::new(is_stdout_taken);
    build_image()?;
    progress.say("setting three machines up, and a protected VM")?;
    let mut scene = Scene::set()?;
    let options = LoadOptions { depth: 1, silence_max: TAKEOVER_TIMEOUT };
    let client = Load::count(scene.redis(), COUNTER, options).context("the client cannot reach Redis")?;
    let mut losses = Vec::new();
    for run in 1..=arguments.runs {
        for with_leader in [false, true] {
            let lost = lose(&mut scene, &client, with_leader)?;
            let what = if lost.with_leader { ", with etcd's leader" } else { "" };
            let Lost { machine, blackout_ms, .. } = &lost;
            progress.say(&format!("{run} of {}: machine {machine} lost{what}: {blackout_ms:.1} ms", arguments.runs))?;
            losses.push(lost);
        }
    }
    let outcome = client.finish_and_audit(scene.redis(), COUNTER, TAKEOVER_TIMEOUT)?;
    if let Some(broken) = outcome.broken {
        bail!("the client's connection broke: {broken}");
    }
    if (outcome.lost, outcome.repeated) != (0, 0) {
        bail!("{} acknowledged increments were lost, {} were made twice", outcome.lost, outcome.repeated);
    }
    let report = Report {
        twinvm_version: env!("CARGO_PKG_VERSION"),
        blackout_ms: Blackout::of(&losses, false),
        blackout_leader_ms: Blackout::of(&losses, true),
        parts_ms: Parts::of(&losses, false),
        parts_leader_ms: Parts::of(&losses, true),
        acknowledged: outcome.acknowledged,
        losses,
        host_cpu: host_cpu(),
    };
    if !is_stdout_taken {
        report.print()?;
    }
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Brings the primary to a machine with or without etcd's leader.
fn place(scene: &Scene, with_leader: bool) -> Result<usize> {
    let [primary, secondary] = scene.wait_until_protected()?;
    let leader = scene.etcd_leader()?;
    if (primary == leader) == with_leader {
        return Ok(primary);
    }
    if !with_leader || secondary == leader {
        scene.switch_over(primary)?;
    } else {
        scene.migrate(primary, leader)?;
    }
    Ok(scene.wait_until_protected()?[0])
}

/// Loses the machine of the primary, and brings it back when the client is served again.
fn lose(scene: &mut Scene, client: &Load<Counter>, with_leader: bool) -> Result<Lost> {
    let primary = place(scene, with_leader)?;
    wait(CALM)?;
    client.take_longest_gap();
    // What is lost is what counts: the leader may have changed by itself.
    let with_leader = scene.etcd_leader()? == primary;
    scene.lose(primary)?;
    let served_at = client.snapshot().acknowledged + REPLIES;
    let deadline = Instant::now() + TAKEOVER_TIMEOUT;
    while client.snapshot().acknowledged < served_at {
        if let Some(broken) = client.snapshot().broken {
            bail!("the client's connection broke: {broken}");
        }
        if Instant::now() > deadline {
            bail!("nobody took over from {}", NAMES.get(primary).copied().unwrap_or_default());
        }
        pause()?;
    }
    wait(AFTERMATH)?;
    let blackout_ms = client.take_longest_gap().as_secs_f64() * 1e3;
    let takeover = scene.view().primary().and_then(|primary| primary.figures.last_takeover);
    scene.restart(primary)?;
    let machine = NAMES.get(primary).copied().unwrap_or_default().to_owned();
    Ok(Lost { machine, with_leader, blackout_ms, takeover })
}

fn wait(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        pause()?;
    }
    Ok(())
}

impl Report {
    fn print(&self) -> Result<()> {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} ms"));
        let mut rows = table(&["BLACKOUT", "P50", "LONGEST", "DETECTED", "SWAP IN ETCD", "RESTORE"]);
        for (what, blackout, parts) in [
            ("etcd's leader elsewhere", self.blackout_ms, self.parts_ms),
            ("etcd's leader lost too", self.blackout_leader_ms, self.parts_leader_ms),
        ] {
            let parts = [parts.detected, parts.arbitration, parts.restore];
            let times = [blackout.p50, blackout.max].into_iter().chain(parts).map(ms);
            rows.add_row([what.to_owned()].into_iter().chain(times));
        }
        print_table(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_with_the_leader_are_told_from_others() {
        let lost =
            |with_leader, blackout_ms| Lost { machine: "a".to_owned(), with_leader, blackout_ms, takeover: None };
        let losses = [lost(false, 120.0), lost(true, 400.0), lost(false, 90.0), lost(true, 300.0), lost(false, 100.0)];
        assert_eq!(Blackout::of(&losses, false), Blackout { p50: Some(100.0), max: Some(120.0) });
        assert_eq!(Blackout::of(&losses, true), Blackout { p50: Some(300.0), max: Some(400.0) });
        assert_eq!(Blackout::of(&[], true), Blackout { p50: None, max: None });
    }
}
