//! The command line.

mod admission;
mod backup;
mod broker;
mod cluster;
mod console;
mod daemon;
mod datastore;
mod disk;
mod disk_job;
mod engine;
mod events;
mod ft;
mod host;
mod image;
mod keys;
mod log_limit;
mod logging;
mod maintenance;
mod net_end;
mod network;
mod operator;
mod replay;
mod replica;
mod run;
mod run_broker;
mod session;
mod shell;
mod top;
mod vm;
mod wait;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Keeps a virtual machine running when the machine under it dies.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  twinvm image build redis --package redis-server   Build a Debian guest with Redis
  twinvm vm create shop.toml --start                Create the VM that shop.toml describes, and start it
  twinvm ft on shop                                 Protect it: a secondary on another host takes over at once
  twinvm ft status shop                             Whether it is protected; if not, why and since when
  twinvm run shop.toml                              Or try it here, without hosts (Ctrl-] presses the power button)

A cluster is made by `twinvm cluster init`, and further hosts join it by `twinvm host join`; their --help says how.";

#[derive(Subcommand)]
enum Command {
    /// Make hosts of a cluster, and run their daemons
    #[command(subcommand)]
    Host(host::HostCommand),
    /// Create, start, stop, list, save and restore VMs
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Protect VMs against the loss of their host
    #[command(subcommand)]
    Ft(ft::FtCommand),
    /// Make a cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Show live figures of replication
    Top(top::TopArguments),
    /// Keep recovery points of VMs apart from their hosts, and bring VMs back from them
    #[command(subcommand, after_help = backup::HELP)]
    Backup(backup::BackupCommand),
    /// Show what has happened on the hosts of the cluster
    #[command(after_help = events::HELP)]
    Events(events::EventsArguments),
    /// Make the keys of those who may administer a cluster
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    /// Make disk images, make them bigger, and show what they are
    #[command(subcommand, after_help = disk::HELP)]
    Disk(disk::DiskCommand),
    /// Name storage for disks, and see which hosts reach it
    #[command(subcommand)]
    Datastore(datastore::DatastoreCommand),
    /// Look for the bridges that VMs are connected to, or make them
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Build and manage guest images made from Debian's packages
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Boot a VM in the foreground, its serial console on the terminal
    Run(run::RunArguments),
    /// Execute a recorded VM again, to its end or to any instruction
    Replay(replay::ReplayArguments),
    /// Show what executes vCPUs on this host
    #[command(subcommand)]
    Engine(engine::EngineCommand),
    /// Protect a Redis in a Debian guest, and kill its host again and again
    Demo(bench::demo::DemoArguments),
    /// Measure twinvm beside its peers
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Print what makes a shell complete twinvm's commands
    #[command(after_help = shell::COMPLETIONS_HELP)]
    Completions(shell::CompletionsArguments),
    /// Write the manual pages of all commands, for packages
    #[command(hide = true)]
    Man(shell::ManArguments),
    #[command(hide = true)]
    NetEnd(net_end::NetEndArguments),
    #[command(hide = true)]
    Broker(broker::BrokerArguments),
    #[command(hide = true)]
    RunBroker(run_broker::RunBrokerArguments),
    #[command(hide = true)]
    Replica(replica::ReplicaArguments),
    #[command(hide = true)]
    DiskJob,
}

/// Carries out a command; the exit code is the process's.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    session::leave_for(&arguments.command);
    match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Vm(command) => vm::run(command),
        Command::Image(command) => image::run(command),
        Command::Disk(command) => disk::run(command),
        Command::Datastore(command) => datastore::run(command),
        Command::Network(command) => network::run(command),
        Command::Engine(command) => engine::run(command),
        Command::Bench(command) => bench::run(command),
        Command::Demo(arguments) => bench::demo::run(&arguments),
        Command::Cluster(command) => cluster::run(command),
        Command::Host(command) => host::run(command),
        Command::Operator(command) => operator::run(command),
        Command::Ft(command) => ft::run(command),
        Command::Backup(command) => backup::run(command).map(|()| ExitCode::SUCCESS),
        Command::Events(arguments) => events::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Top(arguments) => top::run(&arguments),
        Command::Completions(arguments) => shell::completions(&arguments),
        Command::Man(arguments) => shell::man(&arguments),
        Command::NetEnd(arguments) => net_end::run(arguments),
        Command::Broker(arguments) => broker::run(&arguments),
        Command::RunBroker(arguments) => run_broker::run(&arguments),
        Command::Replica(arguments) => replica::run(&arguments),
        Command::DiskJob => disk_job::run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    /// What people come for stands first.
    #[test]
    fn help_begins_with_hosts_vms_and_their_protection() {
        let command = Arguments::command();
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        assert_eq!(shown.map(|command| command.get_name()).take(3).collect::<Vec<_>>(), ["host", "vm", "ft"]);
    }
}
