//! [`DnsRelay`]: questions for names of a guest, on a host whose name servers libslirp cannot ask.
//!
//! libslirp passes a guest's questions over IPv4 on to the first name server of `/etc/resolv.conf` that has an IPv4 address, and drops them if none has. On such
//! a host they are asked here, over UDP, of whatever servers it has (resolv.conf(5)).

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::checksum::{store, sum};

/// Where a host names its servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The port of name servers.
const DNS_PORT: u16 = 53;
/// How long what `resolv.conf` says is taken for true.
const CONFIG_MAX_AGE: Duration = Duration::from_secs(2);
/// Longest `resolv.conf` that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 64 << 10;
/// Name servers that are asked, as in the resolver of the C library.
const SERVERS_MAX: usize = 3;
/// Questions that wait for their answer; the oldest is given up for a new one.
const QUESTIONS_MAX: usize = 64;
/// How long an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Ethernet, IPv4 without options, UDP.
const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const HEADERS_LEN: usize = ETHERNET_LEN + IPV4_LEN + 8;
const PROTOCOL_UDP: u8 = 17;
/// The "more fragments" bit and the fragment offset of the IPv4 header.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// Header of a DNS message; in its third byte, the flag that says that the message was cut (RFC 1035, section 4.1.1).
const DNS_HEADER_LEN: usize = 12;
const TRUNCATED: u8 = 2;

/// Asks for a guest.
pub(super) struct DnsRelay {
    /// The address at which the guest asks.
    address: Ipv4Addr,
    /// Longest IP packet that the guest takes, in bytes.
    mtu: usize,
    config: PathBuf,
    port: u16,
    servers: Servers,
    read_at: Option<Instant>,
    /// Which server is asked next: another one after each that did not answer.
    turn: usize,
    questions: VecDeque<Question>,
}

/// What a host's name servers are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Servers {
    all: Vec<SocketAddr>,
    /// libslirp could ask one of them.
    has_ipv4: bool,
}

/// A question that was passed on.
struct Question {
    socket: UdpSocket,
    /// The headers of the guest's frame.
    headers: [u8; HEADERS_LEN],
    /// The message, to ask the next server if this one cannot be reached.
    message: Vec<u8>,
    /// Servers that were not asked yet.
    left: usize,
    asked_at: Instant,
}

impl DnsRelay {
    /// For a guest that asks at `address`.
    pub fn new(address: Ipv4Addr, mtu: u16) -> Self {
        Self::with_config(address, mtu, RESOLV_CONF.into(), DNS_PORT)
    }

    fn with_config(address: Ipv4Addr, mtu: u16, config: PathBuf, port: u16) -> Self {
        Self {
            address,
            mtu: mtu.into(),
            config,
            port,
            servers: Servers::default(),
            read_at: None,
            turn: 0,
            questions: VecDeque::new(),
        }
    }

    /// Takes a guest's frame if it is a question that libslirp would drop.
    pub fn take(&mut self, frame: &[u8]) -> bool {
        let Some((headers, message)) = self.question(frame) else { return false };
        if self.read_at.is_none_or(|at| at.elapsed() >= CONFIG_MAX_AGE) {
            self.servers = Servers::read(&self.config, self.port);
            self.read_at = Some(Instant::now());
        }
        if self.servers.has_ipv4 {
            return false;
        }
        self.ask(headers, message.to_vec(), self.servers.all.len());
        true
    }

