//! The user's terminal as the guest's console.

use std::io::{self, ErrorKind, Read, Write};
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
/// by a guest that does not read: what it does not take within [`TYPED_PATIENCE`] is lost there. What does not come from a terminal is nobody's wish to
/// leave, whatever bytes it holds.
pub fn feed_console(
    console: impl Fn(&[u8]) -> usize + Send + 'static,
    leave: impl Fn() + Send + 'static,
    end: impl FnOnce() + Send + 'static,
) {
    std::thread::spawn(move || {
        let is_terminal = isatty(io::stdin().as_fd());
        let mut buffer = [0; 1024];
        while let Ok(len @ 1..) = read_some(&mut io::stdin(), &mut buffer) {
            for (typed, left) in parts(buffer.get(..len).unwrap_or_default(), is_terminal) {
                let deadline = is_terminal.then(|| Instant::now() + TYPED_PATIENCE);
                type_all(typed, &console, || deadline.is_none_or(|deadline| Instant::now() < deadline));
                if left {
                    leave();
                }
            }
        }
        end();
    });
}

/// Reads what there is, and waits for it also where the stream is one that does not wait, or a signal comes meanwhile. Nothing means the end.
fn read_some(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_INTERVAL),
            read => return read,
        }
    }
}

/// What was typed, in parts, and whether the user wants to leave after each of them.
fn parts(typed: &[u8], is_terminal: bool) -> impl Iterator<Item = (&[u8], bool)> {
    typed.split_inclusive(move |&byte| is_terminal && byte == ESCAPE).map(move |part| match part.split_last() {
        Some((&ESCAPE, typed)) if is_terminal => (typed, true),
        _ => (part, false),
    })
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

    /// A file that was piped in had the guest shut down where it held that byte.
    #[test]
    fn row_17_only_who_types_leaves() {
        let all = |is_terminal| parts(b"ab\x1d\x1dc", is_terminal).collect::<Vec<_>>();
        assert_eq!(all(true), [(&b"ab"[..], true), (b"", true), (b"c", false)]);
        assert_eq!(all(false), [(&b"ab\x1d\x1dc"[..], false)]);
    }

    /// What is left to say of a stream, the last first: bytes, or an error.
    struct Stream(Vec<Result<u8, ErrorKind>>);

    impl Read for Stream {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.pop() {
                Some(Ok(byte)) => (&[byte][..]).read(buffer),
                Some(Err(kind)) => Err(kind.into()),
                None => Ok(0),
            }
        }
    }

    /// Another program may have made the terminal one that does not wait: input ended for good.
    #[test]
    fn row_17_input_goes_on_after_a_signal_and_where_nothing_is_there_yet() {
        let mut stream =
            Stream(vec![Err(ErrorKind::Other), Ok(2), Err(ErrorKind::WouldBlock), Err(ErrorKind::Interrupted), Ok(1)]);
        let mut buffer = [0; 8];
        for byte in [1, 2] {
            assert_eq!(read_some(&mut stream, &mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], byte);
        }
        assert_eq!(read_some(&mut stream, &mut buffer).unwrap_err().kind(), ErrorKind::Other);
        assert_eq!(read_some(&mut stream, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn row_17_nothing_typed_is_lost_at_a_console_with_little_room() {
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
