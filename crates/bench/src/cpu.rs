//! `twinvm bench cpu`: the same guest work on twinvm's software processor and on QEMU, in turns.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use terminal::interrupt;
use terminal::output::{check_json, is_stdout, say, write_json};

use super::report::{Each, Report, Subject, host_cpu};
use super::work::Work;
use super::{qemu, soft};

#[derive(Args)]
pub struct CpuArguments {
    /// Write the result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each side does the work; medians count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Whether QEMU does the work too
    #[arg(long, value_enum, default_value = "auto")]
    peer: Peer,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// If it is installed
    Auto,
    /// No
    None,
    /// QEMU alone
    Only,
}

pub fn run(arguments: &CpuArguments) -> Result<ExitCode> {
    interrupt::catch(|| {})?;
    check_json(arguments.json.as_deref())?;
    let qemu_version = match arguments.peer {
        Peer::None => None,
        Peer::Auto | Peer::Only => qemu::version()?,
    };
    if arguments.peer == Peer::Only && qemu_version.is_none() {
        bail!("qemu-system-x86_64 not found; install the Debian package qemu-system-x86");
    }
    let work = Work::prepare()?;
    let mut each = Each { ours: Vec::new(), peer: Vec::new() };
    for number in 1..=arguments.runs {
        if arguments.peer != Peer::Only {
            say(format_args!("run {number} of {}: twinvm", arguments.runs));
            each.ours.push(soft::run(&work).context("on twinvm")?);
        }
        if qemu_version.is_some() {
            say(format_args!("run {number} of {}: QEMU", arguments.runs));
            each.peer.push(qemu::run(&work).context("on QEMU")?);
        }
    }
    let subject = Subject {
        twinvm_version: env!("CARGO_PKG_VERSION"),
        qemu_version,
        guest_kernel: work.release,
        host_cpu: host_cpu(),
        host_cpus: thread::available_parallelism().map_or(1, usize::from),
    };
    let report = Report::new(arguments.runs, each, subject);
    if !is_stdout(arguments.json.as_deref()) {
        report.print()?;
    }
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}
