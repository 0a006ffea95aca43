//! Whoever answers where a member of etcd is expected.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use cluster::store::{Changes, EtcdStore, Store, StoreError};

/// Gives the same answer to everything.
struct Impostor {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_silent: AtomicBool,
    is_over: AtomicBool,
    asked: AtomicUsize,
}

impl Impostor {
    fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let rules = shared.clone();
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if rules.is_over.load(Ordering::Acquire) {
                    return;
                }
                if !rules.is_silent.load(Ordering::Acquire) {
                    rules.asked.fetch_add(1, Ordering::AcqRel);
                    // Whoever has asked may be gone.
                    let _ = serve(client, answer);
                }
            }
        });
        Self { port, shared }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        // It waits for a connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// One request and its answer.
fn serve(client: TcpStream, answer: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(client);
    let mut length = 0;
    loop {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    lines.read_exact(&mut vec![0; length])?;
    let length = answer.len();
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    lines.get_mut().write_all(format!("{head}{answer}").as_bytes())
}

fn open(impostors: &[&Impostor]) -> Result<EtcdStore, StoreError> {
    let members: Vec<String> = impostors.iter().map(|impostor| format!("127.0.0.1:{}", impostor.port)).collect();
    EtcdStore::open(&format!("etcd://{}", members.join(",")).parse().unwrap(), None)
}

/// That there is nothing at a key is said by etcd, or by nobody.
#[test]
fn an_answer_that_is_not_etcds_does_not_say_that_a_key_is_not_there() {
    let refused = |answer: &'static str| match open(&[&Impostor::start(answer)]).map(drop) {
        Err(StoreError::Unreachable(why)) => assert!(why.contains("makes no sense"), "{why}"),
        other => panic!("{answer}: {other:?}"),
    };
    // Each is asked for as long as a call may take.
    thread::scope(|scope| {
        for answer in ["{}", r#"{"header":{}}"#, r#"{"status":"ok"}"#] {
            scope.spawn(move || refused(answer));
        }
    });
}

#[test]
fn members_of_two_etcd_clusters_are_not_one_store() {
    let first = Impostor::start(r#"{"header":{"cluster_id":"1","revision":"7"}}"#);
    let other = Impostor::start(r#"{"header":{"cluster_id":"2","revision":"7"}}"#);
    let store = open(&[&first, &other]).unwrap();
    assert_eq!(store.get("a").unwrap(), None);
    first.shared.is_silent.store(true, Ordering::Release);
    assert!(matches!(store.get("a"), Err(StoreError::Unreachable(_))));
    assert!(other.shared.asked.load(Ordering::Acquire) > 0, "nobody has asked it");
    first.shared.is_silent.store(false, Ordering::Release);
    assert_eq!(store.get("a").unwrap(), None, "it is not asked any more");
}

#[test]
fn a_member_that_ends_each_watch_at_once_is_not_asked_without_end() {
    let told = r#"{"result":{"header":{"cluster_id":"1","revision":"7"},"created":true},"header":{"cluster_id":"1"}}"#;
    let impostor = Impostor::start(told);
    let store = open(&[&impostor]).unwrap();
    let nothing = Changes::Seen { revision: 7, changes: Vec::new() };
    assert_eq!(store.watch("", 7, Duration::from_secs(1)).unwrap(), nothing);
    // Without a pause it would be thousands of times.
    let asked = impostor.shared.asked.load(Ordering::Acquire);
    assert!((2..=40).contains(&asked), "{asked}");
}
