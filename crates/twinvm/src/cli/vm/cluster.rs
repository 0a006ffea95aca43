//! VMs of the cluster, by the daemon of this host.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use api::figures::{CardFigures, DiskFigures};
use api::messages::{
    CardView, CreateVm, DiskView, HaView, OperationView, RemoveVm, RemovedVm, StartVm, StopVm, VmView,
};
use clap::Args;
use spec::{VmSpec, to_toml};
use terminal::output::{ask, human_bytes, print_json, print_line};

use super::{StopArguments, VmArguments};
use crate::cli::console;
use crate::cli::daemon::{DaemonArguments, DaemonConnection, path_segment};

/// What a spec means to a host of a cluster.
pub const CREATE_HELP: &str = "\
The spec is that of `twinvm run`. The host keeps copies of its own: of the kernel, and of each disk that the VM may write to. A disk
with `base_image` whose file does not exist is made from that image's root disk. Others are made with
`twinvm disk create`; docs/administration.md says more about disks.";

#[derive(Args)]
pub struct CreateArguments {
    /// The VM spec
    spec: PathBuf,
    /// Start it
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Args)]
pub struct StartArguments {
    #[command(flatten)]
    pub(super) vm: VmArguments,
    /// Start from this host's copy of the disks though another host's is newer or may be
    #[arg(long)]
    from_stale_disks: bool,
}

#[derive(Args)]
pub struct RemoveArguments {
    #[command(flatten)]
    pub(super) vm: VmArguments,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Though the host that holds it does not answer: what is on that host stays there. Also removes a VM whose record cannot be read, as one of a newer
    /// version: then no file of it is removed on any host, and its disks are named
    #[arg(long)]
    force: bool,
}

pub fn path(name: &str) -> String {
    format!("/v1/vms/{}", path_segment(name))
}

fn answer(json: bool, view: &VmView, message: &str) -> Result<()> {
    if json { print_json(view) } else { print_line(message) }
}

pub fn create(arguments: &CreateArguments) -> Result<()> {
    let mut spec = VmSpec::load(&arguments.spec)?;
    make_absolute(&mut spec)?;
    let request = CreateVm { spec: to_toml(&spec).context("the spec cannot be passed on")?, start: arguments.start };
    let view: VmView = arguments.daemon.daemon()?.post("/v1/vms", Some(&request))?;
    let done = if view.running { "created and started" } else { "created" };
    answer(arguments.daemon.json, &view, &format!("VM {} {done} on host {}", view.name, view.host))
}

/// Has a spec name its files by absolute paths: its host has another current folder.
pub fn make_absolute(spec: &mut VmSpec) -> Result<()> {
    let files = spec.disks.iter_mut().map(|disk| &mut disk.path);
    for file in files.chain(spec.kernel.iter_mut()).chain(spec.initrd.iter_mut()) {
        *file = absolute(file)?;
    }
    Ok(())
}

fn absolute(file: &Path) -> Result<PathBuf> {
    std::path::absolute(file).with_context(|| format!("cannot resolve {}", file.display()))
}

pub fn start(arguments: &StartArguments) -> Result<()> {
    let VmArguments { name, daemon } = &arguments.vm;
    let request = StartVm { from_stale_disks: arguments.from_stale_disks };
    let view: VmView = daemon.daemon()?.post(&format!("{}/start", path(name)), Some(&request))?;
    let from =
        view.note.as_ref().filter(|_| arguments.from_stale_disks).map_or_else(String::new, |note| format!(", {note}"));
    answer(daemon.json, &view, &format!("VM {name} started on host {}{from}", view.host))
}

pub fn stop(daemon: &DaemonConnection, arguments: &StopArguments) -> Result<()> {
    let (name, force) = (&arguments.vm.name, arguments.force);
    let mut view: VmView = daemon.post(&format!("{}/stop", path(name)), Some(&StopVm { force }))?;
    arguments.wait(|| {
        view = daemon.get(&path(name))?;
        Ok(!view.running)
    })?;
    answer(arguments.vm.daemon.json, &view, &format!("VM {name}: {}", arguments.done()))
}

/// Whether a VM is restarted when its host is lost.
fn ha_text(view: &VmView) -> String {
    match &view.ha {
        None => "off".to_owned(),
        Some(HaView { why_not: Some(why), .. }) => format!("on, and does not restart it yet: {why}"),
        Some(_) => "on: it is restarted on another host when this one is lost".to_owned(),
    }
}

