//! The guest's console: what it wrote last, and the clients that watch it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use machine::control::Control;
use machine::devices::serial::ConsoleSink;
use rustix::net::{SendFlags, send};

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
            let control = self.inner().control.clone();
            match (typed.get(..len), control) {
                (None | Some([]), _) => return Ok(()),
                (Some(typed), Some(control)) => _ = control.type_on_console(typed),
                // A secondary runs no guest that could read.
                (Some(_), None) => {}
            }
        }
    }
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
