//! What daemons and replicas write on standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Writes what is traced to standard error from now on: everything from level `info`, or as `RUST_LOG` says.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A second start finds the first one in place, which is as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_writer(io::stderr)
        .try_init();
}