pub fn show(daemon: &DaemonConnection, arguments: &VmArguments) -> Result<()> {
    let view: VmView = daemon.get(&path(&arguments.name))?;
    if arguments.daemon.json {
        return print_json(&view);
    }
    let none = || "-".to_owned();
    for (what, value) in [
        ("name", view.name.clone()),
        ("power", if view.running { "on" } else { "off" }.to_owned()),
        ("host", view.host.clone()),
        ("secondary", view.secondary.clone().unwrap_or_else(none)),
        ("protection", view.protection.to_string()),
        ("ha", ha_text(&view)),
        ("generation", view.generation.to_string()),
        ("engine", view.engine.map_or_else(none, |engine| engine.to_string())),
        ("cpus", view.cpus.to_string()),
        ("memory", human_bytes(view.memory_bytes)),
        ("priority", view.priority.to_string()),
        ("suspicion", view.suspicion_ms.map_or_else(none, |bounds| format!("after {bounds} of silence"))),
        (
            "crashes",
            view.replicas.first().and_then(|primary| primary.figures.triple_faults_text()).unwrap_or_else(none),
        ),
        ("note", view.note.clone().unwrap_or_else(none)),
        ("operation", view.operation.as_ref().map_or_else(none, operation_text)),
    ] {
        print_line(&format!("{:12}{value}", format!("{what}:")))?;
    }
    let figures = view.replicas.first().map(|primary| &primary.figures);
    for (number, disk) in view.disks.iter().enumerate() {
        print_line(&format!("{:12}{}", "disk:", disk_text(disk)))?;
        if let Some(did) = figures.and_then(|figures| figures.disks.get(number)) {
            print_line(&format!("{:12}{}", "", disk_figures(did)))?;
        }
    }
    for (number, card) in view.cards.iter().enumerate() {
        print_line(&format!("{:12}{}", "network:", card_text(card)))?;
        if let Some(did) = figures.and_then(|figures| figures.cards.get(number)) {
            print_line(&format!("{:12}{}", "", card_figures(did)))?;
        }
    }
    print_line(&format!("{:12}{}", "autostart:", if view.autostart { "on" } else { "off" }))?;
    if let Some(next) = &view.next_spec {
        print_line("spec from its next start on:")?;
        next.lines().try_for_each(|line| print_line(&format!("  {line}")))?;
    }
    print_line("spec:")?;
    view.spec.lines().try_for_each(|line| print_line(&format!("  {line}")))
}

/// As in `reboot: under way`.
fn operation_text(operation: &OperationView) -> String {
    let state = match (operation.is_over, &operation.failure) {
        (false, _) => "under way",
        (true, None) => "done",
        (true, Some(why)) => why,
    };
    let to = operation.to.as_ref().map_or_else(String::new, |to| format!(" to host {to}"));
    format!("{}{to}: {state}", operation.what)
}

/// What a disk did in this run of the VM's process.
fn disk_figures(did: &DiskFigures) -> String {
    let DiskFigures { reads, read_bytes, writes, written_bytes, flushes, discards, errors } = did;
    let (read, written) = (human_bytes(*read_bytes), human_bytes(*written_bytes));
    format!(
        "{reads} reads ({read}), {writes} writes ({written}), {flushes} flushes, {discards} discards, {errors} failed"
    )
}

/// What a network card did in this run of the VM's process.
fn card_figures(did: &CardFigures) -> String {
    format!(
        "{} frames received ({}), {} dropped; {} sent ({}), {} dropped",
        did.received_frames,
        human_bytes(did.received_bytes),
        did.received_dropped,
        did.sent_frames,
        human_bytes(did.sent_bytes),
        did.sent_dropped
    )
}

/// As in `/data/vms/shop/disk0.qcow2, qcow2, 2.00 GiB (340.00 MiB in use), based on /data/images/.versions/4f.../root.img`.
pub fn disk_text(disk: &DiskView) -> String {
    let Some(path) = &disk.path else { return "not known: its host does not answer".to_owned() };
    let size = disk.size_bytes.map(|size_bytes| match disk.allocated_bytes {
        Some(allocated_bytes) => format!("{} ({} in use)", human_bytes(size_bytes), human_bytes(allocated_bytes)),
        None => human_bytes(size_bytes),
    });
    let parts = [
        Some(path.display().to_string()),
        disk.format.map(|format| format.to_string()),
        size,
        disk.readonly.then(|| "read-only".to_owned()),
        disk.base.as_ref().map(|base| format!("based on {}", base.display())),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// As in `52:54:00:12:34:56, user-mode, 10.0.2.15, tcp:127.0.0.1:6379-:6379`.
pub fn card_text(card: &CardView) -> String {
    let network = card.bridge.as_ref().map_or_else(|| "user-mode".to_owned(), |bridge| format!("bridge {bridge}"));
    let parts = [card.mac.to_string(), network].into_iter().chain(card.address.map(|address| address.to_string()));
    parts.chain(card.forward.iter().map(ToString::to_string)).collect::<Vec<_>>().join(", ")
}

pub fn console(arguments: &VmArguments) -> Result<()> {
    if arguments.daemon.json {
        bail!("a console is a stream of bytes, not JSON: leave --json out");
    }
    console::connect(&arguments.daemon.daemon()?, &arguments.name)
}

pub fn remove(arguments: &RemoveArguments) -> Result<()> {
    let VmArguments { name, daemon } = &arguments.vm;
    if !arguments.yes && io::stdin().is_terminal() {
        let answer = ask(&format!("Remove VM {name} and its disks from every host? [y/N] "))?;
        if !matches!(answer.as_str(), "y" | "yes") {
            bail!("nothing was changed");
        }
    }
    let request = RemoveVm { force: arguments.force };
    let removed: RemovedVm = daemon.daemon()?.delete(&path(name), Some(&request))?;
    if daemon.json {
        return print_json(&removed);
    }
    print_line(&format!("VM {name} removed"))?;
    for disk in &removed.kept {
        print_line(&format!("left on host {}: {}", disk.host, disk.path.display()))?;
    }
    for host in &removed.unanswered {
        print_line(&format!("host {host} does not answer: what it has of the VM stays there"))?;
    }
    Ok(())
}
