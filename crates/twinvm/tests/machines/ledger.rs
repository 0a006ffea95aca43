//! A PostgreSQL in a VM, and a client outside whose every commit is counted.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::HUNG;

/// A client that inserts the numbers from 1 on over one connection, each in a transaction of its own, until it is dropped or the connection breaks.
pub struct Ledger {
    address: SocketAddr,
    /// psql, whose connection it is.
    process: Child,
    committed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Ledger {
    /// Makes the table, once PostgreSQL answers, and begins.
    pub fn start(address: SocketAddr) -> Self {
        let deadline = Instant::now() + HUNG;
        while let Err(error) = sql(address, "create table if not exists ledger (number bigint primary key)") {
            assert!(Instant::now() < deadline, "{error}");
            thread::sleep(Duration::from_secs(1));
        }
        let mut process = psql(address).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (statements, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let committed = Arc::<AtomicU64>::default();
        let count = committed.clone();
        let thread = Some(thread::spawn(move || write(statements, BufReader::new(answers), &count)));
        Self { address, process, committed, thread }
    }

    /// How many commits PostgreSQL has acknowledged.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Waits until `more` are.
    pub fn wait_for_progress(&self, more: u64) {
        let (from, deadline) = (self.committed(), Instant::now() + HUNG);
        while self.committed() < from + more {
            let is_broken = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            assert!(!is_broken, "the connection to PostgreSQL broke after {} commits", self.committed());
            assert!(Instant::now() < deadline, "PostgreSQL commits nothing");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until PostgreSQL has recovered, and looks for the first `committed` numbers.
    pub fn assert_holds(&self, committed: u64) {
        let deadline = Instant::now() + HUNG;
        let count = format!("select count(*) from ledger where number <= {committed}");
        loop {
            match sql(self.address, &count) {
                Ok(found) => return assert_eq!(found, committed.to_string(), "commits are lost"),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_secs(1));
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Inserts one number after the other; the answer comes when it is committed. Ends with whatever else comes.
fn write(mut statements: ChildStdin, mut answers: BufReader<ChildStdout>, committed: &AtomicU64) {
    let mut answer = String::new();
    for number in 1.. {
        answer.clear();
        let is_sent = writeln!(statements, "insert into ledger values ({number});").is_ok();
        if !is_sent || answers.read_line(&mut answer).is_err() || answer != "INSERT 0 1\n" {
            break;
        }
        committed.store(number, Ordering::Release);
    }
}

fn psql(address: SocketAddr) -> Command {
    let mut command = Command::new("psql");
    command.args(["-X", "-h", "127.0.0.1", "-U", "postgres", "-p", &address.port().to_string(), "postgres"]);
    command.env("PGCONNECT_TIMEOUT", "10");
    command
}

/// What a statement that is committed by itself answers.
fn sql(address: SocketAddr, statement: &str) -> Result<String, String> {
    let output = psql(address).args(["-At", "-c", statement]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
