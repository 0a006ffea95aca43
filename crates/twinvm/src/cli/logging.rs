//! What daemons and replicas write on standard error.

use std::io::{self, IsTerminal};
use std::path::Path;

use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::prelude::*;

use super::log_limit::Limited;
use host::foreground::output::Output;
use host::replica::process_log::ProcessLog;

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

/// The same for a replica, whose standard error is this file: when it is full, a new one is begun. Nobody waits for it from when the result is told so.
pub fn start_in(file: &Path) -> ProcessLog {
    let log = ProcessLog::new(file);
    start_with(log.clone());
    log
}

fn start_with(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    // A second start finds the first one in place, which is as good.
    let _ = subscriber(writer).try_init();
}

fn subscriber(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) -> impl Subscriber + Send + Sync {
    let wanted = std::env::var("RUST_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    // A line that cannot be written is lost: to say so on standard error, as is the library's own way, would end the thread if that cannot be
    // written either.
    let lines = fmt::layer()
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_writer(Limited::new(writer));
    tracing_subscriber::registry().with(lines).with(filter)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A limit that the log of a process does not use protects nobody's disk.
    #[test]
    fn the_log_of_a_process_leaves_out_what_a_guest_says_without_end() {
        let sink = Sink::default();
        let log = sink.clone();
        tracing::subscriber::with_default(subscriber(move || log.clone()), || {
            (0..10_000).for_each(|_| tracing::warn!("a queue that cannot be"));
            tracing::warn!("the secondary is lost");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert!((1..40).contains(&text.matches("a queue").count()), "{} lines", text.lines().count());
        assert!(text.contains("the secondary is lost"));
    }
}
