//! Keeping a secondary's network ends: nobody is connected to them until it takes over.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// How often an end is asked to stay: many times in what it waits.
const KEEP_INTERVAL: Duration = Duration::from_secs(5);
/// An end that has not answered so often is gone.
const SILENCES_MAX: u32 = 3;

/// Keeps ends until this is dropped.
pub struct EndKeeper {
    /// Dropped with this, which ends the thread.
    _stop: Sender<()>,
}

impl EndKeeper {
    /// Keeps the ends of the first `count` cards by `keep`. Calls `lost` with the reason, once, when one of them is gone: without it, this replica
    /// could not take over.
    pub fn start(
        count: usize,
        keep: impl Fn(usize) -> Result<()> + Send + 'static,
        lost: impl FnOnce(&str) + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = channel();
        let work = move || {
            let mut silences = 0;
            loop {
                let failure = (0..count).find_map(|number| keep(number).err());
                silences = if failure.is_some() { silences + 1 } else { 0 };
                if let Some(error) = failure.filter(|_| silences >= SILENCES_MAX) {
                    return lost(&format!("{error:#}"));
                }
                if stopped.recv_timeout(KEEP_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        thread::Builder::new().name("ends".to_owned()).spawn(work).context("cannot start a thread")?;
        Ok(Self { _stop: stop })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn an_end_that_is_not_there_is_reported() {
        let (told, reason) = mpsc::channel();
        let keep = |number: usize| if number == 0 { Ok(()) } else { anyhow::bail!("no end {number}") };
        let keeper = EndKeeper::start(2, keep, move |why| told.send(why.to_owned()).unwrap());
        let reason = reason.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(reason.contains("no end 1"), "{reason}");
        drop(keeper);
    }
}
