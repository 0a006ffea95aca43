//! VMs that run in the foreground.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use api::messages::{CreateVm, DiskView, VmView};
use api::time::Elapsed;
use clap::Args;
use host::foreground::requests::{Request, VmStatus, ask, running, save};
use host::foreground::{self, Start};
use host::hardware;
use machine::generation::NOT_HEEDED;
use spec::{DiskSpec, EngineChoice, VmSpec, to_toml};
use storage::disk::DiskInfo;
use terminal::output::{human_bytes, print_json, print_line, say};

use super::cluster::{card_text, disk_text};
use super::{StopArguments, VmArguments};
use crate::cli::daemon::{DaemonArguments, DaemonConnection, path_segment};
use crate::cli::run::HowArguments;

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
    let status = save(name, &path)?;
    if foreground::open_snapshot(&path).is_ok_and(|(_, snapshot)| !snapshot.head().heeds_generation) {
        say(format_args!("warning: {NOT_HEEDED}"));
    }
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
        "VM {} runs in the foreground (process {}): its console is the terminal of `twinvm run`, and it has no host that could protect it or back it up. \
         `twinvm vm snapshot {} FILE` saves it; a VM with a host is made of it by `twinvm vm adopt {}`, which restarts it",
        vm.name, vm.pid, vm.name, vm.name
    )
}

/// What becomes of a VM that is adopted.
pub const ADOPT_HELP: &str = "\
The guest is shut down, or its plug pulled with --force, and started again on this host with the same spec, cards and forwarded ports. The host keeps copies of its disks in a folder
of its own, as for `twinvm vm create`; the files that it ran from stay as they are, and may be removed. What the spec says of recording does not count there.

  twinvm vm adopt shop && twinvm ft on shop";

#[derive(Args)]
pub struct AdoptArguments {
    #[command(flatten)]
    vm: VmArguments,
    /// Pull the plug instead of pressing the power button
    #[arg(long)]
    force: bool,
    /// Give up waiting for the guest to shut down after so long; it is not adopted then
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

/// Makes a VM with a host of one in the foreground.
pub fn adopt(arguments: AdoptArguments) -> Result<()> {
    let AdoptArguments { vm: VmArguments { name, daemon: how }, force, timeout } = arguments;
    let vm = running()?.into_iter().find(|vm| vm.name == name);
    let vm = vm.with_context(|| {
        format!("no VM named {name} runs in the foreground here; `twinvm vm create SPEC.toml` makes one with a host")
    })?;
    // Before the guest is disturbed: what could be refused.
    let daemon = how.daemon()?;
    let names: Vec<VmView> = daemon.get("/v1/vms")?;
    if names.iter().any(|view| view.name == name) {
        bail!("a VM named {name} has a host already: rename that one first (`twinvm vm rename {name} OTHER`)");
    }
    let mut spec = VmSpec::parse(&vm.spec).context("the VM does not say what it is: it runs another version")?;
    spec.record = None;
    let request = CreateVm { spec: to_toml(&spec).context("the spec cannot be passed on")?, start: true };
    let () = daemon.post("/v1/checks/vm", Some(&request)).context("the VM goes on as it is")?;
    let stop =
        StopArguments { vm: VmArguments { name: name.clone(), daemon: how.clone() }, force, no_wait: false, timeout };
    let status = ask(&name, &Request::Stop { force })?;
    stop.wait(|| Ok(!running()?.iter().any(|vm| vm.name == name && vm.pid == status.pid)))?;
    let again = || format!("VM {name} is off, its disks are as they were: start it again with `twinvm run`");
    let view: VmView = daemon.post("/v1/vms", Some(&request)).with_context(again)?;
    if how.json {
        print_json(&view)
    } else {
        print_line(&format!("VM {name} adopted and started on host {}", view.host))
    }
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
    // One of another version may not say what it is.
    let Ok(spec) = VmSpec::parse(&vm.spec) else { return Ok(()) };
    for disk in &spec.disks {
        print_line(&format!("{:12}{}", "disk:", disk_text(&disk_view(disk))))?;
    }
    for card in &hardware::cards(&spec) {
        print_line(&format!("{:12}{}", "network:", card_text(card)))?;
    }
    print_line("spec:")?;
    vm.spec.lines().try_for_each(|line| print_line(&format!("  {line}")))
}

/// A disk as its file is now, as far as that can be read.
fn disk_view(disk: &DiskSpec) -> DiskView {
    let view =
        DiskView { path: Some(disk.path.clone()), format: disk.format, readonly: disk.readonly, ..DiskView::default() };
    match DiskInfo::of(&disk.path, disk.format) {
        Ok(info) => DiskView {
            format: Some(info.format),
            size_bytes: Some(info.size_bytes),
            allocated_bytes: Some(info.allocated_bytes),
            base: info.backing.map(|base| base.path),
            ..view
        },
        Err(_) => view,
    }
}

fn answer(json: bool, status: &VmStatus, message: &str) -> Result<()> {
    if json { print_json(status) } else { print_line(message) }
}
