//! `twinvm cluster`: what concerns a cluster as a whole.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{ArgGroup, Args, Subcommand};
use cluster::records::MoveStep;
use cluster::store::{EtcdKeys, StoreLocation};
use host::config::HostConfig;
use host::etcd_setup::{DATA_FOLDER_DEFAULT, EtcdSetup, MEMBER_FOLDER_DEFAULT, Member, PORTS_DEFAULT};
use host::init::Keys;
use host::store_move::{Migrated, Target, abort, migrate};
use serde_json::json;
use terminal::output::{print_json, print_line, say};

use super::admission::{AdmissionCommand, WHAT_IF_HELP, WhatIfArguments, admission, what_if};
use super::daemon::DaemonArguments;
use super::host::{NewHostArguments, init_host};

#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Make a cluster, of which this machine is the first host
    #[command(after_help = "\
With an etcd that `twinvm cluster etcd` has set up, and that runs:
  a$ twinvm cluster init --name a --listen 192.0.2.11:7441 --etcd etcd
With another etcd, or on one machine, the same as `twinvm host init --new-cluster`:
  a$ twinvm cluster init --name a --listen 192.0.2.11:7441 --store etcd://192.0.2.11:2379,192.0.2.12:2379,192.0.2.13:2379
Then further hosts join with a token:
  a$ twinvm host start
  a$ twinvm host token b
  b$ twinvm host join TOKEN --listen 192.0.2.12:7441")]
    Init(Box<InitArguments>),
    /// Write the configuration of an etcd for a cluster: certificates, and for each member its settings and a systemd unit
    #[command(after_help = "\
Three members, on the hosts themselves, for Debian's etcd-server (3.4):
  a$ twinvm cluster etcd --member a=192.0.2.11 --member b=192.0.2.12 --member c=192.0.2.13 --out etcd
  a$ scp -r etcd/b root@192.0.2.12:/etc/twinvm/etcd      (c the same; on a: cp -r etcd/a /etc/twinvm/etcd)
  on each:
  $ apt-get install -y etcd-server && systemctl disable --now etcd
  $ cp /etc/twinvm/etcd/twinvm-etcd.service /etc/systemd/system/ && systemctl enable --now twinvm-etcd
  a$ twinvm cluster init --name a --listen 192.0.2.11:7441 --etcd etcd
`cluster init --etcd` turns on that etcd asks for a user, and gives each host one that can write only what a host writes; hosts that join get theirs with their
certificate. The folder holds the keys of etcd's authority and the password of its user root: keep a copy in a safe place, and remove it here when the cluster is
made. What the folder holds already stays as it is.")]
    Etcd(EtcdArguments),
    /// Move the cluster's store from files on one machine to etcd, with VMs running and protected
    #[command(after_help = "\
Give it on the machine that all hosts are on, on the host with the folder `authority`, as a user who may write in the folders of all hosts. What it does:
  1. each host gets its keys for etcd (with --etcd) and learns where the store is to be;
  2. the old store is frozen, copied, and says that it was moved: from that moment on only etcd is believed;
  3. daemons start anew with etcd, and replicas ask there. VMs go on; nobody takes over while the store is frozen, which takes a moment.
  a$ twinvm cluster etcd --member a=192.0.2.11 --member b=192.0.2.12 --member c=192.0.2.13 --out etcd      (and start it: see its help)
  a$ twinvm cluster migrate-store --etcd etcd
If it is interrupted, give it again: it goes on where it was. Until the old store says that it was moved, --abort undoes it. VMs that were started by an earlier
version have to be restarted, or moved once, before: their replicas do not know of moves.")]
    MigrateStore(Box<MigrateArguments>),
    /// What is kept free so that VMs can be restarted when hosts are lost
    #[command(subcommand)]
    Admission(AdmissionCommand),
    /// Show what would become of VMs if hosts were lost: which go on, which are restarted and where, which are not and why
    #[command(after_help = WHAT_IF_HELP)]
    WhatIf(WhatIfArguments),
    /// Take an etcd that was restored from an older copy as it is, on this host, whose daemon does not run
    #[command(after_help = "\
An etcd that has gone back does not know what was decided since: it could let two replicas of one VM run. So hosts do not believe it. If nothing newer can be
had: stop all daemons and all VMs (`twinvm host stop --with-vms`, or by ending their processes), see that no replica runs anywhere, give this command on each host,
and start the daemons. docs/etcd.md says more.")]
    AcceptStore(DaemonArguments),
}

#[derive(Args)]
pub struct InitArguments {
    /// The folder that `twinvm cluster etcd` has written: the store is that etcd
    #[arg(long, value_name = "DIR", conflicts_with = "store_ca")]
    etcd: Option<PathBuf>,
    #[command(flatten)]
    host: NewHostArguments,
}

#[derive(Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct MigrateArguments {
    /// The folder that `twinvm cluster etcd` has written: to that etcd
    #[arg(long, value_name = "DIR", group = "what")]
    etcd: Option<PathBuf>,
    /// Another etcd, as etcd://HOST:PORT,HOST:PORT with perhaps /NAME for the cluster's name there
    #[arg(long, value_name = "ETCD", group = "what")]
    store: Option<StoreLocation>,
    /// Undo a move that was interrupted
    #[arg(long, group = "what")]
    abort: bool,
    /// Speak TLS with that other etcd: the authority of its members' certificates (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["store", "store_cert", "store_key"])]
    store_ca: Option<PathBuf>,
    /// The certificate of all hosts for it (PEM)
    #[arg(long, value_name = "FILE", requires = "store_ca")]
    store_cert: Option<PathBuf>,
    /// The private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "store_ca")]
    store_key: Option<PathBuf>,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Args)]
