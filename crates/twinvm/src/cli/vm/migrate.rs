//! `twinvm vm migrate`: moves VMs that run to other hosts.

use std::time::Duration;

use anyhow::{Result, bail};
use api::messages::{MigrateVm, OperationView, VmView};
use clap::Args;
use terminal::output::{print_json, print_line};

use super::VmArguments;
use super::cluster::path;
use crate::cli::daemon::DaemonConnection;
use crate::cli::ft::{Alone, copy_bar, how_it_stands, is_protected};
use crate::cli::wait::{Look, Patience};

pub const MIGRATE_HELP: &str = "\
The guest goes on all the time, with its memory, its disks and its network connections. How it moves:
  A VM that is not protected is copied to the other host, handed over when the copy is complete, and its disks are removed from the host that it leaves. If
  anything fails before that, it stays where it is.
  A protected VM goes to the host of its secondary by a planned takeover (`twinvm ft switchover`), and gets its next secondary by itself: its former host comes
  first. Without HOST that is where it goes.
  A protected VM whose secondary is on another host than HOST needs --interrupt-ft: it has one secondary at a time, which is let go, so that the VM is NOT
  PROTECTED until it has been copied to HOST and handed over, and then until its next secondary is made. The copies of its disks on other hosts are kept
  meanwhile. To move without that, go to the secondary's host.
Hosts that have no room for it, no such processor, or not its networks are refused by name. Snapshots stay on the host that has taken them.
A VM that is off does not move: start it, move it, and stop it there.
Ctrl-C ends the waiting, not the move. `twinvm vm show VM` shows how it goes on, --cancel leaves the VM where it is.

  twinvm vm migrate shop b
  twinvm vm migrate shop --cancel";

#[derive(Args)]
pub struct MigrateArguments {
    #[command(flatten)]
    pub(super) vm: VmArguments,
    /// The host that it is to run on [default: its secondary's, or else one that has room]
    host: Option<String>,
    /// Let the VM be without a secondary while it is copied to HOST
    #[arg(long)]
    interrupt_ft: bool,
    /// Leave it where it is: the move that is under way is given up
    #[arg(long, conflicts_with_all = ["host", "interrupt_ft", "no_wait", "timeout"])]
    cancel: bool,
    /// Return as soon as it has begun
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// Wait until it is done, which is the default
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Give up waiting after so long; the move goes on
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

pub fn migrate(arguments: &MigrateArguments) -> Result<()> {
    let VmArguments { name, daemon: how } = &arguments.vm;
    let daemon = how.daemon()?;
    let route = format!("{}/migrate", path(name));
    if arguments.cancel {
        let view: VmView = daemon.delete(&route, None::<&()>)?;
        return answer(how.json, &view, &format!("VM {name} stays on host {}", view.host));
    }
    let request = MigrateVm { host: arguments.host.clone(), interrupt_ft: arguments.interrupt_ft };
    let begun: VmView = daemon.post(&route, Some(&request))?;
    let (from, to) = (begun.host.clone(), begun.operation.as_ref().and_then(|it| it.to.clone()).unwrap_or_default());
    if arguments.no_wait && !arguments.wait {
        return answer(how.json, &begun, &format!("VM {name} moves from host {from} to host {to}"));
    }
    let moved = arguments.wait_until_moved(&daemon, begun.operation.as_ref().map_or(0, |it| it.id))?;
    if !how.json {
        print_line(&format!("VM {name} runs on host {}", moved.host))?;
    }
    let last = if moved.ft.enabled && !moved.ft.suspended { arguments.wait_until_protected(&daemon)? } else { moved };
    answer(how.json, &last, &last.protection.to_string())
}

fn answer(json: bool, view: &VmView, message: &str) -> Result<()> {
    if json { print_json(view) } else { print_line(message) }
}

/// How an operation has ended, or that it has not.
fn is_over(view: &VmView, id: u64) -> Result<bool> {
    match &view.operation {
        Some(OperationView { id: last, failure, is_over, .. }) if *last == id => match failure {
            Some(why) => bail!("VM {} was not moved, and is on host {}: {why}", view.name, view.host),
            None => Ok(*is_over),
        },
        Some(other) => bail!("something else was asked of VM {} meanwhile: {}", view.name, other.what),
        None => bail!("VM {} was made anew meanwhile", view.name),
    }
}

impl MigrateArguments {
    fn wait_until_moved(&self, daemon: &DaemonConnection, id: u64) -> Result<VmView> {
        self.wait(daemon, |view| is_over(view, id))
    }

    fn wait_until_protected(&self, daemon: &DaemonConnection) -> Result<VmView> {
        let mut alone = Alone::default();
        self.wait(daemon, |view| Ok(is_protected(view) || !view.running || alone.is_for_long(view)))
    }

    fn wait(&self, daemon: &DaemonConnection, mut done: impl FnMut(&VmView) -> Result<bool>) -> Result<VmView> {
        let name = &self.vm.name;
        let how_on =
            format!("see `twinvm vm show {name}`, or leave it where it is with `twinvm vm migrate {name} --cancel`");
        let patience = Patience {
            timeout: Duration::from_secs(self.timeout),
            late: &|state| format!("not within {} s: {state}; the move goes on: {how_on}", self.timeout),
            interrupted: &|state| format!("not waited for; the move goes on ({state}): {how_on}"),
        };
        patience.wait(&copy_bar(), |bar| {
            let view: VmView = daemon.get(&path(name))?;
            if done(&view)? {
                return Ok(Look::Done(view));
            }
            Ok(Look::Waiting(how_it_stands(bar, &view)))
        })
    }
}

#[cfg(test)]
mod tests {
    use api::messages::OperationView;

    use super::*;

    #[test]
    fn whoever_waits_learns_what_became_of_his_own_move() {
        let operation = |id, is_over, failure: Option<&str>| OperationView {
            id,
            what: "migration".to_owned(),
            to: Some("b".to_owned()),
            is_over,
            failure: failure.map(str::to_owned),
        };
        let outcome = |operation| {
            let text = r#"{"name":"v","running":true,"host":"a","secondary":null,"cpus":1,"memory_bytes":1,"engine":null,
                "generation":1,"ft":{"enabled":false,"suspended":false},"lag_ms_max":1,"protection":{"state":"disabled",
                "reason":null,"detail":null,"since_unix_ms":1},"note":null,"replicas":[],"spec":""}"#;
            let mut view: VmView = serde_json::from_str(text).unwrap();
            view.operation = Some(operation);
            is_over(&view, 7).map_err(|error| error.to_string())
        };
        assert_eq!(outcome(operation(7, false, None)), Ok(false));
        assert_eq!(outcome(operation(7, true, None)), Ok(true));
        let failed = outcome(operation(7, true, Some("host b is full"))).unwrap_err();
        assert_eq!(failed, "VM v was not moved, and is on host a: host b is full");
        assert!(outcome(operation(8, true, None)).unwrap_err().contains("something else was asked"));
    }
}
