//! `twinvm backup`: recovery points of VMs.

mod export;
mod points;
mod repo;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use api::backups::{BackUpVm, BackupProgress, PointView, PruneRepository, RepositoryView, RestorePoint};
use api::messages::VmView;
use api::time::{Elapsed, unix_ms_now};
use backup::{Pruned, Verification};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use spec::PortForward;
use terminal::interrupt;
use terminal::output::{human_bytes, print_json, print_line, say, unix_time};

use super::daemon::{DaemonArguments, DaemonConnection, path_segment};
use super::vm::explain;

/// What there is to know about them.
pub const HELP: &str = "\
Examples:
  twinvm backup repo add nas /mnt/nas/twinvm --escrow nas.key   # a new repository, encrypted; keep nas.key elsewhere
  twinvm backup run shop                                        # the VM runs, protected or not, or is off
  twinvm backup list
  twinvm backup verify                                          # reads everything
  twinvm backup restore 4f1c --as shop-before --start           # a VM of its own, on this host
  twinvm backup restore latest:shop                             # the VM itself, once it is removed or its hosts are lost
  twinvm backup forget --keep-daily 7 --keep-weekly 5           # of each VM
  twinvm backup prune                                           # gives the space back, after a day
  twinvm backup export latest:shop shop.qcow2 --path /mnt/nas/twinvm --key nas.key   # without any host

A recovery point holds the VM's disks that it may write to, with what they are based on, its kernel and its spec: it needs nothing else. Disks of a
VM that runs are as after a power failure at the moment when the backup begins, and the guest goes on during all of it. docs/backup.md says
more.";

/// How long the daemon may take for what reads or writes whole disks.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// How often it is looked how far a backup is.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Subcommand)]
pub enum BackupCommand {
    /// Say where recovery points are kept
    #[command(subcommand)]
    Repo(repo::RepoCommand),
    /// Write a recovery point of a VM
    Run(RunArguments),
    /// List recovery points, the oldest first
    List(points::ListArguments),
    /// Show one recovery point
    Show(points::PointArguments),
    /// Read a whole repository, and name what is damaged
    Verify(RepositoryArguments),
    /// Make a VM on this host of a recovery point
    Restore(RestoreArguments),
    /// Remove recovery points: one, or all that are not to be kept
    Forget(points::ForgetArguments),
    /// Give back the space of what no recovery point needs, a day after it was first found
    Prune(PruneArguments),
    /// Write a disk of a recovery point to an image file, without a daemon
    Export(export::ExportArguments),
}

/// Which repository, and how to reach the daemon.
#[derive(Args)]
pub struct RepositoryArguments {
    /// The repository [default: the only one that the host knows]
    #[arg(long, value_name = "NAME")]
    repo: Option<String>,
    #[command(flatten)]
    daemon: DaemonArguments,
}

impl RepositoryArguments {
    /// The daemon, and where the repository is in its API.
    fn open(&self) -> Result<(DaemonConnection, String)> {
        let daemon = self.daemon.daemon()?;
        let name = match &self.repo {
            Some(name) => name.clone(),
            None => only(daemon.get("/v1/backup/repositories")?)?,
        };
        let path = format!("/v1/backup/repositories/{}", path_segment(&name));
        Ok((daemon, path))
    }
}

fn only(known: Vec<RepositoryView>) -> Result<String> {
    let mut names: Vec<String> = known.into_iter().map(|view| view.name).collect();
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        (None, _) => bail!("this host knows no backup repository: add one with `twinvm backup repo add NAME PATH`"),
        (Some(name), false) => {
            bail!("this host knows several backup repositories: say which one, such as --repo {name}")
        }
    }
}

#[derive(Args)]
pub struct RunArguments {
    /// Name of the VM
    vm: String,
    #[command(flatten)]
    repository: RepositoryArguments,
}

#[derive(Args)]
pub struct RestoreArguments {
    /// The recovery point: the beginning of its name, or latest:VM
    point: String,
    /// Name of the VM that is made; one with another name gets addresses and an identity of its own [default: that of the point's VM]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Forwarded port of its first user-mode network, in place of all that it had, such as tcp:127.0.0.1:8080-:80; may be repeated
    #[arg(long, value_name = "FORWARD")]
    forward: Vec<PortForward>,
    /// Start it
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    repository: RepositoryArguments,
}

#[derive(Args)]
pub struct PruneArguments {
    /// At once, rather than after a day: refused while a backup is being written
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    repository: RepositoryArguments,
}

pub fn run(command: BackupCommand) -> Result<()> {
    match command {
        BackupCommand::Repo(command) => repo::run(command),
        BackupCommand::Run(arguments) => {
            back_up(&arguments).map_err(|error| explain(error, &arguments.vm, &arguments.repository.daemon))
        }
        BackupCommand::List(arguments) => points::list(&arguments),
        BackupCommand::Show(arguments) => points::show(&arguments),
        BackupCommand::Verify(arguments) => verify(&arguments),
        BackupCommand::Restore(arguments) => restore(&arguments),
        BackupCommand::Forget(arguments) => points::forget(&arguments),
        BackupCommand::Prune(arguments) => prune(&arguments),
        BackupCommand::Export(arguments) => export::run(&arguments),
    }
}

