//! Ctrl-C and SIGTERM as a request to stop.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result};

static REQUESTS: AtomicU32 = AtomicU32::new(0);
/// So many requests, and the process ends without tidying up: whatever should have stopped by then hangs.
const REQUESTS_MAX: u32 = 3;

/// From now on Ctrl-C, SIGTERM and SIGHUP are counted and call `also` from a thread of their own, for a first and a second
/// time; a third one ends the process at once.
pub fn catch(also: impl Fn() + Send + 'static) -> Result<()> {
    ctrlc::set_handler(move || {
        if REQUESTS.fetch_add(1, Ordering::AcqRel) + 1 >= REQUESTS_MAX {
            std::process::exit(130);
        }
        also();
    })
    .context("cannot catch signals")
}

/// The same for whoever only looks whether one was caught, as often as they like.
pub fn watch() -> Result<()> {
    static IS_WATCHED: AtomicBool = AtomicBool::new(false);
    if IS_WATCHED.swap(true, Ordering::AcqRel) { Ok(()) } else { catch(|| {}) }
}

/// Whether one was caught.
pub fn is_requested() -> bool {
    REQUESTS.load(Ordering::Acquire) > 0
}
