//! Guests and VM processes that send anything.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use network::{BackendError, Checksum, FrameBackend, FrameOffload, Gso, Link, Segmentation, SendOutcome, end};
use spec::UserSpec;

use crate::guest::{Guest, MAC};
use crate::host::TestEnd;
use crate::{Outcome, Test};

pub const TESTS: &[Test] = &[
    ("hostile::frames_of_any_content_and_length_are_survived", frames_of_any_content_and_length_are_survived),
    ("hostile::messages_of_any_content_are_survived", messages_of_any_content_are_survived),
    ("hostile::connections_that_say_nothing_do_not_lock_out_others", silent_connections),
];

/// A small generator with a fixed seed, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// Frames like a guest's: ARP, and IPv4 with TCP, UDP and ICMP towards the gateway and the name server.
fn templates() -> Vec<Vec<u8>> {
    let ethernet = |kind: u8| [&[0x52, 0x55, 10, 0, 2, 2][..], &MAC, &[8, kind]].concat();
    let ip = |protocol: u8, payload: &[u8]| {
        let len = (20 + payload.len()) as u16;
        let [a, b] = len.to_be_bytes();
        let mut header = [0x45, 0, a, b, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2];
        let mut sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        header[10..12].copy_from_slice(&(!sum as u16).to_be_bytes());
        [&ethernet(0)[..], &header, payload].concat()
    };
    let arp = [&ethernet(6)[..], &[0, 1, 8, 0, 6, 4, 0, 1], &MAC, &[10, 0, 2, 15], &[0; 6], &[10, 0, 2, 2]].concat();
    let syn = [0x9c, 0x40, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4];
    let dhcp = [
        &[0, 68, 0, 67, 1, 8, 0, 0, 1, 1, 6, 0][..],
        &[7; 224],
        &[0x63, 0x82, 0x53, 0x63, 53, 1, 1, 50, 4, 10, 0, 2, 15, 255],
    ]
    .concat();
    let tftp = [&[0x9c, 0x41, 0, 69, 0, 20, 0, 0, 0, 1][..], b"/etc/hosts\0octet\0blksize\09999\0"].concat();
    let echo = [8, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4];
    vec![arp, ip(6, &syn), ip(17, &dhcp), ip(17, &tftp), ip(1, &echo)]
}

fn send(link: &mut Link, frame: &[u8], offload: FrameOffload) {
    let mut buffer = vec![0; network::FRAME_LEN_MAX];
    loop {
        match link.send(frame, offload) {
            Ok(SendOutcome::Sent) => return,
            Ok(SendOutcome::Full) => std::thread::yield_now(),
            Err(error) => panic!("the end is gone: {error}"),
        }
        while link.recv(&mut buffer).unwrap().is_some() {}
    }
}

fn frames_of_any_content_and_length_are_survived() -> Outcome {
    let end = TestEnd::user(UserSpec { restrict: true, ..UserSpec::default() });
    let mut random = Random(0x5eed_cafe);
    let mut link = end.link();
    link.accept(Default::default()).unwrap();
    for len in (0..100).chain([1513, 1514, 1515, 65_535, 65_549, network::FRAME_LEN_MAX]) {
        send(&mut link, &random.bytes(len), FrameOffload::default());
    }
    assert!(matches!(
        link.send(&[0; network::FRAME_LEN_MAX + 1], FrameOffload::default()),
        Err(BackendError::FrameTooLong { .. })
    ));
    let templates = templates();
    for _ in 0..20_000 {
        let mut frame = templates[random.below(templates.len())].clone();
        for _ in 0..random.below(4) {
            let at = random.below(frame.len());
            frame[at] = random.below(256) as u8;
        }
        if random.below(8) == 0 {
            frame.truncate(random.below(frame.len()));
        }
        if random.below(50) == 0 {
            let extra = random.below(60_000);
            frame.extend(random.bytes(extra));
        }
        let start = random.below(80) as u16;
        let checksum = match random.below(4) {
            0 => Checksum::Complete,
            1 => Checksum::Verified,
            2 => Checksum::Partial { start: 34, offset: 16 },
            _ => Checksum::Partial { start, offset: random.below(80) as u16 },
        };
        let segmentation = Segmentation { mss: random.below(3000) as u16, header_len: start };
        let gso = match random.below(4) {
            0 => Gso::TcpV4(segmentation),
            1 => Gso::TcpV6(segmentation),
            _ => Gso::None,
        };
        send(&mut link, &frame, FrameOffload { checksum, gso });
    }
    assert_still_serving(&end);
    Outcome::Passed
}

fn messages_of_any_content_are_survived() -> Outcome {
    let end = TestEnd::user(UserSpec::default());
    let mut random = Random(0xbad_5eed);
    for round in 0..300 {
        let socket = connect(&end.socket);
        if round % 2 == 0 {
            // As a VM process that has gone mad after it attached.
            let mut attach = [0; 28];
            (attach[0], attach[1]) = (1, 2);
            send_raw(&socket, &attach);
        }
        for _ in 0..random.below(20) {
            let len = [0, 1, 2, 3, 12, 13, 14, 80, 70_000][random.below(9)];
            let mut message = random.bytes(len);
            if let Some(kind) = message.first_mut() {
                // All kinds but `stop`.
                *kind = [0, 1, 2, 3, 3, 3, 4, 6, 7, 8, 255][random.below(11)];
            }
            send_raw(&socket, &message);
        }
    }
    assert!(end::status(&end.socket).unwrap().malformed > 0);
    assert_still_serving(&end);
    Outcome::Passed
}

fn silent_connections() -> Outcome {
    let end = TestEnd::user(UserSpec::default());
    let _silent: Vec<_> = (0..100)
        .map(|_| {
            let socket = connect(&end.socket);
            end::status(&end.socket).unwrap();
            socket
        })
        .collect();
    assert_still_serving(&end);
    Outcome::Passed
}

fn assert_still_serving(end: &TestEnd) {
    let pid = end.process.pid();
    assert_eq!(end::status(&end.socket).unwrap().pid, pid, "another process");
    Guest::with_dhcp(end.link(), true);
    let memory = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let resident_pages: u64 = memory.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(resident_pages < 64 << 8, "{resident_pages} pages of memory");
}

/// Connects as no client of this crate would.
fn connect(path: &Path) -> OwnedFd {
    // SAFETY: a `sockaddr_un` may be zero; the calls get valid pointers and lengths; the new descriptor is owned once.
    unsafe {
        let fd = OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0));
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as u16;
        for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
            *to = *from as libc::c_char;
        }
        let len = std::mem::size_of_val(&address) as u32;
        assert_eq!(libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len), 0);
        fd
    }
}

/// Sends one message; it does not matter whether the end still listens.
fn send_raw(socket: &OwnedFd, message: &[u8]) {
    // SAFETY: `message` is valid for reads of its length.
    unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL) };
}
