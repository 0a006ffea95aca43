//! The connection between replicas: who may connect, what arrives, how it ends.

mod flow;
mod trust;

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use replication::channel::{self, ChannelError, Connection, Identity, Listener};
use tempfile::TempDir;

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

/// A cluster's authority and the keys of some of its hosts.
struct Keys(TempDir);

impl Keys {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        channel::create_authority(&folder.path().join("authority")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn folder(&self, host: &str) -> std::path::PathBuf {
        let folder = self.path(host);
        channel::issue(&self.path("authority"), host, &folder).unwrap();
        folder
    }

    fn identity(&self, host: &str) -> Identity {
        Identity::load(&self.folder(host)).unwrap()
    }
}

fn listen(identity: &Identity) -> (Listener, SocketAddr) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), identity).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Both ends of a connection: of the host that connects, and of the one that listens.
fn pair() -> (Connection, Connection) {
    let keys = Keys::new();
    let (a, b) = (keys.identity("a"), keys.identity("b"));
    let (listener, address) = listen(&b);
    let accepting = thread::spawn(move || listener.accept());
    let connected = channel::connect(address, &a, "b", LONG).unwrap();
    let accepted = accepting.join().unwrap().unwrap();
    assert_eq!((connected.peer(), accepted.peer()), ("b", "a"));
    (connected, accepted)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn is_closed<T>(result: Result<T, ChannelError>) -> bool {
    matches!(result, Err(ChannelError::Closed))
}
