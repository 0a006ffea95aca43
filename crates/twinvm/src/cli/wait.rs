//! Commands that wait until something has come about.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use terminal::interrupt;

/// How often it is looked whether it has.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What a look finds.
pub enum Look<T> {
    /// It has come about.
    Done(T),
    /// Not yet; how it stands, in words.
    Waiting(String),
}

/// How a command that waits gives up.
pub struct Patience<'a> {
    /// After this time.
    pub timeout: Duration,
    /// What it says then, from how it stands.
    pub late: &'a dyn Fn(&str) -> String,
    /// What it says after Ctrl-C.
    pub interrupted: &'a dyn Fn(&str) -> String,
}

impl Patience<'_> {
    /// Looks until it has come about, and shows how it stands on `bar`, which is off the terminal when this returns, however it ends.
    pub fn wait<T>(&self, bar: &ProgressBar, mut look: impl FnMut(&ProgressBar) -> Result<Look<T>>) -> Result<T> {
        interrupt::watch()?;
        let done = self.look_until_done(bar, &mut look);
        bar.finish_and_clear();
        done
    }

    fn look_until_done<T>(
        &self,
        bar: &ProgressBar,
        look: &mut dyn FnMut(&ProgressBar) -> Result<Look<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let state = match look(bar)? {
                Look::Done(done) => return Ok(done),
                Look::Waiting(state) => state,
            };
            if interrupt::is_requested() {
                bail!((self.interrupted)(&state));
            }
            if Instant::now() > deadline {
                bail!((self.late)(&state));
            }
            bar.set_message(state);
            bar.tick();
            thread::sleep(POLL_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(timeout: Duration) -> Patience<'static> {
        Patience { timeout, late: &|state| format!("late: {state}"), interrupted: &|state| format!("left: {state}") }
    }

    #[test]
    fn it_looks_until_it_is_done() {
        let mut looks = 0;
        let bar = ProgressBar::hidden();
        let found = patience(Duration::from_secs(60)).wait(&bar, |_| {
            looks += 1;
            Ok(if looks == 3 { Look::Done("there") } else { Look::Waiting("not yet".to_owned()) })
        });
        assert_eq!((found.unwrap(), looks), ("there", 3));
    }

    #[test]
    fn the_bar_is_gone_when_it_is_late_and_when_a_look_fails() {
        let bar = ProgressBar::hidden();
        let late = patience(Duration::ZERO).wait(&bar, |_| Ok(Look::<()>::Waiting("still copying".to_owned())));
        assert_eq!(late.unwrap_err().to_string(), "late: still copying");
        assert!(bar.is_finished());
        let bar = ProgressBar::hidden();
        let failed = patience(Duration::from_secs(60)).wait(&bar, |_| -> Result<Look<()>> { bail!("no daemon") });
        assert_eq!(failed.unwrap_err().to_string(), "no daemon");
        assert!(bar.is_finished());
    }
}
