//! What a client asks for again and again, and what it expects.

use std::time::Duration;

use super::connection::{Broken, Connection};
use super::resp::{Reply, write_command};

/// Bytes of a page of the guest's memory.
const PAGE_BYTES: u64 = 4096;
/// Bytes written into each page.
const PAGE_WRITE_BYTES: usize = 64;

/// How a reply compares with what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// As expected.
    Right,
    /// So many acknowledged changes were undone.
    Lost(u64),
    /// So many changes more than were asked for.
    Repeated(u64),
}

/// A kind of request.
pub trait Workload: Send + 'static {
    /// Appends the next request, as a RESP command.
    fn request(&mut self, out: &mut Vec<u8>);

    /// Compares the reply to the earliest request that has none yet. An error ends the load.
    fn check(&mut self, reply: Reply) -> Result<Check, Broken>;
}

/// Increments a counter that nobody else changes: every reply must be one more than the last.
#[derive(Clone, Debug)]
pub struct Counter {
    command: Vec<u8>,
    last: i64,
}

impl Counter {
    /// A counter under `key`, which holds `start` now.
    pub fn new(key: &str, start: i64) -> Self {
        let mut command = Vec::new();
        write_command(&mut command, &[b"INCR", key.as_bytes()]);
        Self { command, last: start }
    }

    /// The value that was acknowledged last.
    pub fn last(&self) -> i64 {
        self.last
    }

    /// What the counter under `key` holds: 0 if there is none.
    pub fn read(connection: &mut Connection, key: &str, timeout: Duration) -> Result<i64, Broken> {
        match connection.ask(&[b"GET", key.as_bytes()], timeout)? {
            Reply::Nil => Ok(0),
            Reply::Text(text) => {
                let value = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
                value.ok_or_else(|| unexpected(Reply::Text(text)))
            }
            other => Err(unexpected(other)),
        }
    }
}

/// Compares a counter's value with what it should be.
pub fn compare(value: i64, expected: i64) -> Check {
    match value.cmp(&expected) {
        std::cmp::Ordering::Equal => Check::Right,
        std::cmp::Ordering::Less => Check::Lost(value.abs_diff(expected)),
        std::cmp::Ordering::Greater => Check::Repeated(value.abs_diff(expected)),
    }
}

impl Workload for Counter {
    fn request(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.command);
    }

    fn check(&mut self, reply: Reply) -> Result<Check, Broken> {
        match reply {
            Reply::Integer(value) => {
                let check = compare(value, self.last.saturating_add(1));
                self.last = value;
                Ok(check)
            }
            other => Err(unexpected(other)),
        }
    }
}

/// Overwrites values of 100 bytes, as random as can be, in a range of keys.
#[derive(Clone, Debug)]
pub struct KeyWrites {
    keys: u64,
    random: Random,
}

impl KeyWrites {
    /// So many keys.
    pub fn new(keys: u64) -> Self {
        Self { keys: keys.max(1), random: Random(0x5EED) }
    }
}

impl Workload for KeyWrites {
    fn request(&mut self, out: &mut Vec<u8>) {
        let key = format!("key:{}", self.random.next() % self.keys);
        let value: String = (0..100).map(|_| char::from(b'0' + (self.random.next() >> 33) as u8 % 64)).collect();
        write_command(out, &[b"SET", key.as_bytes(), value.as_bytes()]);
    }

    fn check(&mut self, reply: Reply) -> Result<Check, Broken> {
        match reply {
            Reply::Text(text) if text == b"OK" => Ok(Check::Right),
            other => Err(unexpected(other)),
        }
    }
}

/// Writes into so many different pages of the guest's memory with each request.
#[derive(Clone, Debug)]
pub struct PageWrites {
    pages: u64,
    random: Random,
}

impl PageWrites {
    /// The value is written over in place, 64 bytes in each page of it; a script does that within one request.
    const SCRIPT: &'static [u8] =
        b"for page = 0, ARGV[1] - 1 do redis.call('SETRANGE', KEYS[1], page * 4096, ARGV[2]) end \
        return tonumber(ARGV[1])";

    /// So many pages.
    pub fn new(pages: u64) -> Self {
        Self { pages, random: Random(0xFACE) }
    }
}

impl Workload for PageWrites {
    fn request(&mut self, out: &mut Vec<u8>) {
        let content: [u8; PAGE_WRITE_BYTES] = std::array::from_fn(|_| (self.random.next() >> 33) as u8);
        let pages = self.pages.to_string();
        write_command(out, &[b"EVAL", Self::SCRIPT, b"1", b"pages", pages.as_bytes(), &content]);
    }

    fn check(&mut self, reply: Reply) -> Result<Check, Broken> {
        match reply {
            Reply::Integer(pages) if pages.unsigned_abs() == self.pages => Ok(Check::Right),
            other => Err(unexpected(other)),
        }
    }
}

impl PageWrites {
    /// The first request, which makes room for all pages.
    pub fn prepare(pages: u64) -> Vec<u8> {
        let end = (pages.saturating_mul(PAGE_BYTES)).to_string();
        let mut command = Vec::new();
        write_command(&mut command, &[b"SETRANGE", b"pages", end.as_bytes(), b"."]);
        command
    }
}

fn unexpected(reply: Reply) -> Broken {
    match reply {
        Reply::Error(message) => Broken::Refused(message),
        Reply::Integer(value) => Broken::Malformed(format!("the number {value}")),
        Reply::Text(text) => Broken::Malformed(format!("the text {:?}", String::from_utf8_lossy(&text))),
        Reply::Nil => Broken::Malformed("no value".to_owned()),
    }
}

/// Knuth's MMIX linear congruential generator; the upper bits are good enough for test data.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 11
    }
}