fn back_up(arguments: &RunArguments) -> Result<()> {
    let RepositoryArguments { repo, daemon } = &arguments.repository;
    let path = format!("/v1/vms/{}/backups", path_segment(&arguments.vm));
    let request = BackUpVm { repository: repo.clone() };
    let connection = daemon.daemon()?;
    let done = AtomicBool::new(false);
    let point: PointView = thread::scope(|scope| {
        scope.spawn(|| watch(daemon, &path, &done));
        let answer = connection.post_within(&path, Some(&request), TIMEOUT);
        done.store(true, Ordering::Release);
        answer
    })?;
    if daemon.json {
        return print_json(&point);
    }
    print_line(&format!(
        "VM {} backed up to {} as {}: {} of data, {} of it new",
        arguments.vm,
        point.repository,
        point.id,
        human_bytes(point.data_bytes),
        human_bytes(point.added_bytes)
    ))
}

/// Shows how far a backup is until it is done, and gives it up on Ctrl-C.
fn watch(daemon: &DaemonArguments, path: &str, done: &AtomicBool) {
    let bar = ProgressBar::new_spinner().with_message("copying the disks within the host");
    // Whoever cannot watch it has it written all the same, and ends by the first Ctrl-C.
    let (Ok(connection), Ok(())) = (daemon.daemon(), interrupt::watch()) else { return };
    let mut is_cancelled = false;
    while !done.load(Ordering::Acquire) {
        thread::sleep(LOOK_INTERVAL);
        bar.tick();
        if interrupt::is_requested() && !is_cancelled {
            // Where it is not under way yet, or not any more, the next look finds out.
            is_cancelled = connection.delete::<()>(path, None::<&()>).is_ok();
        } else if let Ok(Some(BackupProgress { bytes: bytes @ 1.. })) = connection.get(path) {
            bar.set_message(format!("{} read", human_bytes(bytes)));
        }
    }
    bar.finish_and_clear();
}

fn verify(arguments: &RepositoryArguments) -> Result<()> {
    let (daemon, path) = arguments.open()?;
    let found: Verification = daemon.post_within(&format!("{path}/verify"), None::<&()>, TIMEOUT)?;
    if arguments.daemon.json {
        print_json(&found)?;
    } else {
        for damage in &found.damaged {
            let file = damage.file.as_ref().map_or_else(String::new, |file| format!("{}: ", file.display()));
            print_line(&format!("damaged: {file}{}", damage.why))?;
        }
        for point in found.points.iter().filter(|point| !point.whole) {
            let vm = point.vm.as_deref().unwrap_or("a VM that is not known");
            print_line(&format!("not whole: recovery point {} of {vm}", point.id))?;
        }
        let whole = found.points.iter().filter(|point| point.whole).count();
        print_line(&format!(
            "{whole} of {} recovery points are whole; {} in {} files read",
            found.points.len(),
            human_bytes(found.bytes),
            found.packs
        ))?;
    }
    if !found.is_good() {
        bail!("the repository is damaged: the next backup writes anew what VMs still have of it");
    }
    Ok(())
}

fn restore(arguments: &RestoreArguments) -> Result<()> {
    let (daemon, path) = arguments.repository.open()?;
    let request = RestorePoint {
        name: arguments.name.clone(),
        forward: Some(arguments.forward.clone()).filter(|forward| !forward.is_empty()),
        start: arguments.start,
    };
    let path = format!("{path}/points/{}/restore", path_segment(&arguments.point));
    let view: VmView = daemon.post_within(&path, Some(&request), TIMEOUT)?;
    if arguments.repository.daemon.json {
        return print_json(&view);
    }
    let power = if view.running { "runs" } else { "is off" };
    print_line(&format!("VM {} restored on host {}: it {power}", view.name, view.host))
}

fn prune(arguments: &PruneArguments) -> Result<()> {
    let (daemon, path) = arguments.repository.open()?;
    let request = PruneRepository { now: arguments.now };
    let pruned: Pruned = daemon.post_within(&format!("{path}/prune"), Some(&request), TIMEOUT)?;
    if arguments.repository.daemon.json {
        return print_json(&pruned);
    }
    for damage in &pruned.damaged {
        say(format_args!("warning: a damaged file stays: {}", damage.why));
    }
    print_line(&format!(
        "{} removed, {} to be removed when they have not been needed for a day, {} kept",
        human_bytes(pruned.removed_bytes),
        human_bytes(pruned.doomed_bytes),
        human_bytes(pruned.kept_bytes)
    ))
}

/// When something was, for people.
fn when(unix_ms: Option<u64>) -> String {
    unix_ms.map_or_else(
        || "-".to_owned(),
        |at| {
            let (time, ago) = (unix_time(at), Elapsed(unix_ms_now().saturating_sub(at)));
            // Without the fraction of a second.
            format!("{} ({ago} ago)", time.split('.').next().unwrap_or(&time))
        },
    )
}
