//! VMs that run in the foreground.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use spec::EngineChoice;

use super::StopArguments;
use crate::cli::output::{print_json, print_line};
use crate::cli::run::HowArguments;
use crate::foreground::requests::{Request, VmStatus, ask, running};
use crate::foreground::{self, Start};

#[derive(Args)]
pub struct SnapshotArguments {
    /// Name of the VM
    name: String,
    /// The file to write
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct RestoreArguments {
    /// The snapshot file
    file: PathBuf,
    #[command(flatten)]
    how: HowArguments,
}

pub fn snapshot(arguments: &SnapshotArguments) -> Result<()> {
    let path = std::path::absolute(&arguments.file);
    let path = path.with_context(|| format!("cannot resolve {}", arguments.file.display()))?;
    let status = ask(&arguments.name, &Request::Snapshot { path })?;
    answer(arguments.json, &status, &format!("snapshot written: {}", arguments.file.display()))
}

pub fn restore(arguments: &RestoreArguments) -> Result<()> {
    foreground::run(Start::Snapshot(arguments.file.clone()), &arguments.how.options(EngineChoice::Auto, false))
}

pub fn stop(arguments: &StopArguments) -> Result<()> {
    let name = &arguments.vm.name;
    let status = ask(name, &Request::Stop { force: arguments.force })?;
    // Another one of this name may be started meanwhile.
    arguments.wait(|| Ok(!running()?.iter().any(|vm| vm.name == *name && vm.pid == status.pid)))?;
    answer(arguments.vm.daemon.json, &status, &format!("VM {name}: {}", arguments.done()))
}

fn answer(json: bool, status: &VmStatus, message: &str) -> Result<()> {
    if json { print_json(status) } else { print_line(message) }
}
