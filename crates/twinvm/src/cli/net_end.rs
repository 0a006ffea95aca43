//! `twinvm net-end`: the network end's process, started by `twinvm` itself.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use host::sandbox::{Confinement, Kind};
use network::end::{EndConfig, RunError};
use spec::NetworkSpec;
use terminal::error_text::error_text;

#[derive(Args)]
pub struct NetEndArguments {
    /// The end's configuration, as JSON
    #[arg(long)]
    config: String,
    /// The socket that the VM process connects to
    #[arg(long)]
    socket: PathBuf,
    /// The user as whom the process runs once it has opened what it needs
    #[arg(long)]
    user: Option<u32>,
}

pub fn run(arguments: NetEndArguments) -> Result<ExitCode> {
    let config: EndConfig = serde_json::from_str(&arguments.config).context("--config")?;
    let user = arguments.user;
    let kind = match config.network {
        NetworkSpec::User(_) => Kind::UserEnd,
        NetworkSpec::Bridge(_) => Kind::BridgeEnd,
    };
    let ended = network::end::run_confined(&config, &arguments.socket, || {
        let confinement = confinement(kind, user);
        let enforced = confinement.enter().map_err(|error| io::Error::other(error_text(&error)))?;
        if !enforced.is_full() {
            // An end whose log cannot be written is as good as any.
            let _ = writeln!(io::stderr(), "twinvm: the sandbox is incomplete: {enforced}");
        }
        Ok(())
    });
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Whoever has started this says so.
        Err(RunError::NotStarted(_)) => Ok(ExitCode::FAILURE),
        Err(RunError::Ended(error)) => Err(error.into()),
    }
}

/// An end has its sockets and its TAP device open. In user mode it asks the machine's name servers, whose addresses may change.
fn confinement(kind: Kind, user: Option<u32>) -> Confinement {
    let mut readable = vec![PathBuf::from("/dev/null")];
    if kind == Kind::UserEnd {
        let file = PathBuf::from("/etc/resolv.conf");
        // What manages it may replace it in a folder of its own.
        let managed = fs::canonicalize(&file).ok().and_then(|real| real.parent().map(PathBuf::from));
        readable.extend(managed.filter(|folder| folder.starts_with("/run")));
        readable.push(file);
    }
    Confinement { kind, user, readable, writable: Vec::new() }
}
