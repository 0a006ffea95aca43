//! `twinvm demo`: a Redis in a Debian guest, a client outside, and hosts that die.

mod failover;
mod hosts;
mod pins;
mod process;
mod protected;
mod report;
mod screen;
mod single;
mod stage;
mod view;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use spec::{EngineChoice, EngineKind, FtMode};
use storage::image::ImageSpec;
use terminal::choices::EngineName;
use terminal::interrupt;

pub use failover::{Failover, Loss, survive, survive_a_kill};
pub use hosts::{Hosts, Setup, VM, pause};
pub use pins::Pins;
pub use report::Blackout;
pub use screen::Screen;
pub use stage::Stage;
pub use view::View;

use crate::image;

/// Name of the demo's image.
pub const IMAGE: &str = "demo-redis";

/// Options of the demo.
#[derive(Args)]
#[command(after_help = "\
Three hosts run on this machine, each with processes of its own. The exit status is 1 if a kill was not survived, an acknowledged
increment was lost, or the client's connection broke.")]
pub struct DemoArguments {
    /// How the VM is protected
    #[arg(long, value_enum, default_value = "mirror")]
    mode: Mode,
    /// How often the primary's host is killed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// What executes the vCPUs
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineName,
    /// Write the result to this file, as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Not at all: one VM in this process, and nobody is killed
    None,
    /// By checkpoints, which a second host holds
    Mirror,
    /// By a second host that executes the same instructions; needs the soft engine
    Lockstep,
}

/// Shows it, and says with the exit status whether all kills were survived.
pub fn run(arguments: &DemoArguments) -> Result<ExitCode> {
    interrupt::catch(|| {})?;
    match arguments.mode {
        Mode::None => single::run(arguments),
        Mode::Mirror => protected::run(arguments, FtMode::Mirror),
        Mode::Lockstep => protected::run(arguments, FtMode::Lockstep),
    }
}

/// Builds the demo's image if need be, and shows the progress.
pub fn build_image() -> Result<()> {
    let spec = ImageSpec { packages: vec!["redis-server".to_owned()], ..ImageSpec::new(IMAGE) };
    image::ready(&spec)?;
    Ok(())
}

/// The engine that executes a VM which is to be replicated in `mode`.
pub fn engine_for(mode: FtMode, choice: EngineName) -> Result<EngineKind> {
    match (mode, EngineChoice::from(choice)) {
        (FtMode::Lockstep, EngineChoice::Kvm) => {
            bail!(
                "lockstep needs the soft engine: leave --engine kvm out, or protect by checkpoints with --mode mirror"
            )
        }
        // Whatever is faster here.
        (FtMode::Lockstep, EngineChoice::Auto) => Ok(EngineKind::Soft),
        (_, choice) => Ok(machine::probe::choose(choice).0),
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}