    /// The headers and the message of a question to this name server.
    fn question<'a>(&self, frame: &'a [u8]) -> Option<([u8; HEADERS_LEN], &'a [u8])> {
        let (headers, message) = frame.split_first_chunk::<HEADERS_LEN>()?;
        let (ip, udp) = headers.get(ETHERNET_LEN..)?.split_at_checked(IPV4_LEN)?;
        let is_whole = u16::from_be_bytes(ip.get(6..8)?.try_into().ok()?) & IPV4_FRAGMENT == 0;
        let is_asked = headers.get(12..14)? == [8, 0]
            && *ip.first()? == 0x45
            && is_whole
            && *ip.get(9)? == PROTOCOL_UDP
            && ip.get(16..20)? == self.address.octets()
            && udp.get(2..4)? == DNS_PORT.to_be_bytes();
        let len = usize::from(u16::from_be_bytes(udp.get(4..6)?.try_into().ok()?)).checked_sub(8)?;
        (is_asked && len >= DNS_HEADER_LEN).then_some((*headers, message.get(..len)?))
    }

    fn ask(&mut self, headers: [u8; HEADERS_LEN], message: Vec<u8>, mut left: usize) {
        while let Some(next) = left.checked_sub(1) {
            left = next;
            let count = self.servers.all.len().max(1);
            let Some(server) = self.servers.all.get(self.turn % count) else { return };
            match connect(*server, &message) {
                Ok(socket) => {
                    // One that is given up for a new one was not answered either.
                    if self.questions.len() == QUESTIONS_MAX {
                        self.questions.pop_front();
                        self.turn = self.turn.wrapping_add(1);
                    }
                    let asked_at = Instant::now();
                    self.questions.push_back(Question { socket, headers, message, left, asked_at });
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, %server, "a name server cannot be asked");
                    self.turn = self.turn.wrapping_add(1);
                }
            }
        }
    }

    /// Adds the descriptors that answers come from.
    pub fn prepare(&self, fds: &mut Vec<libc::pollfd>, room: bool) {
        let questions = self.questions.iter().filter(|_| room);
        fds.extend(questions.map(|question| libc::pollfd {
            fd: question.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        }));
    }

    /// Gives each answer that has come, as a frame for the guest.
    pub fn process(&mut self, mut to_guest: impl FnMut(Vec<u8>)) {
        let mut buffer = [0; 64 << 10];
        let mut failed = Vec::new();
        let (mtu, turn) = (self.mtu, &mut self.turn);
        self.questions.retain_mut(|question| match question.socket.recv(&mut buffer) {
            Ok(len) => {
                let answer = buffer.get(..len).unwrap_or_default();
                // A question that is asked over one socket has one answer.
                let is_answer = answer.len() >= DNS_HEADER_LEN && answer.get(..2) == question.message.get(..2);
                if is_answer {
                    to_guest(answer_frame(&question.headers, answer, mtu));
                }
                !is_answer
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let is_late = question.asked_at.elapsed() >= ANSWER_MAX;
                *turn = turn.wrapping_add(usize::from(is_late));
                !is_late
            }
            // There is nobody at that port, or no way there.
            Err(_) => {
                *turn = turn.wrapping_add(1);
                failed.push((question.headers, std::mem::take(&mut question.message), question.left));
                false
            }
        });
        for (headers, message, left) in failed {
            self.ask(headers, message, left);
        }
    }
}

impl Servers {
    /// Those of a file; of a file that names none, or is not there, the machine itself (resolv.conf(5)).
    fn read(path: &std::path::Path, port: u16) -> Self {
        let text = fs::File::open(path).and_then(|file| {
            let mut text = String::new();
            io::Read::read_to_string(&mut io::Read::take(file, CONFIG_BYTES_MAX), &mut text)?;
            Ok(text)
        });
        let named: Vec<SocketAddr> = text
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace();
                (words.next() == Some("nameserver")).then(|| words.next())?
            })
            .filter_map(|address| server(address, port))
            .take(SERVERS_MAX)
            .collect();
        let has_ipv4 = named.iter().any(SocketAddr::is_ipv4);
        let here = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let all = if named.is_empty() { here.map(|address| (address, port).into()).into() } else { named };
        Self { all, has_ipv4 }
    }
}

/// A server as resolv.conf names it: an address, that of a link with the interface after `%`.
fn server(address: &str, port: u16) -> Option<SocketAddr> {
    let (address, interface) = address.split_once('%').map_or((address, None), |(address, name)| (address, Some(name)));
    let Some(interface) = interface else { return Some((address.parse::<IpAddr>().ok()?, port).into()) };
    let scope = interface.parse().ok().or_else(|| interface_index(interface))?;
    Some(SocketAddrV6::new(address.parse().ok()?, port, 0, scope).into())
}

