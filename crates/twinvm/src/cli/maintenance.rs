//! `twinvm host maintenance`: empties a host for work on its machine.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use api::maintenance::{HeldPart, LeavingVm, MaintenanceView, SetMaintenance};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use spec::Maintenance;
use terminal::output::{print_json, print_line};

use super::daemon::{DaemonArguments, path_segment};
use super::wait::{Look, Patience};

pub const HELP: &str = "\
A host in maintenance takes no VM, no secondary and no start, and what it has leaves it:
  VMs that run there and are not protected move to hosts that have room (`twinvm vm migrate`), as many at a time as first_copies_max in host.toml says.
  Protected VMs that run there are handed over to their secondaries, which get secondaries elsewhere.
  Secondaries there are let go, each when another host has room for the next one: until that is made its VM is not protected, as with any new secondary.
A VM that no third host could protect stays, and keeps its protection: where there are such, as in a cluster of two hosts, `on` is refused and names
them. With --force they leave too, and are NOT PROTECTED until there is a host for their secondaries again.
VMs that are off stay with their disks, and so does what no host has room for: it is listed with the reasons, and the command fails when anything
that runs is left. The host can be switched off when nothing that runs is.
It lasts until `off`, whatever becomes of the daemon. Then the host may be given secondaries and VMs again; none comes back by itself.

  twinvm host maintenance on b
  twinvm host maintenance off b";

#[derive(Args)]
pub struct MaintenanceArguments {
    /// Whether it begins or ends
    #[arg(value_enum)]
    state: Switch,
    /// Name of the host [default: the one that is asked]
    host: Option<String>,
    /// Also if VMs are not protected any more
    #[arg(long)]
    force: bool,
    /// Return as soon as it has begun
    #[arg(long)]
    no_wait: bool,
    /// Give up waiting after so long; what has begun goes on
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

pub fn run(arguments: &MaintenanceArguments) -> Result<ExitCode> {
    let daemon = arguments.daemon.daemon()?;
    let host = arguments.host.clone().unwrap_or_else(|| daemon.host().to_owned());
    let path = format!("/v1/hosts/{}/maintenance", path_segment(&host));
    let is_on = arguments.state == Switch::On;
    let mut view: MaintenanceView =
        daemon.post(&path, Some(&SetMaintenance { on: is_on, force: arguments.force && is_on }))?;
    if is_on && !arguments.no_wait {
        let how_on = format!("see `twinvm host show {host}`, or end it with `twinvm host maintenance off {host}`");
        let patience = Patience {
            timeout: Duration::from_secs(arguments.timeout),
            late: &|state| format!("not within {} s: {state}; it goes on: {how_on}", arguments.timeout),
            interrupted: &|state| format!("not waited for; it goes on ({state}): {how_on}"),
        };
        view = patience.wait(&ProgressBar::new_spinner(), |_| {
            let view: MaintenanceView = daemon.get(&path)?;
            Ok(match leaving(&view) {
                None => Look::Done(view),
                Some(text) => Look::Waiting(text),
            })
        })?;
    }
    let is_left = |vm: &LeavingVm| vm.holds != HeldPart::Disks;
    let is_done = arguments.no_wait || !view.vms.iter().any(is_left);
    if arguments.daemon.json {
        print_json(&view)?;
    } else {
        print(&view)?;
    }
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is still to leave the host, in words; nothing if what is there stays.
fn leaving(view: &MaintenanceView) -> Option<String> {
    let mut leaving = view.vms.iter().filter(|vm| vm.leaves);
    let first = leaving.next()?;
    let more = match leaving.count() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Some(format!("VM {} {}{more}", first.vm, first.text))
}

fn print(view: &MaintenanceView) -> Result<()> {
    let host = &view.host;
    if view.maintenance == Maintenance::Off {
        return print_line(&format!("host {host} is not in maintenance any more"));
    }
    if view.vms.is_empty() {
        return print_line(&format!("host {host} is in maintenance, and holds nothing"));
    }
    print_line(&format!("host {host} is in maintenance; what it holds:"))?;
    lines(&view.vms).iter().try_for_each(|line| print_line(line))
}

/// VMs on a host that is in maintenance, a line each.
pub fn lines(vms: &[LeavingVm]) -> Vec<String> {
    let line = |vm: &LeavingVm| {
        let holds = match vm.holds {
            HeldPart::Primary => "runs there",
            HeldPart::Secondary => "has its secondary there",
            HeldPart::Disks => "is off",
        };
        format!("  VM {} {holds}: {}", vm.vm, vm.text)
    };
    vms.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_waited_for_what_leaves_and_for_nothing_else() {
        let vm = |vm: &str, leaves, text: &str| LeavingVm {
            vm: vm.to_owned(),
            holds: HeldPart::Primary,
            leaves,
            text: text.to_owned(),
        };
        let view = |vms| MaintenanceView { host: "a".to_owned(), maintenance: Maintenance::On, vms };
        assert_eq!(leaving(&view(vec![])), None);
        assert_eq!(leaving(&view(vec![vm("v", false, "no host has room")])), None);
        let vms = vec![vm("v", false, "no host has room"), vm("w", true, "moves to host b"), vm("x", true, "moves")];
        assert_eq!(leaving(&view(vms)).as_deref(), Some("VM w moves to host b, and 1 more"));
    }
}
