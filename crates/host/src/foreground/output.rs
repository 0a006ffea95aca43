//! [`Output`]: writing to a terminal, a pipe or a file without ever waiting for it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use machine::bus::lock;
use machine::devices::serial::ConsoleSink;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes that wait for whoever reads. What finds no room is left out, and it is said how much that was.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Bytes that are handed over at a time.
const CHUNK_BYTES: usize = 4096;
/// At the end, the rest is given up when for so long nobody has taken any of it.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// How soon a stream that had no room, and does not wait for it, is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A stream with a thread of its own that writes to it, and a bounded queue before that: whoever writes to an [`OutputSink`] of it does not wait for a
/// reader, and is not told when there is none. Dropping it waits for what is queued as long as somebody reads.
pub struct Output(Arc<Shared>);

/// Writes to an [`Output`]; each write is queued whole, or left out whole.
#[derive(Clone)]
pub struct OutputSink(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// What is written in place of so many bytes that were left out.
    note: fn(u64) -> String,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    left_out_bytes: u64,
    /// Chunks that were handed over.
    chunks: u64,
    is_writing: bool,
    /// Nobody reads any more.
    is_broken: bool,
}

impl Output {
    /// Begins to write to a stream. `note` says, for whoever reads, that so many bytes were left out there.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(stream: impl Write + Send + 'static, note: fn(u64) -> String) -> io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), note });
        let writing = shared.clone();
        thread::Builder::new().name("output".to_owned()).spawn(move || writing.write_to(stream))?;
        Ok(Self(shared))
    }

    /// Something to write to.
    pub fn sink(&self) -> OutputSink {
        OutputSink(self.0.clone())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        let mut chunks = state.chunks;
        while !state.is_broken && (state.is_writing || !state.waiting.is_empty()) {
            let waited = self.0.changed.wait_timeout(state, END_PATIENCE);
            let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if timeout.timed_out() && state.chunks == chunks {
                return;
            }
            chunks = state.chunks;
        }
    }
}

impl Shared {
    /// Writes what is queued, for as long as the stream takes it.
    fn write_to(&self, mut stream: impl Write) {
        let mut chunk = Vec::new();
        loop {
            let mut state = lock(&self.state);
            state.is_writing = false;
            self.changed.notify_all();
            while state.waiting.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            chunk.clear();
            let len = state.waiting.len().min(CHUNK_BYTES);
            chunk.extend(state.waiting.drain(..len));
            state.is_writing = true;
            drop(state);
            let written = write_all(&mut stream, &chunk);
            let mut state = lock(&self.state);
            state.chunks += 1;
            // A disk that is full may have room again; a pipe whose reader has left has no other one.
            match written {
                Ok(()) => {}
                Err((ErrorKind::BrokenPipe, _)) => {
                    state.is_broken = true;
                    state.waiting = VecDeque::new();
                    self.changed.notify_all();
                    return;
                }
                Err((_, lost)) => state.left_out_bytes = state.left_out_bytes.saturating_add(lost as u64),
            }
        }
    }

    fn queue(&self, bytes: &[u8]) {
        let mut state = lock(&self.state);
        if state.is_broken {
            return;
        }
        let note = if state.left_out_bytes > 0 { (self.note)(state.left_out_bytes) } else { String::new() };
        if state.waiting.len() + note.len() + bytes.len() > WAITING_BYTES_MAX {
            state.left_out_bytes = state.left_out_bytes.saturating_add(bytes.len() as u64);
            return;
        }
        state.left_out_bytes = 0;
        state.waiting.extend(note.as_bytes());
        state.waiting.extend(bytes);
        drop(state);
        self.changed.notify_all();
    }
}

/// Writes all, and waits also where the stream is one that does not wait: another program that has the same terminal may have made it so. An error comes
/// with how much was not written.
fn write_all(stream: &mut impl Write, mut bytes: &[u8]) -> Result<(), (ErrorKind, usize)> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err((ErrorKind::WriteZero, bytes.len())),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_INTERVAL),
            Err(error) => return Err((error.kind(), bytes.len())),
        }
    }
    // What it holds back itself comes with what is written next.
    let _ = stream.flush();
    Ok(())
}

impl ConsoleSink for OutputSink {
    fn write(&mut self, bytes: &[u8]) {
        self.0.queue(bytes);
    }
}

