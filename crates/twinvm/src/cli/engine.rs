//! `twinvm engine`: what executes vCPUs here.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use machine::probe::probe;

use super::output::{print_json, print_line, table};

#[derive(Subcommand)]
pub enum EngineCommand {
    /// Show what this host offers, the measured speed of each engine, and which one `auto` takes and why
    Probe(ProbeArguments),
}

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
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["ENGINE", "MIPS", "NOTE"]);
    for engine in &report.engines {
        rows.add_row([
            engine.engine.to_string(),
            engine.mips.map_or_else(|| "-".to_owned(), |mips| format!("{mips:.1}")),
            engine.error.clone().unwrap_or_default(),
        ]);
    }
    print_line(&rows.trim_fmt())?;
    print_line(&format!("\nauto takes {}: {}", report.auto, report.reason))?;
    Ok(ExitCode::SUCCESS)
}
