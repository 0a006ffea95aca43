//! `twinvm vm snapshot`: snapshots of VMs of the cluster, and of those that run in the foreground.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use api::messages::{CreateSnapshot, SnapshotView, VmView};
use api::time::{Elapsed, unix_ms_now};
use clap::{Args, Subcommand};
use machine::generation::NOT_HEEDED;
use spec::SnapshotName;
use terminal::output::{human_bytes, print_json, print_line, print_table, say, table};

use super::{VmArguments, foreground};
use crate::cli::daemon::{DaemonArguments, path_segment};

/// What there is to know about them.
pub const HELP: &str = "\
VMs with a host:
  twinvm vm snapshot create shop before-update   # the VM runs, protected or not, or is off
  twinvm vm snapshot create shop nightly --no-memory
  twinvm vm snapshot list shop
  twinvm vm snapshot restore shop before-update  # the VM is off; it is started from the snapshot
  twinvm vm snapshot rm shop before-update
A VM in the foreground (`twinvm run`), to a file; `twinvm vm restore` continues it:
  twinvm vm snapshot shop shop.snapshot

A snapshot of a VM that is off, and one with --no-memory, has the disks alone. It is restored to a VM that stays off, with the disks as they
were; those of a VM that ran are as after a power failure at that moment.
The guest goes on while a snapshot is written; on kvm, it stands still while its memory in use is copied within the host's memory. If the VM
ends meanwhile, the snapshot fails, as it does when there is no room for what the guest writes over.
Not in a snapshot, and needed where they are when it is restored, are disks that the guest may only read, and the images that disks are
based on; what they hold is noted. The file is for its owner alone (mode 600), as it holds the guest's memory. A VM whose writable disk is
a block device has no snapshots. Those of a VM with a host are in its folder there, and are removed with the VM.";

/// How long the daemon may take to write one, or to read one.
const TIMEOUT: Duration = Duration::from_secs(3600);

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SnapshotArguments {
    #[command(subcommand)]
    command: Option<SnapshotCommand>,
    /// Name of a VM in the foreground
    #[arg(required = true)]
    name: Option<String>,
    /// The file to write
    #[arg(required = true)]
    file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum SnapshotCommand {
    /// Save a running VM, which goes on, or the disks of one that is off
    Create(CreateArguments),
    /// List the snapshots of a VM, the oldest first
    List(VmArguments),
    /// Start a VM that is off from a snapshot, or bring its disks back from one without memory; what its disks hold is lost
    Restore(OneArguments),
    /// Remove a snapshot
    Rm(OneArguments),
}

#[derive(Args)]
struct CreateArguments {
    #[command(flatten)]
    one: OneArguments,
    /// The disks alone, without the memory of the running VM
    #[arg(long)]
    no_memory: bool,
}

#[derive(Args)]
struct OneArguments {
    /// Name of the VM
    name: String,
    /// Name of the snapshot
    snapshot: SnapshotName,
    #[command(flatten)]
    daemon: DaemonArguments,
}

impl OneArguments {
    fn path(&self) -> String {
        format!("{}/{}", path(&self.name), path_segment(&self.snapshot))
    }
}

impl SnapshotArguments {
    /// The VM that has to have a host for this.
    pub fn vm(&self) -> Option<(&str, &DaemonArguments)> {
        match self.command.as_ref()? {
            SnapshotCommand::Create(arguments) => Some((&arguments.one.name, &arguments.one.daemon)),
            SnapshotCommand::List(vm) => Some((&vm.name, &vm.daemon)),
            SnapshotCommand::Restore(one) | SnapshotCommand::Rm(one) => Some((&one.name, &one.daemon)),
        }
    }
}

fn path(vm: &str) -> String {
    format!("/v1/vms/{}/snapshots", path_segment(vm))
}

pub fn run(arguments: &SnapshotArguments) -> Result<()> {
    match &arguments.command {
        Some(SnapshotCommand::Create(one)) => create(one),
        Some(SnapshotCommand::List(vm)) => list(vm),
        Some(SnapshotCommand::Restore(one)) => restore(one),
        Some(SnapshotCommand::Rm(one)) => remove(one),
        None => {
            let name = arguments.name.as_deref().context("the VM is not named")?;
            let file = arguments.file.as_deref().context("the file is not named")?;
            foreground::snapshot(name, file, arguments.json)
        }
    }
}

fn create(arguments: &CreateArguments) -> Result<()> {
    let one = &arguments.one;
    let request = CreateSnapshot { name: one.snapshot.clone(), memory: !arguments.no_memory };
    let view: SnapshotView = one.daemon.daemon()?.post_within(&path(&one.name), Some(&request), TIMEOUT)?;
    warn(&view);
    if one.daemon.json {
        return print_json(&view);
    }
    let what = if view.memory == Some(false) { ", disks alone" } else { "" };
    let pause = view.pause_ms.map(|ms| format!("; the guest stood still for {ms} ms")).unwrap_or_default();
    print_line(&format!("snapshot {} of VM {} taken: {}{what}{pause}", view.name, view.vm, human_bytes(view.bytes)))
}

/// Says what random numbers a guest may have twice.
fn warn(snapshot: &SnapshotView) {
    if snapshot.notices == Some(false) {
        say(format_args!("warning: {NOT_HEEDED}"));
    }
}

fn list(vm: &VmArguments) -> Result<()> {
    let views: Vec<SnapshotView> = vm.daemon.daemon()?.get(&path(&vm.name))?;
    if vm.daemon.json {
        return print_json(&views);
    }
    if views.is_empty() {
        say(format_args!("VM {0} has no snapshots; `twinvm vm snapshot create {0} NAME` takes one", vm.name));
        return Ok(());
    }
    let mut rows = table(&["NAME", "TAKEN", "HOLDS", "SIZE", "HOST"]);
    for view in views {
        let taken = format!("{} ago", Elapsed(unix_ms_now().saturating_sub(view.created_unix_ms)));
        let holds = match view.memory {
            Some(true) => "disks, memory",
            Some(false) => "disks",
            None => "not readable",
        };
        rows.add_row([view.name.to_string(), taken, holds.to_owned(), human_bytes(view.bytes), view.host]);
    }
    print_table(&rows)
}

fn restore(one: &OneArguments) -> Result<()> {
    let daemon = one.daemon.daemon()?;
    let snapshots: Vec<SnapshotView> = daemon.get(&path(&one.name))?;
    let view: VmView = daemon.post_within(&format!("{}/restore", one.path()), None::<&()>, TIMEOUT)?;
    snapshots.iter().filter(|snapshot| snapshot.name == one.snapshot).for_each(warn);
    if one.daemon.json {
        return print_json(&view);
    }
    if view.running {
        print_line(&format!("VM {} goes on from snapshot {} on host {}", view.name, one.snapshot, view.host))
    } else {
        print_line(&format!(
            "VM {} has the disks of snapshot {} on host {}, and is off",
            view.name, one.snapshot, view.host
        ))
    }
}

fn remove(one: &OneArguments) -> Result<()> {
    let () = one.daemon.daemon()?.delete(&one.path(), None::<&()>)?;
    if one.daemon.json {
        return print_json(&serde_json::json!({ "removed": one.snapshot }));
    }
    print_line(&format!("snapshot {} of VM {} removed", one.snapshot, one.name))
}
