//! The guest's console: what it wrote last, and the clients that watch it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use machine::control::Control;
use machine::devices::serial::ConsoleSink;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};

use crate::foreground::raw_terminal::type_all;

/// What is kept of the console's output for clients that connect later, in bytes.
const BACKLOG_BYTES_MAX: usize = 64 << 10;

#[derive(Default)]
struct Inner {
    backlog: VecDeque<u8>,
    clients: Vec<UnixStream>,
    control: Option<Arc<Control>>,
}

/// The console of one VM. Clones are the same console.
///
/// It serves the administrator and is not gated: after a takeover, lines that the lost primary wrote since its last checkpoint are written
/// again.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Inner>>);

impl Console {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where what clients type goes from now on.
    pub fn attach(&self, control: Arc<Control>) {
        self.inner().control = Some(control);
    }

    /// Shows the console to a client and takes what it types, until it leaves.
    pub fn serve(&self, mut client: UnixStream) -> io::Result<()> {
        {
            let mut inner = self.inner();
            let backlog: Vec<u8> = inner.backlog.iter().copied().collect();
            client.write_all(&backlog)?;
            let watcher = client.try_clone()?;
            watcher.set_nonblocking(false)?;
            inner.clients.push(watcher);
        }
        let mut typed = [0; 1024];
        loop {
            let len = client.read(&mut typed)?;
            match typed.get(..len) {
                None | Some([]) => return Ok(()),
                // What the guest has no room for waits, and the client with it, as long as there is one.
                Some(typed) => type_all(typed, |bytes| self.type_in(bytes), || !has_gone(&client)),
            }
        }
    }

    /// Hands typed bytes to the guest; how many it had room for.
    fn type_in(&self, bytes: &[u8]) -> usize {
        let control = self.inner().control.clone();
        // A secondary runs no guest that could read.
        control.map_or(bytes.len(), |control| control.type_on_console(bytes))
    }
}

/// Whether a client has closed its connection, or was cut off.
fn has_gone(client: &UnixStream) -> bool {
    let mut polled = [PollFd::new(client, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_err() || polled.iter().any(|fd| !fd.revents().is_empty())
}

impl ConsoleSink for Console {
    fn write(&mut self, bytes: &[u8]) {
        let mut inner = self.inner();
        inner.backlog.extend(bytes);
        let excess = inner.backlog.len().saturating_sub(BACKLOG_BYTES_MAX);
        inner.backlog.drain(..excess);
        // The guest does not wait for a client that does not read: it is cut off, and can come again.
        inner.clients.retain_mut(|client| {
            let sent = send(&*client, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            let is_sent = sent.is_ok_and(|sent| sent == bytes.len());
            if !is_sent {
                // One that has gone has ended the connection itself.
                let _ = client.shutdown(Shutdown::Both);
            }
            is_sent
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_see_what_was_written_before_and_after_they_came() {
        let mut console = Console::default();
        console.write(&[b'x'; BACKLOG_BYTES_MAX]);
        console.write(b"login: ");
        let (mut client, served) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn({
            let console = console.clone();
            move || console.serve(served)
        });
        let mut seen = vec![0; BACKLOG_BYTES_MAX];
        client.read_exact(&mut seen).unwrap();
        assert!(seen.ends_with(b"xlogin: "));
        while console.inner().clients.is_empty() {
            std::thread::yield_now();
        }
        console.write(b"root");
        let mut more = [0; 4];
        client.read_exact(&mut more).unwrap();
        assert_eq!(&more, b"root");
        drop(client);
        serving.join().unwrap().unwrap();
        console.write(b"nobody sees this");
        console.write(b"nor this");
        assert!(console.inner().clients.is_empty());
    }

    #[test]
    fn what_the_guest_has_no_room_for_waits_and_nothing_typed_is_lost() {
        const TYPED_BYTES: usize = 405_715;
        let control = Control::new().unwrap();
        let console = Console::default();
        console.attach(control.clone());
        let (mut client, served) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn(move || console.serve(served));
        let typing = std::thread::spawn(move || {
            let typed: Vec<u8> = (0..TYPED_BYTES).map(|number| number as u8).collect();
            client.write_all(&typed).unwrap();
            client
        });
        let mut taken = Vec::new();
        while taken.len() < TYPED_BYTES {
            taken.extend(control.take_console(1000));
        }
        assert!(taken.iter().enumerate().all(|(number, byte)| *byte == number as u8));
        // One that leaves while its input waits is not waited for.
        let mut client = typing.join().unwrap();
        client.write_all(&vec![0; 64 << 10]).unwrap();
        client.write_all(b"one more").unwrap();
        drop(client);
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off_and_finds_out() {
        let mut console = Console::default();
        let (mut client, served) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn({
            let console = console.clone();
            move || console.serve(served)
        });
        while console.inner().clients.is_empty() {
            std::thread::yield_now();
        }
        while !console.inner().clients.is_empty() {
            console.write(&[b'x'; 4096]);
        }
        // Neither what it reads nor what it types goes on.
        std::io::copy(&mut client, &mut std::io::sink()).unwrap();
        assert!(client.write_all(b"root").is_err());
        serving.join().unwrap().unwrap();
    }
}
