//! `twinvm network`: bridges of this machine, to which cards of VMs are connected.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use network::{BridgeState, find_bridge};
use serde_json::json;
use terminal::output::{print_json, print_line};

#[derive(Subcommand)]
pub enum NetworkCommand {
    /// Look for a bridge on this machine, or make it
    #[command(after_help = "\
Examples:
  twinvm network add br0                        whether cards with mode = \"bridge\" and bridge = \"br0\" can be connected here
  twinvm network add br0 --create               make it if it is not there, with nothing but VMs of this machine on it
  twinvm network add br0 --create --port eth1   and connect it to the network behind eth1

Making a bridge needs root or CAP_NET_ADMIN. It lasts until the machine boots again: to keep it, let ifupdown, systemd-networkd or NetworkManager make it. An
interface that becomes a port loses the use of its own addresses: do not name the one by which you reach the machine.")]
    Add(AddArguments),
}

#[derive(Args)]
pub struct AddArguments {
    /// Name of the bridge
    name: String,
    /// Make it if it is not there
    #[arg(long)]
    create: bool,
    /// A network interface of this machine that becomes a port of it; may be repeated
    #[arg(long = "port", value_name = "INTERFACE", requires = "create")]
    ports: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(command: NetworkCommand) -> Result<ExitCode> {
    let NetworkCommand::Add(AddArguments { name, create, ports, json }) = command;
    let created = find_bridge(&name, create, &ports)? == BridgeState::Created;
    if json {
        print_json(&json!({ "bridge": name, "created": created, "ports": ports }))?;
    } else {
        let done = if created { "made, until the machine boots again" } else { "there" };
        print_line(&format!("bridge {name} is {done}; cards use it with mode = \"bridge\" and bridge = \"{name}\""))?;
    }
    Ok(ExitCode::SUCCESS)
}
