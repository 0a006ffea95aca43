//! `twinvm vm`: running VMs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use machine::engine::EngineChoice;

use super::output::{human_bytes, print_json, print_line, table};
use super::run::HowArguments;
use crate::foreground::requests::{Request, VmStatus, ask, running};
use crate::foreground::{self, Start};

#[derive(Subcommand)]
pub enum VmCommand {
    /// List the VMs that run
    List(ListArguments),
    /// Save a running VM to a file: memory, devices and writable disks; the VM goes on
    Snapshot(SnapshotArguments),
    /// Continue a VM from a snapshot file in the foreground; its disks go back to the snapshot's content
    Restore(RestoreArguments),
    /// Press a VM's power button
    Stop(StopArguments),
}

#[derive(Args)]
pub struct ListArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

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

#[derive(Args)]
pub struct StopArguments {
    /// Name of the VM
    name: String,
    /// Pull the plug instead
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(command: VmCommand) -> Result<ExitCode> {
    match command {
        VmCommand::List(arguments) => list(&arguments)?,
        VmCommand::Snapshot(arguments) => {
            let path = std::path::absolute(&arguments.file)
                .with_context(|| format!("cannot resolve {}", arguments.file.display()))?;
            let status = ask(&arguments.name, &Request::Snapshot { path })?;
            answer(arguments.json, &status, &format!("snapshot written: {}", arguments.file.display()))?;
        }
        VmCommand::Restore(arguments) => {
            let options = arguments.how.options(EngineChoice::Auto);
            foreground::run(Start::Snapshot(arguments.file), &options)?;
        }
        VmCommand::Stop(arguments) => {
            let status = ask(&arguments.name, &Request::Stop { force: arguments.force })?;
            let what = if arguments.force { "plug pulled" } else { "power button pressed" };
            answer(arguments.json, &status, &format!("VM {}: {what}", arguments.name))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(json: bool, status: &VmStatus, message: &str) -> Result<()> {
    if json { print_json(status) } else { print_line(message) }
}

fn list(arguments: &ListArguments) -> Result<()> {
    let vms = running()?;
    if arguments.json {
        return print_json(&vms);
    }
    if vms.is_empty() {
        eprintln!("no VMs run here; start one with `twinvm run SPEC.toml`");
        return Ok(());
    }
    let mut rows = table(&["NAME", "ENGINE", "CPUS", "MEMORY", "PID", "UPTIME"]);
    for vm in vms {
        rows.add_row([
            vm.name,
            vm.engine,
            vm.cpus.to_string(),
            human_bytes(vm.memory_bytes),
            vm.pid.to_string(),
            format!("{}s", vm.running_s),
        ]);
    }
    print_line(&rows.trim_fmt())
}