/// The number of a network interface.
fn interface_index(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: the name is a terminated string that is only read.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

fn connect(server: SocketAddr, message: &[u8]) -> io::Result<UdpSocket> {
    let own: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    socket.send(message)?;
    Ok(socket)
}

/// The frame that brings an answer to whoever has sent a question with these headers. One that does not fit is cut to its header and says so.
fn answer_frame(question: &[u8; HEADERS_LEN], answer: &[u8], mtu: usize) -> Vec<u8> {
    let mut answer = answer.to_vec();
    if answer.len() + HEADERS_LEN - ETHERNET_LEN > mtu {
        answer.truncate(DNS_HEADER_LEN);
        if let Some((flags, counts)) = answer.get_mut(2..).and_then(<[u8]>::split_first_mut) {
            *flags |= TRUNCATED;
            // Of each kind of records there are none.
            counts.iter_mut().skip(1).for_each(|byte| *byte = 0);
        }
    }
    let part = |from: usize, len: usize| question.get(from..from + len).unwrap_or_default();
    let (to, from) = (part(0, 6), part(6, 6));
    let udp_len = u16::try_from(answer.len() + 8).unwrap_or(u16::MAX);
    let ip_at = ETHERNET_LEN;
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, PROTOCOL_UDP, 0, 0];
    store(&mut ip, 2, udp_len + IPV4_LEN as u16);
    let mut frame =
        [from, to, &[8, 0], &ip, part(ip_at + 16, 4), part(ip_at + 12, 4), part(36, 2), part(34, 2)].concat();
    frame.extend_from_slice(&udp_len.to_be_bytes());
    // No checksum, which UDP over IPv4 allows (RFC 768).
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(&answer);
    let checksum = !sum(frame.get(ip_at..ip_at + IPV4_LEN).unwrap_or_default(), 0);
    store(&mut frame, ip_at + 10, checksum);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

    fn question(to: Ipv4Addr, port: u16, message: &[u8]) -> Vec<u8> {
        let udp_len = message.len() as u16 + 8;
        let mut frame = [&[2; 6][..], &[3; 6], &[8, 0]].concat();
        frame.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend_from_slice(&GUEST.octets());
        frame.extend_from_slice(&to.octets());
        for word in [40_000, port, udp_len, 0] {
            frame.extend_from_slice(&word.to_be_bytes());
        }
        frame.extend_from_slice(message);
        frame
    }

    /// A message of this length.
    fn message(id: u8, len: usize) -> Vec<u8> {
        let mut message = vec![7; len];
        message[..2].copy_from_slice(&[0, id]);
        message
    }

    fn relay(config: &std::path::Path, port: u16) -> DnsRelay {
        DnsRelay::with_config(SERVER, 1500, config.to_owned(), port)
    }

    fn wait_for_answer(relay: &mut DnsRelay) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut answers = Vec::new();
        while answers.is_empty() {
            assert!(Instant::now() < deadline, "no answer");
            relay.process(|frame| answers.push(frame));
            std::thread::sleep(Duration::from_millis(1));
        }
        answers.remove(0)
    }

    /// Such a host's guests resolved nothing, and nobody said why.
    #[test]
    fn row_32_a_host_with_no_server_but_the_ipv6_loopback_resolves_names() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("resolv.conf");
        fs::write(&config, "# a local one\nsearch example.org\nnameserver ::1\n").unwrap();
        let server = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let mut relay = relay(&config, server.local_addr().unwrap().port());
        assert!(relay.take(&question(SERVER, 53, &message(1, 40))));
        let mut fds = Vec::new();
        relay.prepare(&mut fds, false);
        assert!(fds.is_empty(), "there is no room for an answer");
        relay.prepare(&mut fds, true);
        assert_eq!(fds.len(), 1);
        let mut asked = [0; 512];
        let (len, from) = server.recv_from(&mut asked).unwrap();
        assert_eq!(asked[..len], message(1, 40));
        // Of another question, and not even an answer: these do not count.
        server.send_to(&message(2, 40), from).unwrap();
        server.send_to(&[0, 1], from).unwrap();
        server.send_to(&message(1, 100), from).unwrap();
        let frame = wait_for_answer(&mut relay);
        assert_eq!((&frame[..6], &frame[6..12]), (&[3; 6][..], &[2; 6][..]));
        assert_eq!((&frame[26..30], &frame[30..34]), (&SERVER.octets()[..], &GUEST.octets()[..]));
        assert_eq!(sum(&frame[14..34], 0), 0xffff);
        let ports = [53u16, 40_000].map(u16::to_be_bytes).concat();
        assert_eq!((&frame[34..38], &frame[42..]), (&ports[..], &message(1, 100)[..]));
        assert!(relay.questions.is_empty());
    }

    #[test]
    fn row_32_the_next_server_is_asked_if_one_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("resolv.conf");
        let server = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        // Documentation's own network, to which no way leads, and a name that is no address.
        fs::write(&config, "nameserver fe80::1%nonesuch\nnameserver 2001:db8::1%4294967295\nnameserver ::1\n").unwrap();
        let mut relay = relay(&config, port);
        assert!(relay.take(&question(SERVER, 53, &message(1, 40))));
        server.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut asked = [0; 512];
        while server.recv_from(&mut asked).is_err() {
            assert!(Instant::now() < deadline, "it was not asked");
            relay.process(|_| panic!("nobody has answered"));
            // As a guest does that has no answer.
            relay.take(&question(SERVER, 53, &message(1, 40)));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn row_32_a_host_that_names_no_server_is_one_itself() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("resolv.conf");
        let here: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, 53).into(), (Ipv6Addr::LOCALHOST, 53).into()];
        assert_eq!(Servers::read(&config, 53), Servers { all: here.clone(), has_ipv4: false });
        fs::write(&config, "options edns0\nnameserver\nnameserver here\n").unwrap();
        assert_eq!(Servers::read(&config, 53), Servers { all: here, has_ipv4: false });
        fs::write(&config, "nameserver fe80::1%7\nnameserver 192.0.2.1\n").unwrap();
        let servers = Servers::read(&config, 53);
        assert_eq!((servers.all[0].to_string().as_str(), servers.has_ipv4), ("[fe80::1%7]:53", true));
    }

    #[test]
    fn what_is_no_question_here_and_what_libslirp_can_ask_is_left_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("resolv.conf");
        fs::write(&config, "nameserver ::1\n").unwrap();
        let mut relay = relay(&config, 9);
        let asked = question(SERVER, 53, &message(1, 40));
        for other in [question(GUEST, 53, &message(1, 40)), question(SERVER, 54, &message(1, 40))] {
            assert!(!relay.take(&other));
        }
        let mut lies = asked.clone();
        lies[38..40].copy_from_slice(&u16::MAX.to_be_bytes());
        assert!(!relay.take(&lies) && !relay.take(&question(SERVER, 53, &[0; 11])));
        assert!((0..asked.len()).all(|len| !relay.take(&asked[..len])));
        fs::write(&config, "nameserver ::1\nnameserver 192.0.2.1\n").unwrap();
        relay.read_at = None;
        assert!(!relay.take(&asked));
    }

    #[test]
    fn questions_without_answers_cost_bounded_memory_and_long_answers_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("resolv.conf");
        fs::write(&config, "nameserver ::1\n").unwrap();
        let silent = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let mut relay = relay(&config, silent.local_addr().unwrap().port());
        for _ in 0..1000 {
            assert!(relay.take(&question(SERVER, 53, &message(1, 40))));
        }
        assert_eq!(relay.questions.len(), QUESTIONS_MAX);
        let asked = question(SERVER, 53, &message(1, 40));
        let headers = asked.first_chunk::<HEADERS_LEN>().unwrap();
        assert_eq!(answer_frame(headers, &message(1, 1472), 1500).len(), 1514);
        let cut = answer_frame(headers, &message(1, 1473), 1500);
        assert_eq!(cut[HEADERS_LEN..], [0, 1, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
