//! `twinvm net-end`: the network end's process, started by `twinvm` itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use network::end::EndConfig;

#[derive(Args)]
pub struct NetEndArguments {
    /// The end's configuration, as JSON
    #[arg(long)]
    config: String,
    /// The socket that the VM process connects to
    #[arg(long)]
    socket: PathBuf,
}

pub fn run(arguments: NetEndArguments) -> Result<ExitCode> {
    let config: EndConfig = serde_json::from_str(&arguments.config).context("--config")?;
    network::end::run(&config, &arguments.socket)?;
    Ok(ExitCode::SUCCESS)
}
