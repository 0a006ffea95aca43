//! `twinvm broker`: the process that acts for a replica, started by it.

use std::io::{stdin, stdout};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use host::replica::broker;
use host::replica::config::ReplicaConfig;
use host::sandbox::{self, Kind};

#[derive(Args)]
pub struct BrokerArguments {
    /// The replica's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn run(arguments: &BrokerArguments) -> Result<ExitCode> {
    let config = ReplicaConfig::load(&arguments.config)?;
    sandbox::filter_calls(Kind::Broker)?;
    let connections = stdout().as_fd().try_clone_to_owned()?;
    broker::serve(&config, stdin(), connections)?;
    Ok(ExitCode::SUCCESS)
}
