//! The user's terminal as the guest's console.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use machine::devices::serial::ConsoleSink;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Ctrl-], which leaves the console, as in telnet and virsh.
const ESCAPE: u8 = 0x1d;
/// How long input from a terminal waits for a guest that does not take it.
const TYPED_PATIENCE: Duration = Duration::from_secs(1);
/// How soon a console that had no room is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

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

/// Writes console output to standard output as it is, and waits for whoever reads it: for a guest that does not mind.
pub struct TerminalSink;

impl ConsoleSink for TerminalSink {
    fn write(&mut self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        // A reader that has gone away must not stop the VM.
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
}

/// What a terminal shows in place of output that found no room.
pub fn left_out(bytes: u64) -> String {
    format!("\r\ntwinvm: {bytes} bytes of output were left out here, as nobody read them in time\r\n")
}

/// Feeds standard input to the guest's console from a thread of its own; calls `leave` on each Ctrl-], and `end` at the end of input. `console` takes what it
/// has room for and says how much that was: the rest waits, and so does whoever writes to standard input. A user who types is not kept from leaving
/// by a guest that does not read: what it does not take within [`TYPED_PATIENCE`] is lost there.
pub fn feed_console(
    console: impl Fn(&[u8]) -> usize + Send + 'static,
    leave: impl Fn() + Send + 'static,
    end: impl FnOnce() + Send + 'static,
) {
    std::thread::spawn(move || {
        let patience = isatty(io::stdin().as_fd()).then_some(TYPED_PATIENCE);
        let mut buffer = [0; 1024];
        while let Ok(len @ 1..) = io::stdin().read(&mut buffer) {
            for part in buffer.get(..len).unwrap_or_default().split_inclusive(|&byte| byte == ESCAPE) {
                let (typed, left) = match part.split_last() {
                    Some((&ESCAPE, typed)) => (typed, true),
                    _ => (part, false),
                };
                let deadline = patience.map(|patience| Instant::now() + patience);
                type_all(typed, &console, || deadline.is_none_or(|deadline| Instant::now() < deadline));
                if left {
                    leave();
                }
            }
        }
        end();
    });
}

/// Hands bytes over to a console that takes what it has room for, again and again until it has taken all or `goes_on` says no.
pub fn type_all(mut typed: &[u8], console: impl Fn(&[u8]) -> usize, goes_on: impl Fn() -> bool) {
    loop {
        let taken = console(typed);
        typed = typed.get(taken..).unwrap_or_default();
        if typed.is_empty() || !goes_on() {
            return;
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn nothing_typed_is_lost_at_a_console_with_little_room() {
        let typed: Vec<u8> = (0..1000u32).map(|number| number as u8).collect();
        let taken = RefCell::new(Vec::new());
        let turn = Cell::new(0);
        let console = |bytes: &[u8]| {
            turn.set(turn.get() + 1);
            // Every other time it has no room at all.
            let room = if turn.get() % 2 == 0 { 0 } else { 300 };
            let part = bytes.get(..room).unwrap_or(bytes);
            taken.borrow_mut().extend_from_slice(part);
            part.len()
        };
        type_all(&typed, console, || true);
        assert_eq!(*taken.borrow(), typed);
        // One that takes nothing is given up when that is wanted.
        type_all(&typed, |_| 0, || false);
    }
}
