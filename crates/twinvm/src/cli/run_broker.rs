//! `twinvm run-broker`: the process that acts for a VM in the foreground, started by it.

use std::io::stdin;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use host::foreground::broker;

#[derive(Args)]
pub struct RunBrokerArguments {
    /// What the VM needs, as JSON
    #[arg(long)]
    config: String,
}

pub fn run(arguments: &RunBrokerArguments) -> Result<ExitCode> {
    let config = serde_json::from_str(&arguments.config).context("--config")?;
    broker::serve(&config, stdin())?;
    Ok(ExitCode::SUCCESS)
}
