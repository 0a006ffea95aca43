//! Ctrl-C and SIGTERM as a request to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C, SIGTERM and SIGHUP set a flag, and call `also` from a thread of their own; a second one ends the
/// process at once.
pub fn catch(also: impl Fn() + Send + 'static) -> Result<()> {
    ctrlc::set_handler(move || {
        if REQUESTED.swap(true, Ordering::AcqRel) {
            std::process::exit(130);
        }
        also();
    })
    .context("cannot catch signals")
}

/// Whether one was caught.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::Acquire)
}
