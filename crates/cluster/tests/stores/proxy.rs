//! Somebody between a client and a member, who loses what is to be lost.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Passes on what client and member say to each other.
pub struct Proxy {
    port: u16,
    rules: Arc<Rules>,
}

#[derive(Default)]
struct Rules {
    /// How many more answers are lost: each ends its connection.
    lost: AtomicUsize,
    /// Only answers to requests with this path are lost.
    is_over: AtomicBool,
}

/// The answers that get lost: those to transactions.
const LOST: &[u8] = b"POST /v3/kv/txn ";

impl Proxy {
    /// Before the member at this port.
    pub fn start(member: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let rules = Arc::new(Rules::default());
        let shared = rules.clone();
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if shared.is_over.load(Ordering::Acquire) {
                    return;
                }
                let rules = shared.clone();
                thread::spawn(move || serve(client, member, &rules));
            }
        });
        Self { port, rules }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets the answers to the next transactions get lost, after the member has given them.
    pub fn lose_answers(&self, count: usize) {
        self.rules.lost.store(count, Ordering::Release);
    }

    /// How many are still to be lost.
    pub fn left(&self) -> usize {
        self.rules.lost.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.rules.is_over.store(true, Ordering::Release);
        // It waits for a connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// One connection: a request, its answer, and so on. Each request arrives in one piece or a few.
fn serve(mut client: TcpStream, member: u16, rules: &Rules) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", member)) else { return };
    let (Ok(mut from_server), Ok(mut to_client)) = (server.try_clone(), client.try_clone()) else { return };
    let is_transaction = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let asked = is_transaction.clone();
        scope.spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(length) = from_server.read(&mut buffer) {
                let take = |left: usize| left.checked_sub(1);
                let is_lost = asked.load(Ordering::Acquire)
                    && rules.lost.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok();
                if length == 0 || is_lost || to_client.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            let _ = to_client.shutdown(Shutdown::Both);
            let _ = from_server.shutdown(Shutdown::Both);
        });
        let mut buffer = [0; 16 << 10];
        while let Ok(length) = client.read(&mut buffer) {
            if length == 0 {
                break;
            }
            if buffer.starts_with(b"POST ") {
                is_transaction.store(buffer.starts_with(LOST), Ordering::Release);
            }
            if server.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Write);
    });
}
