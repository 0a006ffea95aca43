//! `twinvm operator`: who may administer a cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use host::operator;
use serde_json::json;
use terminal::output::{print_json, print_line};

use super::daemon::DaemonArguments;

#[derive(Subcommand)]
pub enum OperatorCommand {
    /// Make the keys of an operator, on the host that has made the cluster
    #[command(after_help = "\
The file holds a private key: whoever has it can do with the cluster's VMs and hosts whatever commands can. Commands take it from --operator,
from the environment variable TWINVM_OPERATOR, or from operator.pem in the folder of the host that they ask.")]
    Issue(IssueArguments),
}

#[derive(Args)]
pub struct IssueArguments {
    /// Name of the operator
    name: String,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    daemon: DaemonArguments,
}

pub fn run(command: OperatorCommand) -> Result<ExitCode> {
    let OperatorCommand::Issue(IssueArguments { name, out, daemon }) = command;
    operator::issue(&daemon.folder()?, &name, &out)?;
    if daemon.json {
        print_json(&json!({ "operator": name, "file": out }))?;
    } else {
        print_line(&format!("keys of operator {name}: {0}; use them with --operator {0}", out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
