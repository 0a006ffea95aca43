//! VMs that run in the foreground.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use api::messages::VmView;
use api::time::Elapsed;
use clap::Args;
use spec::EngineChoice;

use super::StopArguments;
use crate::cli::daemon::{DaemonArguments, DaemonConnection, path_segment};
use crate::cli::run::HowArguments;
use host::foreground::requests::{Request, VmStatus, ask, running};
use host::foreground::{self, Start};
use terminal::output::{human_bytes, print_json, print_line};

/// What a restore does.
pub const RESTORE_HELP: &str = "\
Nothing is changed before all that is needed is found to be there and to hold what it held. Then the files of all writable disks are replaced, or, if that
fails or the host crashes, none; whatever they hold is lost. Links to them, permissions and owners stay, and there has to be room for
the new content beside the old. The guest goes on with the host's time. Its kernel is told that it is another VM than the one that was
saved (ACPI VM generation ID, which Linux heeds if it has CONFIG_VMGENID), so that a snapshot may be restored more than once.

  twinvm vm restore shop.snapshot";

#[derive(Args)]
pub struct RestoreArguments {
    /// The snapshot file
    file: PathBuf,
    #[command(flatten)]
    how: HowArguments,
}

/// Saves a VM to a file.
pub fn snapshot(name: &str, file: &Path, json: bool) -> Result<()> {
    let path = std::path::absolute(file).with_context(|| format!("cannot resolve {}", file.display()))?;
    let status = ask(name, &Request::Snapshot { path })?;
    answer(json, &status, &format!("snapshot written: {}", file.display()))
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

/// What is said of a VM in the foreground when something is asked that only a VM of a host can do.
fn without_host(vm: &VmStatus) -> String {
    format!(
        "VM {} runs in the foreground (process {}): its console is the terminal of `twinvm run`, and it has no host that could protect it. A VM with a host \
         is made by `twinvm vm create SPEC.toml --start`, once this one has stopped (`twinvm vm stop {}`)",
        vm.name, vm.pid, vm.name
    )
}

/// The VM called `name` in the foreground, if there is none of that name with a host.
pub fn only_here(name: &str, daemon: &DaemonArguments) -> Option<VmStatus> {
    let vm = running().ok()?.into_iter().find(|vm| vm.name == name)?;
    let view = |daemon: DaemonConnection| daemon.get::<VmView>(&format!("/v1/vms/{}", path_segment(name))).is_ok();
    let has_host = daemon.daemon_if_any().ok().flatten().is_some_and(view);
    (!has_host).then_some(vm)
}

/// The error of a command about the VM called `name`; or, if that is one in the foreground, what such a VM cannot do.
pub fn explain(error: anyhow::Error, name: &str, daemon: &DaemonArguments) -> anyhow::Error {
    match only_here(name, daemon) {
        Some(vm) => anyhow!(without_host(&vm)),
        None => error,
    }
}

/// Shows one.
pub fn show(vm: &VmStatus, json: bool) -> Result<()> {
    if json {
        return print_json(vm);
    }
    for (what, value) in [
        ("name", vm.name.clone()),
        ("power", "on".to_owned()),
        ("process", vm.pid.to_string()),
        ("protection", "none: in the foreground".to_owned()),
        ("engine", vm.engine.clone()),
        ("cpus", vm.cpus.to_string()),
        ("memory", human_bytes(vm.memory_bytes)),
        ("running", Elapsed(vm.running_s.saturating_mul(1000)).to_string()),
        ("note", without_host(vm)),
    ] {
        print_line(&format!("{:12}{value}", format!("{what}:")))?;
    }
    Ok(())
}

fn answer(json: bool, status: &VmStatus, message: &str) -> Result<()> {
    if json { print_json(status) } else { print_line(message) }
}
