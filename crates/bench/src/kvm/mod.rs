//! `twinvm bench kvm`: the kvm engine beside QEMU on the same KVM, in turns, with the same guest and the same virtio devices.

mod agent;
mod disk;
mod pause;
mod report;
mod scene;
mod vmm;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use terminal::interrupt;
use terminal::output::{check_json, is_stdout, say, write_json};

use self::report::{Each, Report, Subject};
use self::scene::Scene;
use self::vmm::Vmm;
use self::work::{Part, Run, measure};
use super::qemu;
use super::report::host_cpu;

#[derive(Args)]
#[command(after_help = "\
Each run boots a Debian guest anew, waits until it is ready, and then measures it from outside: Redis one request at a time and 64 under way,
bytes through the network both ways, a shell loop, and fio on a disk of its own. QEMU runs as `-accel kvm -M microvm` with virtio-mmio
devices, as twinvm has them, and with user-mode networking, as well.

Ratios are speeds relative to QEMU's: more is better, 1 is as fast.")]
pub struct KvmArguments {
    /// Write the result to this file, as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each side is measured; medians count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How long each load runs, in s
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Measure only these parts, beside the boot, which every run begins with; separated by commas
    #[arg(long, value_name = "PARTS", value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// vCPUs of the guest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// What both sides' guests get on their kernel command line beside the usual
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Measure, in place of all that and without QEMU, how long a bare-metal guest that writes memory is paused for its checkpoints
    #[arg(long, conflicts_with_all = ["prepare", "runs", "only", "cpus", "append"])]
    pause: bool,
    /// Only build the guest's image, for a machine without a network
    #[arg(long, conflicts_with = "json")]
    prepare: bool,
}

pub fn run(arguments: &KvmArguments) -> Result<ExitCode> {
    interrupt::catch(|| {})?;
    check_json(arguments.json.as_deref())?;
    if arguments.pause {
        return pause::run(Duration::from_secs(arguments.seconds.into()), arguments.json.as_deref());
    }
    if arguments.prepare {
        scene::image()?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(qemu_version) = qemu::version()? else {
        bail!("qemu-system-x86_64 not found; install the Debian package qemu-system-x86");
    };
    let is_stdout_taken = is_stdout(arguments.json.as_deref());
    let scene = Scene::prepare(arguments.cpus, &arguments.append)?;
    let duration = Duration::from_secs(arguments.seconds.into());
    let parts = if arguments.only.is_empty() { Part::value_variants() } else { &arguments.only };
    let mut each = Each::default();
    for number in 1..=arguments.runs {
        for (vmm, runs) in [(Vmm::Twinvm, &mut each.ours), (Vmm::Qemu, &mut each.peer)] {
            say(format_args!("run {number} of {}: {vmm}", arguments.runs));
            runs.push(one(&scene, vmm, parts, duration).with_context(|| format!("on {vmm}"))?);
        }
    }
    let subject = Subject {
        twinvm_version: env!("CARGO_PKG_VERSION"),
        qemu_version,
        guest_kernel: scene.release.clone(),
        append: arguments.append.clone(),
        guest_cpus: arguments.cpus,
        host_cpu: host_cpu(),
        host_cpus: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let report = Report::new(arguments.runs, arguments.seconds, each, subject);
    if !is_stdout_taken {
        report.print()?;
    }
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn one(scene: &Scene, vmm: Vmm, parts: &[Part], duration: Duration) -> Result<Run> {
    let guest = vmm.boot(scene)?;
    measure(&guest, parts, duration)
        .with_context(|| format!("the end of the guest's console:\n{}", guest.console_tail()))
}
