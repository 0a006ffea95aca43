//! A server of a few replies, as good or bad as a test wants it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// What the server does with one `INCR`.
pub enum Act {
    /// Answers with the next number.
    Answer,
    /// Waits, and then answers.
    Wait(Duration),
    /// Sets the counter before it counts.
    Set(i64),
    /// Counts, and closes the connection without an answer.
    CountAndClose,
    /// Says nothing any more.
    Hang,
    /// Answers so.
    Say(&'static str),
}

/// Starts a server whose counter is 0. `act` says what to do with the n-th increment, n from 1.
pub fn serve(act: impl Fn(u64) -> Act + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut server = Server { act, counter: 0, increments: 0 };
        for stream in listener.incoming() {
            server.serve(stream.unwrap());
        }
    });
    address
}

struct Server<F> {
    act: F,
    counter: i64,
    increments: u64,
}

impl<F: Fn(u64) -> Act> Server<F> {
    /// Serves one client until it leaves.
    fn serve(&mut self, mut stream: TcpStream) {
        let mut received = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            while let Some(command) = take_command(&mut received) {
                let answer = match command.as_str() {
                    "INCR n" => match self.increment() {
                        Some(answer) => answer,
                        None => return,
                    },
                    "GET n" => {
                        let text = self.counter.to_string();
                        format!("${}\r\n{text}\r\n", text.len())
                    }
                    other => format!("-ERR unknown command {other}\r\n"),
                };
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            match stream.read(&mut chunk) {
                Ok(len) if len > 0 => received.extend_from_slice(&chunk[..len]),
                _ => return,
            }
        }
    }

    /// The answer, or none if the connection is to be closed.
    fn increment(&mut self) -> Option<String> {
        self.increments += 1;
        match (self.act)(self.increments) {
            Act::Answer => {}
            Act::Wait(duration) => thread::sleep(duration),
            Act::Set(value) => self.counter = value,
            Act::CountAndClose => {
                self.counter += 1;
                return None;
            }
            Act::Hang => return Some(String::new()),
            Act::Say(text) => return Some(text.to_owned()),
        }
        self.counter += 1;
        Some(format!(":{}\r\n", self.counter))
    }
}

/// The words of the first complete command.
fn take_command(received: &mut Vec<u8>) -> Option<String> {
    let text = String::from_utf8(received.clone()).unwrap();
    let mut lines = text.split_inclusive("\r\n");
    let head = lines.next()?;
    let words: usize = head.trim_end().strip_prefix('*')?.parse().ok()?;
    let rest: Vec<&str> = lines.take(2 * words).filter(|line| line.ends_with("\r\n")).collect();
    if rest.len() < 2 * words {
        return None;
    }
    received.drain(..head.len() + rest.iter().map(|line| line.len()).sum::<usize>());
    Some(rest.iter().skip(1).step_by(2).map(|word| word.trim_end()).collect::<Vec<_>>().join(" "))
}
