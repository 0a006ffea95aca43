//! `twinvm bench`, how fast twinvm is beside its peers; `twinvm demo`; and the load clients that both use.

mod cpu;
mod cpu_time;
pub mod demo;
mod ft;
mod ha;
mod image;
mod kvm;
pub mod load;
mod machines;
mod qemu;
mod report;
mod scale;
mod soft;
mod stopwatch;
mod work;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Measure the software processor with work in a Debian guest, in turns with QEMU where it is installed
    Cpu(cpu::CpuArguments),
    /// Measure what protection costs, beside the same VM without it
    Ft(ft::FtArguments),
    /// Measure the kvm engine beside QEMU on the same KVM, in turns
    Kvm(kvm::KvmArguments),
    /// Measure how long it takes to restart a VM with high availability after the loss of its host
    Ha(ha::HaArguments),
    /// Measure how long a cluster of 1,000 hosts and 20,000 VMs plans after a loss, and what a daemon with 100 VMs costs
    Cluster(scale::ClusterArguments),
    /// Measure how long a client waits when a machine of three is lost, with etcd on the machines
    Machines(machines::MachinesArguments),
}

/// Measures, and prints or writes the figures.
pub fn run(command: BenchCommand) -> Result<ExitCode> {
    match command {
        BenchCommand::Cpu(arguments) => cpu::run(&arguments),
        BenchCommand::Ft(arguments) => ft::run(&arguments),
        BenchCommand::Kvm(arguments) => kvm::run(&arguments),
        BenchCommand::Ha(arguments) => ha::run(&arguments),
        BenchCommand::Cluster(arguments) => scale::run(&arguments),
        BenchCommand::Machines(arguments) => machines::run(&arguments),
    }
}
