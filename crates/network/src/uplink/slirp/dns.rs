//! [`DnsRelay`]: questions for names of a guest.
//!
//! libslirp passes a guest's questions over IPv4 on to the first name server of `/etc/resolv.conf` that has an IPv4 address, whether it answers or not, and drops
//! them if none has. So they are asked here, over UDP, of whatever servers the host has (resolv.conf(5)): of the one that has answered last, and
//! of each other one when those before do not answer soon, or will not. Questions over TCP are libslirp's.

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
const QUESTIONS_MAX: usize = 128;
/// How soon the next server is asked as well.
const NEXT_AFTER: Duration = Duration::from_secs(1);
/// How long an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Ethernet, IPv4 without options, UDP.
const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const HEADERS_LEN: usize = ETHERNET_LEN + IPV4_LEN + 8;
const PROTOCOL_UDP: u8 = 17;
/// The "more fragments" bit and the fragment offset of the IPv4 header.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// Header of a DNS message; in its third byte, the flag that says that the message was cut; in its fourth, the mask of what has become of the question, and
/// those that are no answer: the server has failed, does not do this, or will not (RFC 1035, section 4.1.1).
const DNS_HEADER_LEN: usize = 12;
const TRUNCATED: u8 = 2;
const OUTCOME: u8 = 0xf;
const NO_ANSWERS: [u8; 3] = [2, 4, 5];

/// Asks for a guest.
pub(super) struct DnsRelay {
    /// The address at which the guest asks.
    address: Ipv4Addr,
    /// Longest IP packet that the guest takes, in bytes.
    mtu: usize,
    config: PathBuf,
    port: u16,
    servers: Vec<SocketAddr>,
    read_at: Option<Instant>,
    /// Which server is asked first: the one that has answered last.
    first: usize,
    questions: VecDeque<Question>,
}

/// A question that was passed on.
struct Question {
    /// The headers of the guest's frame.
    headers: [u8; HEADERS_LEN],
    message: Vec<u8>,
    /// Those who may still answer, by their places among the servers.
    asked: Vec<(usize, UdpSocket)>,
    /// Those who were not asked yet, the next one last.
    left: Vec<(usize, SocketAddr)>,
    /// What a server has said that had no answer: better than nothing.
    refusal: Option<Vec<u8>>,
    begun_at: Instant,
    /// When a server was last asked.
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
            servers: Vec::new(),
            read_at: None,
            first: 0,
            questions: VecDeque::new(),
        }
    }

    /// Takes a guest's frame if it is a question.
    pub fn take(&mut self, frame: &[u8]) -> bool {
        let Some((headers, message)) = self.question(frame) else { return false };
        if self.read_at.is_none_or(|at| at.elapsed() >= CONFIG_MAX_AGE) {
            self.servers = servers(&self.config, self.port);
            self.read_at = Some(Instant::now());
        }
        let count = self.servers.len().max(1);
        let in_turn = (0..self.servers.len()).rev().map(|number| (self.first + number) % count);
        let left = in_turn.filter_map(|place| Some((place, *self.servers.get(place)?))).collect();
        let now = Instant::now();
        let message = message.to_vec();
        let mut question =
            Question { headers, message, asked: Vec::new(), left, refusal: None, begun_at: now, asked_at: now };
        question.ask_next();
        if self.questions.len() == QUESTIONS_MAX {
            self.questions.pop_front();
        }
        self.questions.push_back(question);
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

    /// Adds the descriptors that answers come from, if there is room for one, and shortens how long is waited at most.
    pub fn prepare(&self, fds: &mut Vec<libc::pollfd>, timeout_ms: &mut u32, room: bool) {
        let asked = self.questions.iter().filter(|_| room).flat_map(|question| &question.asked);
        fds.extend(asked.map(|(_, socket)| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 }));
        if let Some(wait) = self.questions.iter().map(Question::wait).min() {
            *timeout_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).saturating_add(1).min(*timeout_ms);
        }
    }

    /// Gives each answer that has come, as a frame for the guest, and asks others where none comes.
    pub fn process(&mut self, mut to_guest: impl FnMut(Vec<u8>)) {
        let (mtu, first) = (self.mtu, &mut self.first);
        self.questions.retain_mut(|question| {
            let answer = question.answer().inspect(|(place, _)| *first = *place).map(|(_, answer)| answer);
            let is_over = question.asked.is_empty() || question.begun_at.elapsed() >= ANSWER_MAX;
            let answer = answer.or_else(|| question.refusal.take_if(|_| is_over));
            if let Some(answer) = &answer {
                to_guest(answer_frame(&question.headers, answer, mtu));
            }
            answer.is_none() && !is_over
        });
    }
}

impl Question {
    /// Asks the next server that can be asked.
    fn ask_next(&mut self) {
        while let Some((place, server)) = self.left.pop() {
            match connect(server, &self.message) {
                Ok(socket) => {
                    self.asked.push((place, socket));
                    self.asked_at = Instant::now();
                    return;
                }
                Err(error) => tracing::debug!(%error, %server, "a name server cannot be asked"),
            }
        }
    }

