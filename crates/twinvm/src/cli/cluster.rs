//! `twinvm cluster`: what concerns a cluster as a whole.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use super::host::{NewHostArguments, init_host};
use host::init::Keys;

#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Make a cluster, of which this machine is the first host
    #[command(after_help = "\
The same as `twinvm host init --new-cluster`:
  a$ twinvm cluster init --name a --listen 192.0.2.1:7441 --store etcd://192.0.2.1:2379,192.0.2.2:2379,192.0.2.3:2379
  a$ twinvm host start
Further hosts join with a token:
  a$ twinvm host token b
  b$ twinvm host join TOKEN --listen 192.0.2.2:7441")]
    Init(Box<NewHostArguments>),
}

pub fn run(command: ClusterCommand) -> Result<ExitCode> {
    let ClusterCommand::Init(arguments) = command;
    init_host(Keys::NewCluster, *arguments)?;
    Ok(ExitCode::SUCCESS)
}
