//! What daemons and replicas write on standard error.

use std::io::{self, IsTerminal};
use std::path::Path;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::log_limit::Limited;
use host::foreground::output::Output;
use host::log_file::LogFile;

/// Writes what is traced to standard error from now on: everything from level `info`, or as `RUST_LOG` says. What says the same again and again
/// is left out in part ([`Limited`]). Nobody waits for who reads it; the log is complete when the result is dropped.
///
/// # Errors
/// When no thread can be started.
pub fn start() -> io::Result<Output> {
    let output = Output::start(io::stderr(), |bytes| format!("({bytes} bytes of log were left out here)\n"))?;
    start_with(output.sink());
    Ok(output)
}

/// The same for a process whose standard error is this file: when it is full, a new one is begun ([`LogFile`]).
pub fn start_in(file: &Path) {
    start_with(LogFile::new(file));
}

fn start_with(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A second start finds the first one in place, which is as good. A line that cannot be written is lost: to say so on standard error, as is
    // the library's own way, would end the thread if that cannot be written either.
    let _ = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_writer(Limited::new(writer))
        .try_init();
}
