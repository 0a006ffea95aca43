//! `twinvm host`: hosts of a cluster.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use api::joining::{MadeToken, MakeToken};
use api::leaving::HostLeft;
use api::maintenance::MaintenanceView;
use api::messages::{DaemonView, HostView, StopHost};
use clap::{ArgGroup, Args, Subcommand};
use cluster::store::{EtcdKeys, StoreLocation};
use host::config::{API_PORT, METRICS_PORT, parse_address_or_nothing};
use host::init::{InitOptions, Keys, init, issue};
use host::run as run_daemon;
use host::sandbox::Confinement;
use host::token::Token;
use serde_json::{Value, json};
use spec::{FailureDomain, Maintenance};
use terminal::output::{human_bytes, print_json, print_line, print_table, table};

use super::daemon::{DaemonArguments, path_segment};
use super::{logging, maintenance};

#[derive(Subcommand)]
pub enum HostCommand {
    /// Make this machine, or a folder of it, a host of a cluster
    #[command(after_help = "\
The first host makes the cluster and signs the keys of the others:
  a$ twinvm host init --new-cluster --name a --listen 192.0.2.1:7441
  a$ twinvm host start
  a$ twinvm host token b
  b$ twinvm host join TOKEN --listen 192.0.2.2:7441
The same without a network between them, with keys in a file:
  a$ twinvm host issue b --out b.bundle
  b$ twinvm host init --bundle b.bundle --listen 192.0.2.2:7441    (b.bundle copied there by a safe way)
Commands on the first host act as operator `admin` (operator.pem in the host's folder); on others they need the keys of an operator:
  a$ twinvm operator issue alice --out alice.pem
  b$ twinvm vm list --operator alice.pem
Hosts on several machines need a store that spans them, etcd:
  a$ twinvm host init --new-cluster --name a --listen 192.0.2.1:7441 --store etcd://192.0.2.1:2379,192.0.2.2:2379,192.0.2.3:2379
Three hosts on one machine, to try things out:
  twinvm host init --new-cluster --name a --dir hosts/a --listen 127.0.0.1:7441
  twinvm host issue b --dir hosts/a --out b.bundle
  twinvm host init --bundle b.bundle --dir hosts/b --listen 127.0.0.1:7442 --metrics 127.0.0.1:9442
What was decided is in host.toml in the host's folder, and can be changed there while the daemon does not run.")]
    Init(Box<InitArguments>),
    /// Join a cluster, by a token of `twinvm host token`
    #[command(after_help = "\
The keys are made here, and the private one stays here: the host that made the token certifies them, and is known by the fingerprint in the token.
  a$ twinvm host token b                         (prints a token that is good once, for an hour)
  b$ twinvm host join TOKEN --listen 192.0.2.2:7441
  b$ twinvm host start
With `-` for TOKEN it is read from standard input, so that no list of processes shows it.")]
    Join(Box<JoinArguments>),
    /// Make a token with which one further host can join
    #[command(after_help = "\
The token is good for one host and for a limited time. Whoever has it can be a host of the cluster, which is not what an operator is: send it by a safe
way. It is made on the host that has made the cluster; on other hosts this command is passed on to it.
Without a network between the hosts, `twinvm host issue` makes keys as a file.")]
    Token(TokenArguments),
    /// Take this host out of the cluster, for good
    #[command(after_help = "\
Refused while a replica or the disks of a VM are here. `twinvm host maintenance on` moves what runs; a VM that is off is started and moved with
`twinvm vm migrate VM`; `twinvm ft off VM` ends a secondary that no other host can take. The host's keys are removed, and its daemon ends. A host that is gone is removed on another one, with `twinvm host rm`.")]
    Leave(DaemonArguments),
    /// Make the keys of a further host, on the host that has made the cluster
    #[command(after_help = "\
The bundle holds the new host's private key: whoever has it is that host. It does not entitle to what operators do. Remove it when it has
been used.")]
    Issue(IssueArguments),
    /// Run the host's daemon, until SIGTERM or Ctrl-C; VMs go on without it
    #[command(after_help = "\
When it is ready it writes a line of JSON to standard output; it logs to standard error (RUST_LOG=debug for more).
As a systemd service:
  [Service]
  Type=notify
  ExecStart=/usr/bin/twinvm host start --dir /var/lib/twinvm/host
  KillMode=process
  Restart=on-failure
  RestartSec=1
KillMode=process keeps VMs alive when the service stops: they are processes of their own, which the next daemon finds.")]
    Start(StartArguments),
    /// Stop the host's daemon; VMs go on without it
    Stop(StopArguments),
    /// List the hosts of the cluster: leases, resources, replicas
    List(DaemonArguments),
    /// Show one host
    Show(ShowArguments),
    /// Empty a host for work on its machine, or let it take VMs again
    #[command(after_help = maintenance::HELP)]
    Maintenance(maintenance::MaintenanceArguments),
    /// Show what confines the processes of VMs on this machine
    #[command(after_help = "\
It confines itself like a replica and says what came of it: files by Landlock and by a file system of its own, system calls by seccomp, a user
of its own by the number that a daemon of root's takes from vm_uids in host.toml.
  twinvm host sandbox
  sudo twinvm host sandbox --user 2100000000
What a running host does: `twinvm host show`.")]
    Sandbox(SandboxArguments),
    /// Remove a host that is gone for good from the cluster
    #[command(after_help = "\
It must not be alive, and no VM may have its primary or its secondary there. Its certificate stays valid: remove its keys.")]
    Rm(RemoveArguments),
}

#[derive(Args)]
#[group(skip)]
#[command(group = ArgGroup::new("keys").required(true))]
pub struct InitArguments {
    /// Make a cluster, of which this is the first host
    #[arg(long, group = "keys")]
    new_cluster: bool,
    /// Join a cluster with the keys that `twinvm host issue` made
    #[arg(long, alias = "join", value_name = "FILE", group = "keys")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    host: NewHostArguments,
}

#[derive(Args)]
pub struct JoinArguments {
    /// The token; `-` for standard input
    token: String,
    #[command(flatten)]
    host: NewHostArguments,
}

#[derive(Args)]
pub struct TokenArguments {
    /// Name of the host that is to join [default: whatever name it has]
    name: Option<String>,
    /// How long the token is valid: a number with s, m, h or d, at most 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_time)]
    valid: Duration,
    #[command(flatten)]
    daemon: DaemonArguments,
}

/// What a new host is to be.
#[derive(Args)]
pub struct NewHostArguments {
    /// Name of the host [default: the machine's name, or the bundle's]
    #[arg(long)]
    name: Option<String>,
    /// Address at which other hosts reach this one; port 0 takes any free one
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], API_PORT)))]
    listen: SocketAddr,
    /// Address of the Prometheus metrics, over plain HTTP; empty for none
    #[arg(long, value_name = "IP:PORT", default_value_t = format!("127.0.0.1:{METRICS_PORT}"))]
    metrics: String,
    /// The cluster store: etcd, by its members as etcd://HOST:PORT,HOST:PORT with perhaps /NAME for the cluster's name there; or a file on the one
    /// machine that all hosts are on, beside which VMs are in a folder, FILE.vms [default: the bundle's, or cluster.db in the first host's folder]
    #[arg(long, value_name = "FILE|ETCD")]
    store: Option<StoreLocation>,
    /// Speak TLS with etcd: the authority of its members' certificates (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["store_cert", "store_key"])]
    store_ca: Option<PathBuf>,
    /// This host's certificate for etcd (PEM)
    #[arg(long, value_name = "FILE", requires = "store_ca")]
    store_cert: Option<PathBuf>,
    /// The private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "store_ca")]
    store_key: Option<PathBuf>,
    /// A folder below which VM specs may name kernels and disks, beside the images and `files` in the host's folder (may be repeated)
    #[arg(long = "vm-folder", value_name = "DIR")]
    vm_folders: Vec<PathBuf>,
    /// What this host fails together with, from what is largest to what is smallest, such as rack1/power2: the two replicas of a VM are never in one domain,
    /// nor one of them in a domain that the other's lies in. It can be changed in host.toml while the daemon does not run [default: its machine; where
    /// the store is a file, and so all hosts are on one machine, the host by itself]
    #[arg(long, value_name = "PATH")]
    domain: Option<FailureDomain>,
    /// A bridge that VMs can be connected to (may be repeated)
    #[arg(long = "network", value_name = "BRIDGE")]
    networks: Vec<String>,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Args)]
