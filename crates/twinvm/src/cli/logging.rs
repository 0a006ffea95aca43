//! What daemons and replicas write on standard error.

use std::io::{self, IsTerminal};
use std::path::Path;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::log_file::LogFile;
use super::log_limit::Limited;

/// Writes what is traced to standard error from now on: everything from level `info`, or as `RUST_LOG` says. What says the same again and again
/// is left out in part ([`Limited`]).
pub fn start() {
    start_with(io::stderr);
}

/// The same for a process whose standard error is this file: when it is full, a new one is begun ([`LogFile`]).
pub fn start_in(file: &Path) {
    start_with(LogFile::new(file));
}

fn start_with(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A second start finds the first one in place, which is as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_writer(Limited::new(writer))
        .try_init();
}
