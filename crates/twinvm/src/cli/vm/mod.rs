//! `twinvm vm`: VMs of the cluster, and those that run in the foreground.

mod cluster;
mod foreground;

use std::process::ExitCode;

use anyhow::Result;
use api::messages::VmView;
use clap::{Args, Subcommand};

use super::daemon::DaemonArguments;
use super::output::{human_bytes, print_json, print_line, table};
use crate::foreground::requests::{VmStatus, running};

#[derive(Subcommand)]
pub enum VmCommand {
    /// Create a VM on this host from a spec
    #[command(after_help = cluster::CREATE_HELP)]
    Create(cluster::CreateArguments),
    /// Start a VM from its disks
    Start(cluster::StartArguments),
    /// Press a VM's power button
    Stop(StopArguments),
    /// List VMs: those of the cluster, and those in the foreground here (`twinvm run`)
    List(DaemonArguments),
    /// Show one VM of the cluster
    Show(VmArguments),
    /// Connect the terminal to a VM's serial console; Ctrl-] leaves
    Console(VmArguments),
    /// Remove a VM and its disks from every host
    Rm(cluster::RemoveArguments),
    /// Save a VM in the foreground to a file: memory, devices and writable disks; it goes on
    Snapshot(foreground::SnapshotArguments),
    /// Continue a VM from a snapshot file in the foreground; its disks go back to the snapshot's content
    Restore(foreground::RestoreArguments),
}

#[derive(Args)]
pub struct VmArguments {
    /// Name of the VM
    name: String,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Args)]
pub struct StopArguments {
    #[command(flatten)]
    vm: VmArguments,
    /// Pull the plug instead
    #[arg(long)]
    force: bool,
}

pub fn run(command: VmCommand) -> Result<ExitCode> {
    match command {
        VmCommand::Create(arguments) => cluster::create(&arguments)?,
        VmCommand::Start(arguments) => cluster::start(&arguments)?,
        VmCommand::Stop(arguments) => stop(&arguments)?,
        VmCommand::List(arguments) => list(&arguments)?,
        VmCommand::Show(arguments) => cluster::show(&arguments)?,
        VmCommand::Console(arguments) => cluster::console(&arguments)?,
        VmCommand::Rm(arguments) => cluster::remove(&arguments)?,
        VmCommand::Snapshot(arguments) => foreground::snapshot(&arguments)?,
        VmCommand::Restore(arguments) => foreground::restore(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops the VM of that name in the foreground, else the one of the cluster.
fn stop(arguments: &StopArguments) -> Result<()> {
    let StopArguments { vm: VmArguments { name, daemon }, force } = arguments;
    let is_here = running()?.iter().any(|vm| vm.name == *name);
    let connection = if is_here { None } else { daemon.daemon_if_any()? };
    match connection {
        Some(connection) => cluster::stop(&connection, name, *force, daemon.json),
        None => foreground::stop(name, *force, daemon.json),
    }
}

/// A line of the list.
#[derive(serde::Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Listed {
    /// A VM of the cluster.
    Cluster(Box<VmView>),
    /// A VM in the foreground.
    Foreground(VmStatus),
}

fn list(arguments: &DaemonArguments) -> Result<()> {
    let cluster: Vec<VmView> = match arguments.daemon_if_any()? {
        Some(daemon) => daemon.get("/v1/vms")?,
        None => Vec::new(),
    };
    let cluster = cluster.into_iter().map(|vm| Listed::Cluster(Box::new(vm)));
    let vms: Vec<Listed> = cluster.chain(running()?.into_iter().map(Listed::Foreground)).collect();
    if arguments.json {
        return print_json(&vms);
    }
    if vms.is_empty() {
        eprintln!("there are no VMs; `twinvm vm create SPEC.toml` makes one, `twinvm run SPEC.toml` runs one here");
        return Ok(());
    }
    let mut rows = table(&["NAME", "POWER", "HOST", "SECONDARY", "CPUS", "MEMORY", "ENGINE", "FAULT TOLERANCE"]);
    let none = || "-".to_owned();
    for vm in vms {
        rows.add_row(match vm {
            Listed::Cluster(vm) => [
                vm.name,
                if vm.running { "on" } else { "off" }.to_owned(),
                vm.host,
                vm.secondary.unwrap_or_else(none),
                vm.cpus.to_string(),
                human_bytes(vm.memory_bytes),
                vm.engine.map_or_else(none, |engine| engine.to_string()),
                vm.protection.to_string(),
            ],
            Listed::Foreground(vm) => [
                vm.name,
                "on".to_owned(),
                format!("pid {}", vm.pid),
                none(),
                vm.cpus.to_string(),
                human_bytes(vm.memory_bytes),
                vm.engine,
                "none: in the foreground".to_owned(),
            ],
        });
    }
    print_line(&rows.trim_fmt())
}