pub struct EtcdArguments {
    /// A member: the name of its machine and the address at which others reach it (three or five times)
    #[arg(long = "member", value_name = "NAME=IP", required = true)]
    members: Vec<Member>,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Port at which members serve clients
    #[arg(long, value_name = "PORT", default_value_t = PORTS_DEFAULT.0)]
    client_port: u16,
    /// Port at which members serve each other
    #[arg(long, value_name = "PORT", default_value_t = PORTS_DEFAULT.1)]
    peer_port: u16,
    /// Where a member's files will be on its machine
    #[arg(long, value_name = "DIR", default_value = MEMBER_FOLDER_DEFAULT)]
    member_dir: PathBuf,
    /// Where a member will keep its data on its machine
    #[arg(long, value_name = "DIR", default_value = DATA_FOLDER_DEFAULT)]
    data_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(command: ClusterCommand) -> Result<ExitCode> {
    match command {
        ClusterCommand::Init(arguments) => init_host(Keys::NewCluster, arguments.host, arguments.etcd)?,
        ClusterCommand::Etcd(arguments) => etcd(arguments)?,
        ClusterCommand::MigrateStore(arguments) => return migrate_store(&arguments),
        ClusterCommand::Admission(command) => admission(&command)?,
        ClusterCommand::WhatIf(arguments) => what_if(&arguments)?,
        ClusterCommand::AcceptStore(arguments) => {
            let folder = arguments.folder()?;
            HostConfig::load(&folder)?;
            let seen = folder.accept_store()?;
            if arguments.json {
                return print_json(&json!({ "forgotten": seen })).map(|()| ExitCode::SUCCESS);
            }
            print_line(&match seen {
                Some(seen) => {
                    format!("revision {} is forgotten: the next daemon takes the store as it is", seen.revision)
                }
                None => "this host has seen nothing of the store that could have gone back".to_owned(),
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn etcd(arguments: EtcdArguments) -> Result<()> {
    let setup = EtcdSetup {
        members: arguments.members,
        client_port: arguments.client_port,
        peer_port: arguments.peer_port,
        member_folder: arguments.member_dir,
        data_folder: arguments.data_dir,
    };
    setup.write(&arguments.out)?;
    if arguments.json {
        return print_json(&json!({ "store": setup.address(), "dir": arguments.out }));
    }
    let out = arguments.out.display();
    for member in &setup.members {
        print_line(&format!("{out}/{0}: copy it to {1} on {0}", member.name, setup.member_folder.display()))?;
    }
    print_line(&format!("start twinvm-etcd on each, then make the cluster with `twinvm cluster init --etcd {out}`"))
}

fn migrate_store(arguments: &MigrateArguments) -> Result<ExitCode> {
    let (folder, json) = (arguments.daemon.folder()?, arguments.daemon.json);
    if arguments.abort {
        let to = abort(&folder)?;
        let message = format!("the move to {to} is undone: the store goes on where it was");
        return if json { print_json(&json!({ "undone": to })) } else { print_line(&message) }
            .map(|()| ExitCode::SUCCESS);
    }
    let absolute = |path: &PathBuf| std::path::absolute(path);
    let keys = match (&arguments.store_ca, &arguments.store_cert, &arguments.store_key) {
        (Some(ca), Some(cert), Some(key)) => {
            Some(EtcdKeys { ca: absolute(ca)?, cert: absolute(cert)?, key: absolute(key)?, user: None })
        }
        _ => None,
    };
    let target = match (&arguments.etcd, &arguments.store) {
        (Some(setup), _) => Target::Setup(setup.clone()),
        (None, Some(StoreLocation::Etcd(address))) => Target::Etcd(address.clone(), keys),
        (None, _) => bail!("--store has to name an etcd, as etcd://HOST:PORT,HOST:PORT"),
    };
    let migrated = migrate(&folder, &target, |step| {
        if !json {
            say(words(step));
        }
    })?;
    let Migrated { store, hosts, away, late } = &migrated;
    if json {
        print_json(&json!({ "store": store, "hosts": hosts, "away": away, "late": late }))?;
    } else {
        print_line(&format!("the cluster's store is {store}; hosts that go on there: {}", hosts.join(" ")))?;
        if !away.is_empty() {
            print_line(&format!("not running, and to follow when they are started: {}", away.join(" ")))?;
        }
        if !late.is_empty() {
            print_line(&format!("running, and not there yet: {}; see their logs", late.join(" ")))?;
        }
    }
    Ok(if late.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn words(step: MoveStep) -> &'static str {
    match step {
        MoveStep::Begun => "the new store is there, and empty",
        MoveStep::Frozen => "the old store is frozen",
        MoveStep::Copied => "everything is copied",
        MoveStep::Committed => "the store is moved",
        MoveStep::Finished => "daemons go on with it",
    }
}
