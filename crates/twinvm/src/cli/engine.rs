//! `twinvm engine`: what executes vCPUs here.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use machine::probe::{Feature, FeatureState, ProbeReport, probe};
use terminal::output::{print_json, print_line, print_table, table};

#[derive(Subcommand)]
pub enum EngineCommand {
    /// Show what this host offers: the measured speed of each engine, which one `auto` takes and why, and what fault tolerance finds here
    #[command(after_help = PROBE_HELP)]
    Probe(ProbeArguments),
}

const PROBE_HELP: &str = "\
Each engine runs a tight loop as a guest's kernel would (supervisor mode) and as its programs would (user mode). On hardware
virtualization both run at the processor's own speed, and `auto` takes `kvm`. Some clouds and sandboxes offer a /dev/kvm without hardware
below it: it emulates the guest's kernel at about 1 MIPS, and `auto` takes `soft`.

The second table says what the host's kernel and processor give to the kvm engine, what for, and what to do where something is missing.

Examples:
  twinvm engine probe
  twinvm engine probe --json | jq '.features[] | select(.state == \"missing\")'";

#[derive(Args)]
pub struct ProbeArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(command: EngineCommand) -> Result<ExitCode> {
    let EngineCommand::Probe(arguments) = command;
    let report = probe();
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &ProbeReport) -> Result<()> {
    let mut engines = table(&["ENGINE", "SUPERVISOR MIPS", "USER MIPS", "NOTE"]);
    let mips = |mips: Option<f64>| mips.map_or_else(|| "-".to_owned(), |mips| format!("{mips:.1}"));
    for engine in &report.engines {
        engines.add_row([
            engine.engine.to_string(),
            mips(engine.mips),
            mips(engine.user_mips),
            engine.error.clone().unwrap_or_default(),
        ]);
    }
    print_table(&engines)?;
    print_line(&format!("\nauto takes {}: {}\n", report.auto, report.reason))?;
    let mut features = table(&["FOR KVM", "HERE", "SO THAT"]);
    for feature in &report.features {
        features.add_row([feature.name, &here(feature), feature.purpose]);
    }
    print_table(&features)?;
    let mut hints = report.features.iter().filter_map(|feature| Some((feature.name, feature.hint?))).peekable();
    if hints.peek().is_some() {
        print_line("")?;
    }
    for (name, hint) in hints {
        print_line(&format!("{name}: {hint}"))?;
    }
    Ok(())
}

fn here(feature: &Feature) -> String {
    let state = match feature.state {
        FeatureState::Present => "yes",
        FeatureState::Missing => "no",
        FeatureState::Unknown => "not known",
    };
    feature.value.as_ref().map_or_else(|| state.to_owned(), |value| format!("{state}: {value}"))
}
