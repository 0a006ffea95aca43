//! Single keys, for commands that show something until one is pressed.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// The keyboard, by single keys that are not shown, until dropped. Where standard input is no terminal, no key is ever pressed.
pub struct Keys {
    saved: Option<Termios>,
}

impl Keys {
    /// From now on.
    pub fn watch() -> Result<Self> {
        let stdin = io::stdin();
        if !isatty(stdin.as_fd()) {
            return Ok(Self { saved: None });
        }
        let saved = tcgetattr(stdin.as_fd()).context("cannot read the terminal's settings")?;
        let mut single = saved.clone();
        single.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &single).context("cannot change the terminal's settings")?;
        Ok(Self { saved: Some(saved) })
    }

    /// Waits for `time`, or until `key` is pressed; whether it was.
    pub fn wait_for(&self, key: u8, time: Duration) -> bool {
        let end = Instant::now() + time;
        while self.saved.is_some() {
            let left = end.saturating_duration_since(Instant::now());
            let stdin = io::stdin();
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.as_nanos().min(999_999_999) as _ };
            let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
            if !matches!(poll(&mut ready, Some(&timeout)), Ok(1..)) {
                // Nothing was typed, or a signal came.
                return false;
            }
            let mut typed = [0; 64];
            match stdin.lock().read(&mut typed) {
                Ok(length @ 1..) if typed.get(..length).unwrap_or_default().contains(&key) => return true,
                Ok(1..) => {}
                _ => break,
            }
        }
        thread::sleep(end.saturating_duration_since(Instant::now()));
        false
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // Nothing can be done if the terminal is gone.
            let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, saved);
        }
    }
}