impl Write for OutputSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.queue(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for OutputSink {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn note(bytes: u64) -> String {
        format!("<{bytes} left out>")
    }

    #[test]
    fn row_16_a_reader_that_does_not_read_is_not_waited_for_and_is_told_what_it_missed() {
        let (stream, mut reader) = UnixStream::pair().unwrap();
        let output = Output::start(stream, note).unwrap();
        let mut sink = output.sink();
        for _ in 0..1000 {
            sink.write_all(&[b'x'; 10_000]).unwrap();
        }
        let mut read = vec![0; WAITING_BYTES_MAX / 2];
        reader.read_exact(&mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == b'x'));
        let reading = thread::spawn(move || {
            let (mut text, mut chunk) = (Vec::new(), [0; 1 << 16]);
            while !text.ends_with(b"the end") {
                let len = reader.read(&mut chunk).unwrap();
                assert_ne!(len, 0);
                text.extend_from_slice(&chunk[..len]);
            }
            text
        });
        // Room comes as it reads; what finds some is led by the note.
        loop {
            sink.write_all(b"the end").unwrap();
            if lock(&output.0.state).left_out_bytes == 0 {
                break;
            }
        }
        let text = String::from_utf8(reading.join().unwrap()).unwrap();
        let (before, missed) = text.split_once('<').unwrap();
        assert!(before.bytes().all(|byte| byte == b'x'));
        let missed = missed.strip_suffix(" left out>the end").unwrap();
        let received = read.len() + before.len();
        assert_eq!((received + missed.parse::<usize>().unwrap() - 10_000_000) % "the end".len(), 0);
    }

    #[test]
    fn row_16_what_is_queued_is_written_before_the_end_and_a_reader_that_stands_still_does_not_hold_it_up() {
        let (stream, mut reader) = UnixStream::pair().unwrap();
        let output = Output::start(stream, note).unwrap();
        output.sink().write_all(&[b'x'; 100_000]).unwrap();
        let reading = thread::spawn(move || {
            let mut read = vec![0; 100_000];
            reader.read_exact(&mut read).map(|()| reader)
        });
        drop(output);
        let reader = reading.join().unwrap().unwrap();
        drop(reader);

        let (stream, _silent) = UnixStream::pair().unwrap();
        let output = Output::start(stream, note).unwrap();
        output.sink().write_all(&[b'x'; WAITING_BYTES_MAX]).unwrap();
        drop(output);
    }

    #[test]
    fn row_16_a_stream_that_fails_takes_nobody_with_it() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let output = Output::start(Full, note).unwrap();
        for _ in 0..1000 {
            output.sink().write_all(&[0; CHUNK_BYTES]).unwrap();
        }
        drop(output);
        let (stream, gone) = UnixStream::pair().unwrap();
        drop(gone);
        let output = Output::start(stream, note).unwrap();
        output.sink().write_all(b"nobody reads this").unwrap();
        drop(output);
    }

    /// A part of the guest's output was missing, and nothing said so.
    #[test]
    fn row_16_a_stream_that_does_not_wait_loses_nothing() {
        let (stream, mut reader) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let output = Output::start(stream, note).unwrap();
        let text: Vec<u8> = (0..WAITING_BYTES_MAX).map(|number| (number % 251) as u8).collect();
        output.sink().write_all(&text).unwrap();
        let mut read = vec![0; text.len()];
        for part in read.chunks_mut(100_000) {
            reader.read_exact(part).unwrap();
            thread::sleep(RETRY_INTERVAL);
        }
        assert!(read == text);
    }

    #[test]
    fn row_16_what_a_full_disk_did_not_take_is_told_when_it_has_room_again() {
        /// Takes ten bytes, has no room once, and then takes all.
        struct Tight(std::sync::mpsc::Sender<Vec<u8>>, u32);
        impl Write for Tight {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                let room = match self.1 {
                    1 => 10,
                    2 => return Err(ErrorKind::StorageFull.into()),
                    _ => bytes.len(),
                };
                self.0.send(bytes[..room].to_vec()).unwrap();
                Ok(room)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, received) = std::sync::mpsc::channel();
        let output = Output::start(Tight(sender, 0), note).unwrap();
        output.sink().write_all(&[b'x'; 100]).unwrap();
        assert_eq!(received.recv().unwrap(), [b'x'; 10]);
        while lock(&output.0.state).left_out_bytes == 0 {
            thread::yield_now();
        }
        output.sink().write_all(b"room").unwrap();
        assert_eq!(received.recv().unwrap(), b"<90 left out>room");
    }
}
