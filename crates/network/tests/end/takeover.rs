//! A VM process goes, another takes over, and clients notice nothing but a pause.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use network::end::{self, EndConfig, EndProcess, Lifetime};
use network::{Attach, BackendError, FrameBackend, Link, LinkState};
use spec::{NetworkSpec, Protocol, UserSpec};

use crate::guest::Guest;
use crate::host::{TestEnd, connect, forward, open_spec, pattern, this_program, wait_until};
use crate::vm_process::VmProcess;
use crate::{Outcome, Test};

pub const TESTS: &[Test] = &[
    ("takeover::connection_outlives_a_killed_vm_process", connection_outlives_a_killed_vm_process),
    ("takeover::transfer_goes_on_across_kills", transfer_goes_on_across_kills),
    ("takeover::newest_vm_process_wins", newest_vm_process_wins),
    ("takeover::guest_that_uses_up_all_descriptors_can_still_be_taken_over", exhausted_descriptors),
    ("takeover::frames_wait_for_a_guest_that_is_not_ready", frames_wait_for_a_guest_that_is_not_ready),
];

fn connection_outlives_a_killed_vm_process() -> Outcome {
    let service = forward(Protocol::Tcp, 6379);
    let end = TestEnd::user(UserSpec { forward: vec![service], ..UserSpec::default() });
    let mut guest = Guest::with_dhcp(Box::new(VmProcess::spawn(&end.socket)), true);
    let handle = guest.tcp_listen(6379);
    let mut client = connect(&service);
    client.write_all(b"SET").unwrap();
    assert_eq!(guest.tcp_recv(handle, 3), b"SET");

    // What the client sends while no VM process is there waits for the next.
    guest.replace_backend(Box::new(network::pair().unwrap().0));
    wait_until(|| !end::status(&end.socket).unwrap().attached);
    client.write_all(b"GET").unwrap();
    thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    guest.replace_backend(Box::new(VmProcess::spawn(&end.socket)));
    assert_eq!(guest.tcp_recv(handle, 3), b"GET");
    let gap = start.elapsed();
    // libslirp's first retransmission comes after a second at the earliest.
    assert!(gap < Duration::from_millis(900), "the client's bytes came after {gap:?}");
    guest.tcp_send(handle, b"value");
    guest.run_for(Duration::from_millis(50));
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"value");
    assert_eq!(end::status(&end.socket).unwrap().attachments, 2);
    Outcome::Passed
}

fn transfer_goes_on_across_kills() -> Outcome {
    const LEN: usize = 4 << 20;
    let service = forward(Protocol::Tcp, 9);
    let end = TestEnd::user(UserSpec { forward: vec![service], ..UserSpec::default() });
    let mut guest = Guest::with_dhcp(Box::new(VmProcess::spawn(&end.socket)), true);
    let handle = guest.tcp_listen(9);
    let bytes = pattern(LEN);
    let mut client = connect(&service);
    let sent = bytes.clone();
    let writer = thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client
    });
    let mut got = Vec::new();
    for _ in 0..3 {
        got.extend(guest.tcp_recv(handle, LEN / 4));
        guest.replace_backend(Box::new(VmProcess::spawn(&end.socket)));
    }
    got.extend(guest.tcp_recv(handle, LEN - got.len()));
    assert!(got == bytes, "bytes differ");
    drop(writer.join().unwrap());
    Outcome::Passed
}

fn newest_vm_process_wins() -> Outcome {
    let end = TestEnd::user(UserSpec::default());
    let mut old = end.link();
    let mut guest = Guest::with_dhcp(end.link(), true);
    assert!(matches!(old.recv(&mut [0; 100]), Err(BackendError::Disconnected)));
    assert_eq!(old.link_state(), LinkState::Down);
    guest.run_for(Duration::from_millis(10));
    assert_eq!(end::status(&end.socket).unwrap().attachments, 2);
    Outcome::Passed
}

fn exhausted_descriptors() -> Outcome {
    // The end runs behind a script that leaves it few descriptors.
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("limited");
    let program = this_program();
    fs::write(&script, format!("#!/bin/sh\nulimit -n 40\nexec {} \"$@\"\n", program.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let socket = folder.path().join("net.sock");
    let network = NetworkSpec::User(open_spec());
    let config = EndConfig { network, lifetime: Lifetime::WithParent };
    let process = EndProcess::spawn(&script, &config, &socket, Stdio::null()).unwrap();
    let mut guest = Guest::with_dhcp(Box::new(Link::connect(&socket, &Attach::default()).unwrap()), true);
    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = service.local_addr().unwrap().port();
    for _ in 0..60 {
        guest.tcp_connect(Ipv4Addr::new(10, 0, 2, 2), port);
    }
    guest.run_for(Duration::from_millis(300));
    let open = fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count();
    assert!(open >= 39, "only {open} descriptors are in use");
    for attachments in 2..6 {
        guest.replace_backend(Box::new(Link::connect(&socket, &Attach::default()).unwrap()));
        guest.run_for(Duration::from_millis(10));
        assert_eq!(end::status(&socket).unwrap().attachments, attachments);
    }
    Outcome::Passed
}

fn frames_wait_for_a_guest_that_is_not_ready() -> Outcome {
    let service = forward(Protocol::Tcp, 80);
    let end = TestEnd::user(UserSpec { forward: vec![service], ..UserSpec::default() });
    let mut link = end.link();
    let _client = connect(&service);
    thread::sleep(Duration::from_millis(50));
    // The end asks who has the guest's address, but the guest has not said that it takes frames.
    let mut buffer = [0; 2000];
    assert!(link.recv(&mut buffer).unwrap().is_none());
    link.accept(Default::default()).unwrap();
    let mut received = None;
    wait_until(|| {
        received = link.recv(&mut buffer).unwrap();
        received.is_some()
    });
    assert_eq!(buffer[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x55, 10, 0, 2, 2, 8, 6]);
    Outcome::Passed
}
