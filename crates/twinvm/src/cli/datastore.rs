//! `twinvm datastore`: named storage for disks.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use api::datastores::{AddDatastore, DatastoreView};
use clap::{Args, Subcommand};
use serde_json::json;
use terminal::output::{human_bytes, print_json, print_line, print_table, table};

use super::daemon::{DaemonArguments, DaemonConnection, path_segment};

#[derive(Subcommand)]
pub enum DatastoreCommand {
    /// Make a folder a datastore, on which disks of VMs can be
    #[command(after_help = "\
The folder has the same path on each host that is to reach it, and is named in `vm_folders` of that host's host.toml. The host that is asked leaves a file there,
by which hosts tell the datastore from the empty folder that it is mounted at.
Examples:
  twinvm datastore add nfs --shared /srv/vms     one folder that hosts share: NFS (version 4), or a cluster file system
  twinvm datastore add fast --local /nvme/vms    a folder of this host
Disks are created on it where the spec of a VM says so: [[disk]] datastore = \"nfs\". High availability needs that: protection = \"ha\".")]
    Add(AddArguments),
    /// List datastores, and which hosts reach them
    List(DaemonArguments),
    /// Show a datastore: its folder, hosts with free space, VMs
    Show(NameArguments),
    /// Forget a datastore that no VM uses; what is in its folder stays
    Rm(NameArguments),
}

#[derive(Args)]
#[group(id = "place", required = true, multiple = false, args = ["shared", "local"])]
pub struct AddArguments {
    /// Name of the datastore
    name: String,
    /// The folder, which hosts share
    #[arg(long, value_name = "PATH")]
    shared: Option<PathBuf>,
    /// The folder, of one host
    #[arg(long, value_name = "PATH")]
    local: Option<PathBuf>,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Args)]
pub struct NameArguments {
    /// Name of the datastore
    name: String,
    #[command(flatten)]
    daemon: DaemonArguments,
}

pub fn run(command: DatastoreCommand) -> Result<ExitCode> {
    match command {
        DatastoreCommand::Add(arguments) => add(&arguments)?,
        DatastoreCommand::List(arguments) => list(&arguments)?,
        DatastoreCommand::Show(arguments) => show(&arguments)?,
        DatastoreCommand::Rm(arguments) => remove(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn add(arguments: &AddArguments) -> Result<()> {
    let (path, shared) = match (&arguments.shared, &arguments.local) {
        (Some(path), _) => (path, true),
        (None, Some(path)) => (path, false),
        (None, None) => return Err(anyhow!("name the folder with --shared or --local")),
    };
    let add = AddDatastore { name: arguments.name.clone(), path: path.clone(), shared };
    let view: DatastoreView = arguments.daemon.daemon()?.post("/v1/datastores", Some(&add))?;
    if arguments.daemon.json {
        return print_json(&view);
    }
    print_line(&format!(
        "datastore {} added: disks are created on it where a VM's spec says datastore = \"{}\"",
        view.name, view.name
    ))
}

fn all(daemon: &DaemonConnection) -> Result<Vec<DatastoreView>> {
    daemon.get("/v1/datastores")
}

fn list(arguments: &DaemonArguments) -> Result<()> {
    let views = all(&arguments.daemon()?)?;
    if arguments.json {
        return print_json(&views);
    }
    let mut rows = table(&["NAME", "KIND", "FOLDER", "REACHED BY", "FREE", "VMS"]);
    for view in &views {
        let hosts: Vec<&str> = view.hosts.iter().map(|host| host.name.as_str()).collect();
        let free = view.hosts.iter().map(|host| host.free_bytes).min().map_or("-".to_owned(), human_bytes);
        rows.add_row([
            view.name.clone(),
            kind(view).to_owned(),
            view.path.display().to_string(),
            if hosts.is_empty() { "none".to_owned() } else { hosts.join(" ") },
            free,
            view.vms.len().to_string(),
        ]);
    }
    print_table(&rows)
}

fn kind(view: &DatastoreView) -> &'static str {
    if view.shared { "shared" } else { "local" }
}

fn show(arguments: &NameArguments) -> Result<()> {
    let name = &arguments.name;
    let views = all(&arguments.daemon.daemon()?)?;
    let view = views.into_iter().find(|view| view.name == *name);
    let view = view.ok_or_else(|| anyhow!("there is no datastore {name}; see `twinvm datastore list`"))?;
    if arguments.daemon.json {
        return print_json(&view);
    }
    let vms = if view.vms.is_empty() { "-".to_owned() } else { view.vms.join(" ") };
    for (what, value) in [
        ("name", view.name.clone()),
        ("kind", kind(&view).to_owned()),
        ("folder", view.path.display().to_string()),
        ("vms", vms),
    ] {
        print_line(&format!("{:12}{value}", format!("{what}:")))?;
    }
    if view.hosts.is_empty() {
        return print_line("no host reaches it: is it mounted, and named in vm_folders of host.toml?");
    }
    view.hosts.iter().try_for_each(|host| {
        let (free, total) = (human_bytes(host.free_bytes), human_bytes(host.total_bytes));
        print_line(&format!("{:12}{}, {free} of {total} free", "host:", host.name))
    })
}

fn remove(arguments: &NameArguments) -> Result<()> {
    let name = &arguments.name;
    let daemon = arguments.daemon.daemon()?;
    let (): () = daemon.delete(&format!("/v1/datastores/{}", path_segment(name)), None::<&()>)?;
    if arguments.daemon.json {
        return print_json(&json!({ "removed": name }));
    }
    print_line(&format!("datastore {name} is forgotten; what is in its folder stays"))
}
