//! The host's side of the tests: ends, and peers on the loopback address.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use network::end::{EndConfig, EndProcess, Lifetime};
use network::{Attach, Link};
use spec::{NetworkSpec, PortForward, Protocol, UserSpec};
use tempfile::TempDir;

/// A network end with a socket in a folder of its own.
pub struct TestEnd {
    pub process: EndProcess,
    pub socket: PathBuf,
    _folder: TempDir,
}

impl TestEnd {
    pub fn user(spec: UserSpec) -> Self {
        Self::new(NetworkSpec::User(spec))
    }

    pub fn new(network: NetworkSpec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("net.sock");
        let process = spawn(network, Lifetime::WithParent, &socket).unwrap();
        Self { process, socket, _folder: folder }
    }

    pub fn link(&self) -> Box<Link> {
        Box::new(Link::connect(&self.socket, &Attach::default()).unwrap())
    }
}

pub fn spawn(network: NetworkSpec, lifetime: Lifetime, socket: &Path) -> Result<EndProcess, network::end::SpawnError> {
    let config = EndConfig { network, lifetime };
    EndProcess::spawn(&this_program(), &config, socket, Stdio::null())
}

pub fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// A network whose guest may reach the listeners of the tests.
pub fn open_spec() -> UserSpec {
    UserSpec { host_loopback: true, ..UserSpec::default() }
}

/// A forwarded port that nobody else listens at.
pub fn forward(protocol: Protocol, guest_port: u16) -> PortForward {
    let host_addr = Ipv4Addr::LOCALHOST;
    let host_port = match protocol {
        Protocol::Tcp => TcpListener::bind((host_addr, 0)).unwrap().local_addr().unwrap().port(),
        Protocol::Udp => UdpSocket::bind((host_addr, 0)).unwrap().local_addr().unwrap().port(),
    };
    PortForward { protocol, host_addr, host_port, guest_addr: None, guest_port }
}

pub fn connect(forward: &PortForward) -> TcpStream {
    let stream = TcpStream::connect((forward.host_addr, forward.host_port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Bytes that differ at every place where a mistake could hide.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Listens, and sends back whatever one client sends, `len` bytes in all, once it has them all.
pub fn echo_once(addr: impl Into<IpAddr>, len: usize) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((addr.into(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    (port, thread)
}

/// Waits for something that takes milliseconds.
pub fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "it takes too long");
        thread::sleep(Duration::from_millis(2));
    }
}