    /// The answer if one has come, and from which server. Another server is asked for one that will not answer, or does not soon.
    fn answer(&mut self) -> Option<(usize, Vec<u8>)> {
        let mut buffer = [0; 64 << 10];
        let mut found = None;
        let (id, refusal) = (self.message.get(..2), &mut self.refusal);
        let before = self.asked.len();
        self.asked.retain(|(place, socket)| match socket.recv(&mut buffer) {
            Ok(len) => {
                let answer = buffer.get(..len).unwrap_or_default();
                // What answers another question, or none, does not count.
                if answer.len() < DNS_HEADER_LEN || answer.get(..2) != id {
                    return true;
                }
                match answer.get(3).is_some_and(|flags| NO_ANSWERS.contains(&(flags & OUTCOME))) {
                    true => *refusal = Some(answer.to_vec()),
                    false => found = Some((*place, answer.to_vec())),
                }
                false
            }
            // Otherwise there is nobody at that port, or no way there.
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        });
        if found.is_none() && (self.asked.len() < before || self.asked_at.elapsed() >= NEXT_AFTER) {
            self.ask_next();
        }
        found
    }

    /// How long it is until something is to be done without an answer.
    fn wait(&self) -> Duration {
        let end = ANSWER_MAX.saturating_sub(self.begun_at.elapsed());
        match self.left.is_empty() {
            true => end,
            false => end.min(NEXT_AFTER.saturating_sub(self.asked_at.elapsed())),
        }
    }
}

/// The servers that a file names; of a file that names none, or is not there, the machine itself (resolv.conf(5)).
fn servers(path: &std::path::Path, port: u16) -> Vec<SocketAddr> {
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
    let here = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    if named.is_empty() { here.map(|address| (address, port).into()).into() } else { named }
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
        message[..4].copy_from_slice(&[0, id, 7, 0]);
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
        let mut timeout_ms = 60_000;
        relay.prepare(&mut fds, &mut timeout_ms, false);
        assert!(fds.is_empty(), "there is no room for an answer");
        relay.prepare(&mut fds, &mut timeout_ms, true);
        assert!(fds.len() == 1 && timeout_ms < 60_000);
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
        assert_eq!(servers(&config, 53), here);
        fs::write(&config, "options edns0\nnameserver\nnameserver here\n").unwrap();
        assert_eq!(servers(&config, 53), here);
        fs::write(&config, "nameserver fe80::1%7\nnameserver 192.0.2.1\n").unwrap();
        let named: Vec<String> = servers(&config, 53).iter().map(ToString::to_string).collect();
        assert_eq!(named, ["[fe80::1%7]:53", "192.0.2.1:53"]);
    }

    #[test]
    fn what_is_no_question_here_is_left_to_libslirp() {
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
        assert!(relay.questions.is_empty() && relay.take(&asked));
    }

    /// Answers each question from a thread of its own, for as long as the test runs, with this outcome.
    fn answering(server: UdpSocket, outcome: u8) {
        std::thread::spawn(move || {
            let mut asked = [0; 512];
            while let Ok((len, from)) = server.recv_from(&mut asked) {
                asked[3] = outcome;
                let _ = server.send_to(&asked[..len], from);
            }
        });
    }

    /// libslirp asked the first server that has an IPv4 address, and no other one.
    #[test]
    fn row_32_a_server_that_is_silent_or_refuses_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("resolv.conf");
        // One port, at several addresses of this machine.
        let good = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 3), 0)).unwrap();
        let port = good.local_addr().unwrap().port();
        let silent = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 1), port)).unwrap();
        let refusing = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), port)).unwrap();
        let good_ipv6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, port)).unwrap();
        answering(good, 0);
        answering(good_ipv6, 3);
        answering(refusing, 5);
        for (servers, outcome) in [
            ("nameserver 127.0.0.1\nnameserver 127.0.0.3\n", 0),
            ("nameserver 127.0.0.2\nnameserver 127.0.0.3\n", 0),
            // Nobody is at this address.
            ("nameserver 127.0.0.9\nnameserver ::1\n", 3),
            ("nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver ::1\n", 3),
            // Where all refuse, that is the answer.
            ("nameserver 127.0.0.9\nnameserver 127.0.0.2\n", 5),
        ] {
            fs::write(&config, servers).unwrap();
            let mut relay = relay(&config, port);
            assert!(relay.take(&question(SERVER, 53, &message(1, 40))));
            assert_eq!(wait_for_answer(&mut relay)[HEADERS_LEN + 3], outcome, "{servers}");
            // The next question goes to the one that has answered.
            let asked_at = Instant::now();
            assert!(relay.take(&question(SERVER, 53, &message(2, 40))));
            assert_eq!(wait_for_answer(&mut relay)[HEADERS_LEN + 3], outcome, "{servers}");
            assert!(outcome == 5 || asked_at.elapsed() < NEXT_AFTER, "{servers}: {:?}", asked_at.elapsed());
        }
        drop(silent);
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
        assert_eq!(cut[HEADERS_LEN..], [0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
