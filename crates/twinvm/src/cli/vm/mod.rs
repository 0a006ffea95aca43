//! `twinvm vm`: VMs of the cluster, and those that run in the foreground.

mod cluster;
mod foreground;
mod migrate;
mod set;
mod snapshot;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use api::messages::VmView;
use api::unreadable::UnreadableVmView;
use clap::{Args, Subcommand};
use host::foreground::requests::{VmStatus, running};
use indicatif::ProgressBar;
use terminal::output::{human_bytes, print_json, print_table, say, table};

pub use foreground::{explain, only_here};

use super::daemon::DaemonArguments;
use super::wait::{Look, Patience};

#[derive(Subcommand)]
pub enum VmCommand {
    /// Create a VM on this host from a spec
    #[command(after_help = cluster::CREATE_HELP)]
    Create(cluster::CreateArguments),
    /// Give a VM that runs in the foreground (`twinvm run`) a host: restart it there
    #[command(after_help = foreground::ADOPT_HELP)]
    Adopt(foreground::AdoptArguments),
    /// Start a VM from its disks
    Start(cluster::StartArguments),
    /// Press a VM's power button, and wait until its guest has shut down
    Stop(StopArguments),
    /// Shut a VM down, and start it again with what was set meanwhile
    Reboot(RebootArguments),
    /// Move a VM that runs to another host, without its clients noticing more than a short pause
    #[command(after_help = migrate::MIGRATE_HELP)]
    Migrate(migrate::MigrateArguments),
    /// Change memory, vCPUs, forwarded ports, sizes of disks, priority or autostart of a VM
    #[command(after_help = set::SET_HELP)]
    Set(set::SetArguments),
    /// Change the spec of a VM in an editor ($VISUAL, $EDITOR, vi)
    Edit(VmArguments),
    /// Make another VM with copies of the disks of one that is off
    #[command(after_help = "\
The clone has network cards with addresses of their own, and the same forwarded ports unless --forward names others: two VMs cannot run with the same ones.
A guest of an image that `twinvm image build` has made becomes another machine at its first boot: with a machine-id, a host name, keys of its SSH server and a self-signed
certificate of its own. What other guests keep on their disks to tell themselves from others is that of the original.")]
    Clone(set::CloneArguments),
    /// Give a VM that is off another name; its guest sees no difference
    #[command(after_help = "\
A VM that has snapshots on its host is refused, as they could not be restored under another name: remove them first with `twinvm vm snapshot rm`.")]
    Rename(set::RenameArguments),
    /// List VMs: those of the cluster, and those in the foreground here (`twinvm run`)
    List(DaemonArguments),
    /// Show one VM: its state, disks, network cards and spec
    Show(VmArguments),
    /// Connect the terminal to a VM's serial console, wherever it runs; Ctrl-] leaves
    #[command(after_help = "\
Shows first what the guest has printed last (64 KiB), then follows the VM through takeovers and reboots, and ends when it is off. At the end of standard input it waits until the
guest has taken everything and is silent.

  echo uptime | twinvm vm console shop")]
    Console(VmArguments),
    /// Remove a VM and its disks from every host
    Rm(cluster::RemoveArguments),
    /// Save VMs: memory, devices and writable disks; they go on
    #[command(after_help = snapshot::HELP)]
    Snapshot(snapshot::SnapshotArguments),
    /// Continue a VM from a snapshot file in the foreground; its disks go back to the snapshot's content
    #[command(after_help = foreground::RESTORE_HELP)]
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
    /// Return as soon as the button is pressed
    #[arg(long)]
    no_wait: bool,
    /// Give up waiting after so long; the VM goes on, or goes on shutting down
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

#[derive(Args)]
pub struct RebootArguments {
    #[command(flatten)]
    vm: VmArguments,
    /// Pull the plug instead of pressing the power button
    #[arg(long)]
    force: bool,
    /// Give up waiting for the guest to shut down after so long; it is not started again then
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

impl StopArguments {
    /// Waits until the VM is off, if that is wanted. `is_off` looks.
    fn wait(&self, mut is_off: impl FnMut() -> Result<bool>) -> Result<()> {
        if self.no_wait {
            return Ok(());
        }
        let name = &self.vm.name;
        let patience = Patience {
            timeout: Duration::from_secs(self.timeout),
            late: &|_| {
                format!(
                    "VM {name} has not shut down within {} s: its guest may not heed its power button; `twinvm vm stop --force {name}` pulls the plug",
                    self.timeout
                )
            },
            interrupted: &|_| format!("not waited for: the power button of VM {name} is pressed, see `twinvm vm list`"),
        };
        patience.wait(&ProgressBar::new_spinner(), |_| {
            Ok(if is_off()? { Look::Done(()) } else { Look::Waiting(format!("VM {name} is shutting down")) })
        })
    }

