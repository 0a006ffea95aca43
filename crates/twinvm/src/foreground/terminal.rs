//! The user's terminal as the guest's console.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use machine::devices::serial::ConsoleSink;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Ctrl-], which leaves the console, as in telnet and virsh.
const ESCAPE: u8 = 0x1d;

/// The terminal in raw mode, until dropped.
pub struct RawTerminal {
    saved: Termios,
}

impl RawTerminal {
    /// Puts standard input into raw mode if it is a terminal.
    pub fn enter() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(stdin.as_fd()) {
            return Ok(None);
        }
        let saved = tcgetattr(stdin.as_fd()).context("cannot read the terminal's settings")?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).context("cannot put the terminal into raw mode")?;
        Ok(Some(Self { saved }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done if the terminal is gone.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.saved);
    }
}

/// Writes console output to standard output as it is.
pub struct TerminalSink;

impl ConsoleSink for TerminalSink {
    fn write(&mut self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        // A reader that has gone away must not stop the VM.
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
}

/// Feeds standard input to the guest's console from a thread of its own; calls `leave` on each Ctrl-].
pub fn feed_console(console: impl Fn(&[u8]) + Send + 'static, leave: impl Fn() + Send + 'static) {
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        // At the end of input the guest's console simply stays silent.
        while let Ok(len @ 1..) = io::stdin().read(&mut buffer) {
            for part in buffer.get(..len).unwrap_or_default().split_inclusive(|&byte| byte == ESCAPE) {
                let (typed, left) = match part.split_last() {
                    Some((&ESCAPE, typed)) => (typed, true),
                    _ => (part, false),
                };
                console(typed);
                if left {
                    leave();
                }
            }
        }
    });
}
