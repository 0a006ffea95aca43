//! `twinvm cluster admission` and `what-if`: what is kept for restarts, and what would become of VMs.

use anyhow::Result;
use api::admission::{AskWhatIf, WhatIfView};
use clap::{Args, Subcommand};
use spec::{AdmissionPolicy, HostName};
use terminal::output::{print_json, print_line, print_table, table};

use super::daemon::DaemonArguments;

/// The help of `what-if`.
pub const WHAT_IF_HELP: &str = "\
Examples:
  twinvm cluster what-if --lose a        one host
  twinvm cluster what-if --lose a,b      two at once
Nothing is changed: it is what the planner would do now. VMs that run and are not named go on as they are.";

#[derive(Args)]
pub struct WhatIfArguments {
    /// Hosts that are lost at once
    #[arg(long, value_name = "HOSTS", value_delimiter = ',', required = true)]
    lose: Vec<HostName>,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Subcommand)]
pub enum AdmissionCommand {
    /// Show what is kept for restarts
    Show(DaemonArguments),
    /// Keep room so that all VMs with high availability can be restarted, whichever hosts are lost
    HostFailures {
        /// How many hosts at once, 1 to 3: each set of them is tried whenever a VM is started
        hosts: u32,
        #[command(flatten)]
        daemon: DaemonArguments,
    },
    /// Keep a part of the memory and vCPUs of all hosts
    Percent {
        /// Of the memory, in percent
        #[arg(long, value_name = "PERCENT")]
        memory: u32,
        /// Of the vCPUs, in percent
        #[arg(long, value_name = "PERCENT", default_value_t = 0)]
        cpus: u32,
        #[command(flatten)]
        daemon: DaemonArguments,
    },
    /// Keep whole hosts, on which nothing is started but what is restarted
    DedicatedHosts {
        /// Their names
        #[arg(value_delimiter = ',', required = true)]
        hosts: Vec<HostName>,
        #[command(flatten)]
        daemon: DaemonArguments,
    },
    /// Keep nothing
    Off(DaemonArguments),
}

pub fn admission(command: &AdmissionCommand) -> Result<()> {
    let (wanted, daemon) = match command {
        AdmissionCommand::Show(daemon) => (None, daemon),
        AdmissionCommand::HostFailures { hosts, daemon } => {
            (Some(AdmissionPolicy::HostFailures { hosts: *hosts }), daemon)
        }
        AdmissionCommand::Percent { memory, cpus, daemon } => {
            (Some(AdmissionPolicy::Percent { memory: *memory, cpus: *cpus }), daemon)
        }
        AdmissionCommand::DedicatedHosts { hosts, daemon } => {
            (Some(AdmissionPolicy::DedicatedHosts { hosts: hosts.iter().cloned().collect() }), daemon)
        }
        AdmissionCommand::Off(daemon) => (Some(AdmissionPolicy::Off), daemon),
    };
    let connection = daemon.daemon()?;
    let policy: AdmissionPolicy = match &wanted {
        Some(wanted) => connection.post("/v1/cluster/admission", Some(wanted))?,
        None => connection.get("/v1/cluster/admission")?,
    };
    if daemon.json {
        return print_json(&policy);
    }
    print_line(&policy.to_string())
}

pub fn what_if(arguments: &WhatIfArguments) -> Result<()> {
    let lose = arguments.lose.iter().cloned().collect();
    let view: WhatIfView = arguments.daemon.daemon()?.post("/v1/cluster/what-if", Some(&AskWhatIf { lose }))?;
    if arguments.daemon.json {
        return print_json(&view);
    }
    if view.vms.is_empty() {
        return print_line("no VM would notice");
    }
    let mut rows = table(&["VM", "WHAT", "HOST", "WHY NOT"]);
    for fate in view.vms {
        rows.add_row([
            fate.vm,
            fate.fate.label().to_owned(),
            fate.host.unwrap_or_else(|| "-".to_owned()),
            fate.why.join("; "),
        ]);
    }
    print_table(&rows)
}