    /// What has happened, in words.
    fn done(&self) -> &'static str {
        match (self.force, self.no_wait) {
            (true, _) => "plug pulled",
            (false, true) => "power button pressed",
            (false, false) => "shut down",
        }
    }
}

pub fn run(command: VmCommand) -> Result<ExitCode> {
    let about = command.vm().map(|(name, daemon)| (name.to_owned(), daemon.clone()));
    carry_out(command).map_err(|error| match &about {
        Some((name, daemon)) => explain(error, name, daemon),
        None => error,
    })?;
    Ok(ExitCode::SUCCESS)
}

fn carry_out(command: VmCommand) -> Result<()> {
    match command {
        VmCommand::Create(arguments) => cluster::create(&arguments),
        VmCommand::Adopt(arguments) => foreground::adopt(arguments),
        VmCommand::Start(arguments) => cluster::start(&arguments),
        VmCommand::Stop(arguments) => stop(&arguments),
        VmCommand::Reboot(arguments) => set::reboot(&arguments.vm.daemon.daemon()?, &arguments),
        VmCommand::Migrate(arguments) => migrate::migrate(&arguments),
        VmCommand::Set(arguments) => set::set(&arguments),
        VmCommand::Edit(arguments) => set::edit(&arguments),
        VmCommand::Clone(arguments) => set::clone(&arguments),
        VmCommand::Rename(arguments) => set::rename(&arguments),
        VmCommand::List(arguments) => list(&arguments),
        VmCommand::Show(arguments) => show(&arguments),
        VmCommand::Console(arguments) => cluster::console(&arguments),
        VmCommand::Rm(arguments) => cluster::remove(&arguments),
        VmCommand::Snapshot(arguments) => snapshot::run(&arguments),
        VmCommand::Restore(arguments) => foreground::restore(&arguments),
    }
}

impl VmCommand {
    /// The VM that has to have a host for this.
    fn vm(&self) -> Option<(&str, &DaemonArguments)> {
        let VmArguments { name, daemon } = match self {
            Self::Start(arguments) => &arguments.vm,
            Self::Rm(arguments) => &arguments.vm,
            Self::Reboot(arguments) => &arguments.vm,
            Self::Migrate(arguments) => &arguments.vm,
            Self::Set(arguments) => &arguments.vm,
            Self::Edit(vm) => vm,
            Self::Clone(arguments) => &arguments.vm,
            Self::Rename(arguments) => &arguments.vm,
            Self::Console(vm) => vm,
            Self::Snapshot(arguments) => return arguments.vm(),
            Self::Create(_) | Self::Adopt(_) | Self::Stop(_) | Self::List(_) | Self::Show(_) | Self::Restore(_) => {
                return None;
            }
        };
        Some((name, daemon))
    }
}

/// Shows the VM of that name with a host, else the one in the foreground.
fn show(arguments: &VmArguments) -> Result<()> {
    let VmArguments { name, daemon } = arguments;
    match daemon.daemon_if_any()? {
        Some(connection) => cluster::show(&connection, arguments).or_else(|error| match only_here(name, daemon) {
            Some(vm) => foreground::show(&vm, daemon.json),
            None => Err(error),
        }),
        None => match only_here(name, daemon) {
            Some(vm) => foreground::show(&vm, daemon.json),
            // Says how hosts are made.
            None => cluster::show(&daemon.daemon()?, arguments),
        },
    }
}

/// Stops the VM of that name in the foreground, else the one of the cluster.
fn stop(arguments: &StopArguments) -> Result<()> {
    let VmArguments { name, daemon } = &arguments.vm;
    let is_here = running()?.iter().any(|vm| vm.name == *name);
    let connection = if is_here { None } else { daemon.daemon_if_any()? };
    match connection {
        Some(connection) => cluster::stop(&connection, arguments),
        None => foreground::stop(arguments),
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
    /// A VM of the cluster of whose record the host cannot make sense.
    Unreadable(UnreadableVmView),
}

fn list(arguments: &DaemonArguments) -> Result<()> {
    let mut vms = Vec::new();
    if let Some(daemon) = arguments.daemon_if_any()? {
        vms.extend(daemon.get::<Vec<VmView>>("/v1/vms")?.into_iter().map(|vm| Listed::Cluster(Box::new(vm))));
        let unreadable: Vec<UnreadableVmView> = daemon.get("/v1/unreadable/vms")?;
        vms.extend(unreadable.into_iter().map(Listed::Unreadable));
    }
    vms.extend(running()?.into_iter().map(Listed::Foreground));
    if arguments.json {
        return print_json(&vms);
    }
    if vms.is_empty() {
        say("there are no VMs; `twinvm vm create SPEC.toml` makes one, `twinvm run SPEC.toml` runs one here");
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
                match &vm.ha {
                    Some(ha) if ha.restarts => "HA: it is restarted".to_owned(),
                    Some(_) => "HA: from its next start on".to_owned(),
                    None => vm.protection.to_string(),
                },
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
            Listed::Unreadable(vm) => {
                let [host, secondary, cpus, memory, engine] = [(); 5].map(|()| none());
                [vm.name, "unknown".to_owned(), host, secondary, cpus, memory, engine, vm.reason]
            }
        });
    }
    print_table(&rows)
}