pub struct IssueArguments {
    /// Name of the new host
    name: String,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Args)]
pub struct StartArguments {
    /// The host's folder [default: $TWINVM_HOST_DIR, else `host` in the data folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Args)]
pub struct StopArguments {
    /// Stop its VMs too: primaries shut down, secondaries end
    #[arg(long)]
    with_vms: bool,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Args)]
pub struct SandboxArguments {
    /// Become this user, which takes root
    #[arg(long, value_name = "UID")]
    user: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct RemoveArguments {
    /// Name of the host
    name: String,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Args)]
pub struct ShowArguments {
    /// Name of the host [default: the one that is asked]
    name: Option<String>,
    #[command(flatten)]
    daemon: DaemonArguments,
}

pub fn run(command: HostCommand) -> Result<ExitCode> {
    match command {
        HostCommand::Init(arguments) => {
            let InitArguments { bundle, host, .. } = *arguments;
            init_host(bundle.map_or(Keys::NewCluster, Keys::Bundle), host, None)?;
        }
        HostCommand::Join(arguments) => {
            let token = match &*arguments.token {
                "-" => io::read_to_string(io::stdin()).context("cannot read the token from standard input")?,
                token => token.to_owned(),
            };
            let token: Token = token.parse().map_err(|error: String| anyhow::anyhow!(error))?;
            init_host(Keys::Token(token), arguments.host, None)?;
        }
        HostCommand::Token(arguments) => make_token(arguments)?,
        HostCommand::Leave(arguments) => {
            let daemon = arguments.daemon()?;
            let HostLeft { remains } = daemon.post("/v1/host/leave", None::<&()>)?;
            let (host, dir) = (daemon.host(), arguments.folder()?);
            let mut message = format!(
                "host {host} has left the cluster; {} holds nothing of the cluster any more",
                dir.path().display()
            );
            if let Some(remains) = &remains {
                message += &format!("\n{remains}");
            }
            answer(arguments.json, &json!({ "left": host, "remains": remains }), &message)?;
        }
        HostCommand::Issue(arguments) => {
            issue(&arguments.daemon.folder()?, &arguments.name, &arguments.out)?;
            let (name, out) = (&arguments.name, arguments.out.display());
            answer(
                arguments.daemon.json,
                &json!({ "host": name, "bundle": arguments.out }),
                &format!("keys of host {name}: {out}; use them there with `twinvm host init --bundle {out}`"),
            )?;
        }
        HostCommand::Start(arguments) => {
            let _log = logging::start().context("cannot start the log")?;
            run_daemon(&host::folder::HostFolder::find(arguments.dir.as_deref())?)?;
        }
        HostCommand::Stop(arguments) => {
            let daemon = arguments.daemon.daemon()?;
            let _: Value = daemon.post("/v1/host/stop", Some(&StopHost { with_vms: arguments.with_vms }))?;
            let message = if arguments.with_vms { "host and VMs stopped" } else { "host stopped; its VMs go on" };
            answer(arguments.daemon.json, &json!({ "stopped": true, "with_vms": arguments.with_vms }), message)?;
        }
        HostCommand::List(arguments) => list(&arguments)?,
        HostCommand::Show(arguments) => show(&arguments)?,
        HostCommand::Maintenance(arguments) => return maintenance::run(&arguments),
        HostCommand::Sandbox(arguments) => sandbox(&arguments)?,
        HostCommand::Rm(RemoveArguments { name, daemon }) => {
            let () = daemon.daemon()?.delete(&format!("/v1/hosts/{}", path_segment(&name)), None::<&()>)?;
            answer(daemon.json, &json!({ "removed": name }), &format!("host {name} removed from the cluster"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(json: bool, value: &Value, message: &str) -> Result<()> {
    if json { print_json(value) } else { print_line(message) }
}

/// Makes a host.
pub fn init_host(keys: Keys, arguments: NewHostArguments, etcd_setup: Option<PathBuf>) -> Result<()> {
    let folder = arguments.daemon.folder()?;
    let metrics =
        parse_address_or_nothing(&arguments.metrics).map_err(|error| anyhow::anyhow!("--metrics: {error}"))?;
    let absolute = |path: &PathBuf| std::path::absolute(path);
    let store_keys = match (&arguments.store_ca, &arguments.store_cert, &arguments.store_key) {
        (Some(ca), Some(cert), Some(key)) => {
            Some(EtcdKeys { ca: absolute(ca)?, cert: absolute(cert)?, key: absolute(key)?, user: None })
        }
        _ => None,
    };
    let options = InitOptions {
        keys,
        etcd_setup,
        name: arguments.name,
        listen: arguments.listen,
        metrics,
        store: arguments.store,
        store_keys,
        vm_folders: arguments.vm_folders,
        networks: arguments.networks,
        domain: arguments.domain,
    };
    let config = init(&folder, &options)?;
    let dir = folder.path().display();
    let mut message = format!("host {} made in {dir}; start it with `twinvm host start --dir {dir}`", config.name);
    if let (StoreLocation::File(_), None) = (&config.store, &config.domain) {
        message += "\nits cluster is on this machine alone, whose loss it does not survive; each of its hosts counts as a failure domain of its own";
    }
    let domain = config.failure_domain()?;
    answer(
        arguments.daemon.json,
        &json!({ "host": config.name, "dir": folder.path(), "listen": config.listen, "store": config.store, "domain": domain }),
        &message,
    )
}

fn make_token(arguments: TokenArguments) -> Result<()> {
    let make = MakeToken { host: arguments.name, valid_s: arguments.valid.as_secs() };
    let made: MadeToken = arguments.daemon.daemon()?.post("/v1/tokens", Some(&make))?;
    if arguments.daemon.json { print_json(&made) } else { print_line(&made.token) }
}

/// A time as a number with its unit.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time such as 30m, 1h or 2d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

fn list(arguments: &DaemonArguments) -> Result<()> {
    let hosts: Vec<HostView> = arguments.daemon()?.get("/v1/hosts")?;
    if arguments.json {
        return print_json(&hosts);
    }
    let mut rows = table(&["NAME", "STATE", "LEASE", "API", "DOMAIN", "CPUS", "MEMORY", "PRIMARIES", "SECONDARIES"]);
    for host in &hosts {
        rows.add_row([
            host.name.clone(),
            state(host).to_owned(),
            format!("{:.1} s ago", host.lease_age_ms as f64 / 1e3),
            host.api.clone(),
            domain(host),
            format!("{} of {}", host.cpus_reserved, host.cpus),
            format!("{} of {}", human_bytes(host.memory_reserved_bytes), human_bytes(host.memory_bytes)),
            host.primaries.join(" "),
            host.secondaries.join(" "),
        ]);
    }
    print_table(&rows)
}

fn domain(host: &HostView) -> String {
    host.domain.as_ref().map_or_else(|| "its machine".to_owned(), ToString::to_string)
}

fn state(host: &HostView) -> &'static str {
    match (host.alive, host.maintenance) {
        (true, Maintenance::Off) => "alive",
        (true, Maintenance::On | Maintenance::Forced) => "in maintenance",
        (false, Maintenance::Off) => "not alive",
        (false, Maintenance::On | Maintenance::Forced) => "not alive, in maintenance",
    }
}

fn sandbox(arguments: &SandboxArguments) -> Result<()> {
    let enforced = Confinement::of_nothing(arguments.user).enter()?;
    if arguments.json {
        return print_json(&enforced);
    }
    print_line(&enforced.to_string())
}

fn show(arguments: &ShowArguments) -> Result<()> {
    let daemon = arguments.daemon.daemon()?;
    let asked: DaemonView = daemon.get("/v1/host")?;
    let name = arguments.name.clone().unwrap_or_else(|| asked.host.clone());
    let hosts: Vec<HostView> = daemon.get("/v1/hosts")?;
    let host = hosts.iter().find(|host| host.name == name);
    let host = host.ok_or_else(|| anyhow::anyhow!("there is no host named {name}; see `twinvm host list`"))?;
    if arguments.daemon.json {
        return print_json(host);
    }
    for (what, value) in [
        ("name", host.name.clone()),
        ("state", format!("{}, lease last seen good {:.1} s ago", state(host), host.lease_age_ms as f64 / 1e3)),
        ("api", host.api.clone()),
        ("cpus", format!("{} reserved of {}", host.cpus_reserved, host.cpus)),
        (
            "memory",
            format!("{} reserved of {}", human_bytes(host.memory_reserved_bytes), human_bytes(host.memory_bytes)),
        ),
        ("engines", host.engines.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("domain", domain(host)),
        ("networks", host.networks.join(" ")),
        ("datastores", host.datastores.join(" ")),
        ("primaries", host.primaries.join(" ")),
        ("secondaries", host.secondaries.join(" ")),
    ] {
        print_line(format!("{:13}{value}", format!("{what}:")).trim_end())?;
    }
    if name == asked.host {
        print_line(&format!("{:13}{}", "sandbox:", asked.sandbox))?;
    }
    if host.maintenance != Maintenance::Off && host.alive {
        let view: MaintenanceView = daemon.get(&format!("/v1/hosts/{}/maintenance", path_segment(&name)))?;
        print_line("still there:")?;
        maintenance::lines(&view.vms).iter().try_for_each(|line| print_line(line))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("1h", 3_600), ("7d", 604_800)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "h", "1", "1x", "-1h", "1h ", "99999999999999999999d", "18446744073709551615d", "1\u{b5}"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
