//! `twinvm bench ft`: what protection costs, beside the same VM without it in the same run.

mod checkpoints;
mod colo;
mod execution;
mod measure;
mod report;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use host::replica::config::SUSPICION_MS_DEFAULT;
use spec::FtMode;
use terminal::choices::{EngineName, ModeName};
use terminal::interrupt;
use terminal::output::{check_json, is_stdout, write_json};

use self::measure::{Protected, Side};
use self::report::{Measured, Report, Subject};
use self::work::Work;
use super::report::host_cpu;
use crate::demo::{Failover, Loss, Pins, Screen, Stage, build_image, engine_for, survive};
use crate::load::{Counter, Load};

#[derive(Args)]
#[command(after_help = "\
Three hosts run on this machine. The VM serves Redis; it is measured in turns without and with protection, then the primary's
host is killed a few times, and made to stand still a few times.

With `--pin replicas`, the primary has a processor for itself and the secondary another one; client, network end and daemons have
the others or, where there are only two, share the primary's. It is the same without protection.")]
pub struct FtArguments {
    /// How the VM is protected
    #[arg(long, value_enum, default_value = "mirror")]
    mode: ModeName,
    /// Which replicas have a processor for themselves [default: replicas with lockstep, none with mirror]
    #[arg(long, value_enum)]
    pin: Option<Pin>,
    /// Write the result to this file, as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each side is measured; medians count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How long each load runs, in s
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// How often the primary's host is killed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    kills: u32,
    /// How often the primary's host falls silent: it stands still, with its connections open
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1000))]
    silences: u32,
    /// What executes the vCPUs
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineName,
    /// Silence after which a replica suspects the other one, in ms; machines within emulators need more [default: as hosts have it]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(20..=10_000))]
    suspicion: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Pin {
    /// Both
    Replicas,
    /// Neither
    None,
}

pub fn run(arguments: &FtArguments) -> Result<ExitCode> {
    interrupt::catch(|| {})?;
    check_json(arguments.json.as_deref())?;
    let is_stdout_taken = is_stdout(arguments.json.as_deref());
    let mode = FtMode::from(arguments.mode);
    let engine = engine_for(mode, arguments.engine)?;
    let pins = match (arguments.pin, mode) {
        (Some(Pin::Replicas), _) | (None, FtMode::Lockstep) => Some(Pins::choose()?),
        (Some(Pin::None), _) | (None, FtMode::Mirror) => None,
    };
    build_image()?;
    let mut stage = Stage::set(engine, mode, Screen::new(is_stdout_taken), pins.clone(), arguments.suspicion)?;
    let duration = Duration::from_secs(arguments.seconds.into());
    let mut work = Work::prepare(&stage, duration)?;
    let mut measured = Measured::default();
    for run in 1..=arguments.runs {
        stage.screen.event(&format!("run {run} of {}: unprotected", arguments.runs));
        measured.unprotected.push(Side::measure(&mut stage, &mut work)?);
        stage.screen.event(&format!("run {run} of {}: protected", arguments.runs));
        stage.protect()?;
        measured.protected.push(Protected::measure(&mut stage, &mut work, mode)?);
        stage.unprotect()?;
    }
    if arguments.kills + arguments.silences > 0 {
        stage.protect()?;
        let client = stage.count(1)?;
        measured.failovers = failovers(&mut stage, &client, Loss::Kill, arguments.kills, "kill")?;
        measured.silences = failovers(&mut stage, &client, Loss::Silence, arguments.silences, "silence")?;
        let (outcome, _) = client.finish();
        if let Some(broken) = outcome.broken {
            bail!("the client's connection broke: {broken}");
        }
        if (outcome.lost, outcome.repeated) != (0, 0) {
            bail!("{} acknowledged increments were lost, {} were made twice", outcome.lost, outcome.repeated);
        }
    }
    stage.screen.finish();
    let subject = Subject {
        twinvm_version: env!("CARGO_PKG_VERSION"),
        engine,
        mode,
        pins,
        runs: arguments.runs,
        seconds: arguments.seconds,
        suspicion_ms: arguments.suspicion.unwrap_or(SUSPICION_MS_DEFAULT),
        cpu_steps: work.cpu_steps(),
        host_cpu: host_cpu(),
        host_cpus: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let report = Report::new(subject, measured).context("there is nothing to report")?;
    if !is_stdout_taken {
        report.print()?;
    }
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn failovers(stage: &mut Stage, client: &Load<Counter>, loss: Loss, count: u32, what: &str) -> Result<Vec<Failover>> {
    let mut failovers = Vec::new();
    for number in 1..=count {
        let failover = survive(stage, client, loss, &format!("{what} {number} of {count}"))?;
        if !failover.survived {
            bail!("a {what} was not survived{}", stage.hosts.log_tails());
        }
        failovers.push(failover);
    }
    Ok(failovers)
}
