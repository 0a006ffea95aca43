//! `twinvm replica`: the process of one VM replica, started by a host's daemon.
#![allow(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use host::replica::config::{ReplicaConfig, log};
use host::replica::end::ReplicaEnd;
use host::replica::process::Process;
use terminal::error_text::error_text;

use super::logging;

#[derive(Args)]
pub struct ReplicaArguments {
    /// The replica's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn run(arguments: &ReplicaArguments) -> Result<ExitCode> {
    let config = ReplicaConfig::load(&arguments.config)?;
    let folder = config.folder.clone();
    let log = logging::start_in(&log(&folder));
    ReplicaEnd::clear(&folder);
    let end = survive_full_quota().and_then(|()| Arc::new(Process::new(config, log.clone())?).run());
    let end = end.unwrap_or_else(|error| ReplicaEnd::Failed { message: error_text(&error) });
    tracing::info!("{end}");
    log.finish();
    end.leave(&folder)?;
    let failed = matches!(end, ReplicaEnd::Failed { .. });
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A file that reaches a limit of size is then an error of the write, like a full disk, and not the end of the process.
fn survive_full_quota() -> Result<()> {
    // SAFETY: no handler is installed, so nothing can run in the signal's context.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    if before == libc::SIG_ERR {
        return Err(io::Error::last_os_error()).context("cannot ignore SIGXFSZ");
    }
    Ok(())
}
