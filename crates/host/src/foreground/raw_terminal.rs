//! The user's terminal as the guest's console.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use machine::devices::serial::ConsoleSink;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Ctrl-], which leaves the console, as in telnet and virsh.
const ESCAPE: u8 = 0x1d;
/// Bytes from a terminal that wait for a guest that does not take them.
const TYPED_BYTES_MAX: usize = 1 << 20;
/// How long they wait once the terminal has gone.
const END_PATIENCE: Duration = Duration::from_secs(1);
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
/// has room for, does not wait, and says how much that was: the rest waits, and so does whoever pipes it in. What a user types waits as well, and they are
/// not kept from leaving by a guest that does not read. What does not come from a terminal is nobody's wish to leave, whatever bytes it holds.
pub fn feed_console(
    console: impl Fn(&[u8]) -> usize + Send + 'static,
    leave: impl Fn() + Send + 'static,
    end: impl FnOnce() + Send + 'static,
) {
    std::thread::spawn(move || {
        // Past the buffer of standard input: whether there is more is to be seen. Without one it is at its end.
        if let Ok(stdin) = io::stdin().as_fd().try_clone_to_owned() {
            let stdin = File::from(stdin);
            match isatty(&stdin) {
                true => pass_on_typed(stdin, console, leave),
                false => pass_on_piped(stdin, console),
            }
        }
        end();
    });
}

fn pass_on_piped(mut input: impl Read, console: impl Fn(&[u8]) -> usize) {
    let mut buffer = [0; 1024];
    while let Ok(len @ 1..) = read_some(&mut input, &mut buffer) {
        type_all(buffer.get(..len).unwrap_or_default(), &console, || true);
    }
}

/// Reads on while the guest takes nothing, as the next key may be the one that leaves.
fn pass_on_typed(mut input: impl Read + AsFd, console: impl Fn(&[u8]) -> usize, leave: impl Fn()) {
    let mut buffer = [0; 1024];
    let mut waiting = Vec::new();
    let pass_on = |waiting: &mut Vec<u8>| {
        let taken = if waiting.is_empty() { 0 } else { console(waiting) };
        waiting.drain(..taken.min(waiting.len()));
    };
    loop {
        pass_on(&mut waiting);
        if !waiting.is_empty() && !is_readable_within(&input, RETRY_INTERVAL) {
            continue;
        }
        let Ok(len @ 1..) = read_some(&mut input, &mut buffer) else { break };
        for (typed, left) in parts(buffer.get(..len).unwrap_or_default(), true) {
            if waiting.len() + typed.len() <= TYPED_BYTES_MAX {
                waiting.extend_from_slice(typed);
            } else {
                // Nobody types so much. Where it cannot be said, it is lost all the same.
                let _ = write!(
                    io::stderr(),
                    "\r\ntwinvm: {} typed bytes are lost, as the guest does not read\r\n",
                    typed.len()
                );
            }
            if left {
                pass_on(&mut waiting);
                leave();
            }
        }
    }
    let deadline = Instant::now() + END_PATIENCE;
    type_all(&waiting, console, || Instant::now() < deadline);
}

fn is_readable_within(input: &impl AsFd, time: Duration) -> bool {
    let mut polled = [PollFd::new(input, PollFlags::IN)];
    let time = Timespec::try_from(time).ok();
    // What cannot be asked is found out by reading.
    !matches!(poll(&mut polled, time.as_ref()), Ok(0))
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
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A file that was piped in had the guest shut down where it held that byte.
    #[test]
    fn row_17_only_who_types_leaves() {
        let all = |is_terminal| parts(b"ab\x1d\x1dc", is_terminal).collect::<Vec<_>>();
        assert_eq!(all(true), [(&b"ab"[..], true), (b"", true), (b"c", false)]);
        assert_eq!(all(false), [(&b"ab\x1d\x1dc"[..], false)]);
    }

    /// A part of what was pasted was missing, where the guest took a second to read it, and nothing said so.
    #[test]
    fn row_17_what_is_typed_waits_for_its_guest_and_leaving_does_not_wait() {
        let (mut user, terminal) = UnixStream::pair().unwrap();
        let (typed, received) = std::sync::mpsc::channel();
        let (leaving, has_left) = std::sync::mpsc::channel();
        let reads = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let guest_reads = reads.clone();
        let console = move |bytes: &[u8]| {
            let taken = if guest_reads.load(std::sync::atomic::Ordering::Relaxed) { bytes.len().min(700) } else { 0 };
            typed.send(bytes[..taken].to_vec()).unwrap();
            taken
        };
        let passing = std::thread::spawn(move || pass_on_typed(terminal, console, || leaving.send(()).unwrap()));
        let pasted: Vec<u8> = (0..300_000u32).map(|number| (number % 20 + 40) as u8).collect();
        user.write_all(&pasted).unwrap();
        user.write_all(&[ESCAPE]).unwrap();
        has_left.recv_timeout(Duration::from_secs(60)).expect("nobody can leave");
        std::thread::sleep(Duration::from_millis(1100));
        reads.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut taken = Vec::new();
        while taken.len() < pasted.len() {
            taken.extend(received.recv_timeout(Duration::from_secs(60)).unwrap());
        }
        assert!(taken == pasted);
        drop(user);
        passing.join().unwrap();
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
