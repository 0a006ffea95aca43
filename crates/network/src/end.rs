//! The network end: the process that owns what must outlive the VM process.

mod control;
mod process;
mod server;
mod system;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spec::{NetworkError, NetworkSpec};
use thiserror::Error;

pub use control::{ControlError, EndStatus, dial, forward, keep, keep_over, status, stop};
pub use process::{EndProcess, SpawnError};
pub use server::End;

pub use crate::uplink::UplinkError;

/// What a network end is told at its start; passed as JSON on its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndConfig {
    /// The network it connects the guest to.
    pub network: NetworkSpec,
    /// When it ends by itself.
    #[serde(default)]
    pub lifetime: Lifetime,
}

/// When a network end ends, other than by [`stop`] or SIGTERM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// Not at all: for VMs whose processes may be replaced.
    #[default]
    UntilStopped,
    /// With the process that spawned it, however that ends: for VMs in the foreground.
    WithParent,
    /// When no VM process has been connected for so long, nor has anybody asked to [`keep`] it.
    WithoutClient {
        /// Seconds since the start, since the last VM process was connected, or since the end was to be kept.
        limit_s: u32,
    },
}

/// Why a network end could not start, or ended before its time.
#[derive(Debug, Error)]
pub enum EndError {
    /// The network's description is wrong.
    #[error(transparent)]
    Spec(#[from] NetworkError),
    /// The network cannot be set up.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// The socket for VM processes cannot be made.
    #[error("cannot listen at {path}: {source}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why the socket cannot be made.
        source: io::Error,
    },
    /// The network was taken away, such as a TAP device that was deleted.
    #[error("the network is gone: {0}")]
    UplinkLost(io::Error),
    /// The operating system refused something that it never should.
    #[error("{action}: {source}")]
    System {
        /// The call that failed.
        action: &'static str,
        /// How the call failed.
        source: io::Error,
    },
}

/// Why a network end's process has ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// It did not start. Whoever has started it was told why.
    #[error(transparent)]
    NotStarted(EndError),
    /// It ended before its time.
    #[error(transparent)]
    Ended(EndError),
}

/// The main function of a network end's process: sets up the network, says `ready` on standard output (or `error: ` and
/// the reason), and serves VM processes that connect to `socket` until its [`Lifetime`] or a signal ends it. Blocks
/// SIGTERM and SIGINT in the calling thread, so call it before there are others.
///
/// # Errors
/// [`RunError`].
pub fn run(config: &EndConfig, socket: &Path) -> Result<(), RunError> {
    run_confined(config, socket, || Ok(()))
}

/// The same with `confine` called when everything is open, before anything is read: the process may be unable to open any more then. A socket
/// that it cannot remove in the end is removed by [`stop`], and by the next end.
///
/// # Errors
/// [`RunError`].
pub fn run_confined(
    config: &EndConfig,
    socket: &Path,
    confine: impl FnOnce() -> io::Result<()>,
) -> Result<(), RunError> {
    let started = system::termination()
        .map_err(|source| EndError::System { action: "blocking signals", source })
        .and_then(|termination| Ok((termination, End::new(config, socket)?)))
        .and_then(|started| {
            system::raise_descriptor_limit();
            confine().map_err(|source| EndError::System { action: "confining the process", source })?;
            Ok(started)
        });
    // Whoever spawned this may be gone or not care; then nobody reads it.
    let report = match &started {
        Ok(_) => "ready".to_owned(),
        Err(error) => format!("error: {error}"),
    };
    let _ = writeln!(io::stdout(), "{report}");
    let (termination, end) = started.map_err(RunError::NotStarted)?;
    let stdin = io::stdin();
    let parent = (config.lifetime == Lifetime::WithParent).then(|| stdin.as_fd());
    end.run(Some(termination.as_fd()), parent).map_err(RunError::Ended)
}
