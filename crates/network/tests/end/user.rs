//! The user-mode network.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use network::end::{self, Lifetime};
use smoltcp::socket::{tcp, udp};
use spec::{NetworkSpec, PortForward, Protocol, UserSpec};

use crate::guest::Guest;
use crate::host::{TestEnd, connect, echo_once, forward, open_spec, pattern, spawn};
use crate::{Outcome, Test};

pub const TESTS: &[Test] = &[
    ("user::dhcp_gives_the_configured_addresses", dhcp_gives_the_configured_addresses),
    ("user::guest_reaches_a_service_of_the_host_only_if_allowed", guest_reaches_a_service_of_the_host_only_if_allowed),
    ("user::clients_reach_the_guest_over_forwarded_ports", clients_reach_the_guest_over_forwarded_ports),
    ("user::restricted_guest_answers_but_does_not_call", restricted_guest_answers_but_does_not_call),
    ("user::large_transfer_with_offloads", large_transfer_with_offloads),
    ("user::large_transfer_without_offloads", large_transfer_without_offloads),
    ("user::large_transfer_over_ipv6", large_transfer_over_ipv6),
    ("user::guest_asks_and_is_answered_over_ipv6", guest_asks_and_is_answered_over_ipv6),
    ("user::ipv6_opens_no_way_past_what_is_restricted", ipv6_opens_no_way_past_what_is_restricted),
    ("user::slow_guest_loses_nothing", slow_guest_loses_nothing),
    ("user::port_in_use_is_named", port_in_use_is_named),
    ("user::ports_are_forwarded_anew_while_it_runs_all_or_none", ports_are_forwarded_anew_while_it_runs_all_or_none),
];

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);

fn dhcp_gives_the_configured_addresses() -> Outcome {
    let end = TestEnd::user(UserSpec::default());
    let (address, router, dns) = Guest::new(end.link(), true).dhcp();
    assert_eq!(address.to_string(), "10.0.2.15/24");
    assert_eq!((router, dns), (Some(HOST), vec![Ipv4Addr::new(10, 0, 2, 3)]));
    assert_eq!(end.link().mtu(), 1500);

    let spec = UserSpec {
        subnet: "192.168.64.0/20".parse().unwrap(),
        guest_addr: Some(Ipv4Addr::new(192, 168, 70, 9)),
        mtu: 9000,
        ..UserSpec::default()
    };
    let end = TestEnd::user(spec);
    let (address, router, dns) = Guest::new(end.link(), false).dhcp();
    assert_eq!(address.to_string(), "192.168.70.9/20");
    assert_eq!((router, dns), (Some(Ipv4Addr::new(192, 168, 64, 2)), vec![Ipv4Addr::new(192, 168, 64, 3)]));
    assert_eq!(end.link().mtu(), 9000);
    Outcome::Passed
}

fn guest_reaches_a_service_of_the_host_only_if_allowed() -> Outcome {
    let end = TestEnd::user(open_spec());
    let mut guest = Guest::with_dhcp(end.link(), true);
    let (port, echo) = echo_once(Ipv4Addr::LOCALHOST, 5);
    let handle = guest.tcp_connect(HOST, port);
    guest.tcp_send(handle, b"hello");
    assert_eq!(guest.tcp_recv(handle, 5), b"hello");
    echo.join().unwrap();

    let end = TestEnd::user(UserSpec::default());
    let mut guest = Guest::with_dhcp(end.link(), true);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let handle = guest.tcp_connect(HOST, listener.local_addr().unwrap().port());
    guest.run_for(Duration::from_millis(300));
    assert_ne!(guest.tcp(handle).state(), tcp::State::Established);
    assert!(listener.accept().is_err());
    Outcome::Passed
}

fn clients_reach_the_guest_over_forwarded_ports() -> Outcome {
    let (service, datagrams) = (forward(Protocol::Tcp, 6379), forward(Protocol::Udp, 5353));
    let end = TestEnd::user(UserSpec { forward: vec![service, datagrams], ..open_spec() });
    let mut guest = Guest::with_dhcp(end.link(), true);

    let handle = guest.tcp_listen(6379);
    let mut client = connect(&service);
    client.write_all(b"PING\r\n").unwrap();
    assert_eq!(guest.tcp_recv(handle, 6), b"PING\r\n");
    guest.tcp_send(handle, b"+PONG\r\n");
    // The guest must run for its answer to leave.
    guest.run_for(Duration::from_millis(50));
    let mut answer = [0; 7];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");

    let handle = guest.udp_bind(5353);
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.send_to(b"who?", (datagrams.host_addr, datagrams.host_port)).unwrap();
    guest.run_until("a datagram", |guest| guest.sockets.get_mut::<udp::Socket>(handle).can_recv());
    let socket = guest.sockets.get_mut::<udp::Socket>(handle);
    let (question, peer) = socket.recv().map(|(bytes, peer)| (bytes.to_vec(), peer)).unwrap();
    assert_eq!(question, b"who?");
    socket.send_slice(b"me", peer).unwrap();
    guest.run_for(Duration::from_millis(50));
    let mut answer = [0; 16];
    assert_eq!(client.recv(&mut answer).unwrap(), 2);
    assert_eq!(&answer[..2], b"me");
    Outcome::Passed
}

fn restricted_guest_answers_but_does_not_call() -> Outcome {
    let service = forward(Protocol::Tcp, 80);
    let end = TestEnd::user(UserSpec { forward: vec![service], restrict: true, ..open_spec() });
    let mut guest = Guest::with_dhcp(end.link(), true);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let handle = guest.tcp_connect(HOST, listener.local_addr().unwrap().port());
    guest.run_for(Duration::from_millis(300));
    assert_ne!(guest.tcp(handle).state(), tcp::State::Established);

    let handle = guest.tcp_listen(80);
    connect(&service).write_all(b"GET").unwrap();
    assert_eq!(guest.tcp_recv(handle, 3), b"GET");
    Outcome::Passed
}

/// Sends megabytes to the host and back; returns frames and bytes that left the guest.
fn transfer(offloads: bool) -> (Guest, end::EndStatus) {
    const LEN: usize = 8 << 20;
    let end = TestEnd::user(open_spec());
    let mut guest = Guest::with_dhcp(end.link(), offloads);
    let (port, echo) = echo_once(Ipv4Addr::LOCALHOST, LEN);
    let handle = guest.tcp_connect(HOST, port);
    let bytes = pattern(LEN);
    guest.tcp_send(handle, &bytes);
    assert!(guest.tcp_recv(handle, LEN) == bytes, "the echo differs");
    echo.join().unwrap();
    let status = end::status(&end.socket).unwrap();
    assert_eq!((status.malformed, status.to_guest_dropped), (0, 0));
    (guest, status)
}

fn large_transfer_with_offloads() -> Outcome {
    let (guest, status) = transfer(true);
    let long = guest.long_frames();
    assert!(long.sent > 100 && long.received > 100, "{} sent, {} received", long.sent, long.received);
    // In segments of 1,460 bytes it were more than 5,700 frames each way, acknowledgements apart.
    assert!(status.to_guest_frames < 3000, "{status:?}");
    Outcome::Passed
}

fn large_transfer_without_offloads() -> Outcome {
    let (guest, status) = transfer(false);
    let long = guest.long_frames();
    assert_eq!((long.sent, long.received), (0, 0));
    assert!(status.to_guest_frames > 5700, "{status:?}");
    Outcome::Passed
}

/// libslirp takes no frame over IPv6 that is longer than its MTU.
fn large_transfer_over_ipv6() -> Outcome {
    const LEN: usize = 2 << 20;
    for offloads in [true, false] {
        let end = TestEnd::user(open_spec());
        let mut guest = Guest::with_ipv6(end.link(), offloads);
        let (port, echo) = echo_once(Ipv6Addr::LOCALHOST, LEN);
        let handle = guest.tcp_connect(HOST6, port);
        let bytes = pattern(LEN);
        guest.tcp_send(handle, &bytes);
        assert!(guest.tcp_recv(handle, LEN) == bytes, "the echo differs");
        echo.join().unwrap();
        assert_eq!(guest.long_frames().sent > 20, offloads);
        let status = end::status(&end.socket).unwrap();
        assert_eq!((status.malformed, status.to_guest_dropped), (0, 0));
    }
    Outcome::Passed
}

fn guest_asks_and_is_answered_over_ipv6() -> Outcome {
    let end = TestEnd::user(open_spec());
    let mut guest = Guest::with_ipv6(end.link(), true);
    let service = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    service.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let handle = guest.udp_bind(4000);
    let socket = guest.sockets.get_mut::<udp::Socket>(handle);
    socket.send_slice(b"who?", (HOST6, service.local_addr().unwrap().port())).unwrap();
    let answering = std::thread::spawn(move || {
        let mut asked = [0; 16];
        let (len, from) = service.recv_from(&mut asked).unwrap();
        assert_eq!(&asked[..len], b"who?");
        service.send_to(b"me", from).unwrap();
    });
    guest.run_until("an answer", |guest| guest.sockets.get_mut::<udp::Socket>(handle).can_recv());
    answering.join().unwrap();
    assert_eq!(guest.sockets.get_mut::<udp::Socket>(handle).recv().unwrap().0, b"me");
    Outcome::Passed
}

fn ipv6_opens_no_way_past_what_is_restricted() -> Outcome {
    let off = UserSpec { ipv6: false, ..open_spec() };
    for spec in [UserSpec::default(), UserSpec { restrict: true, ..open_spec() }, off] {
        let end = TestEnd::user(spec);
        let mut guest = Guest::with_ipv6(end.link(), true);
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let handle = guest.tcp_connect(HOST6, listener.local_addr().unwrap().port());
        guest.run_for(Duration::from_millis(300));
        assert_ne!(guest.tcp(handle).state(), tcp::State::Established);
        assert!(listener.accept().is_err());
    }
    Outcome::Passed
}

fn slow_guest_loses_nothing() -> Outcome {
    const CLIENTS: u16 = 24;
    const LEN: usize = 1 << 20;
    let service = forward(Protocol::Tcp, 7);
    let end = TestEnd::user(UserSpec { forward: vec![service], ..UserSpec::default() });
    let mut guest = Guest::with_dhcp(end.link(), false);
    let handles: Vec<_> = (0..CLIENTS).map(|_| guest.tcp_listen(7)).collect();
    let bytes = pattern(LEN);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (mut client, bytes) = (connect(&service), bytes.clone());
            std::thread::spawn(move || client.write_all(&bytes).unwrap())
        })
        .collect();
    for _ in 0..5 {
        // The guest stands still while all of them send.
        std::thread::sleep(Duration::from_millis(100));
        guest.run_for(Duration::from_millis(20));
    }
    for handle in handles {
        assert!(guest.tcp_recv(handle, LEN) == bytes, "bytes differ");
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(end::status(&end.socket).unwrap().to_guest_dropped, 0);
    Outcome::Passed
}

fn port_in_use_is_named() -> Outcome {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut taken = forward(Protocol::Tcp, 80);
    taken.host_port = listener.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    let network = NetworkSpec::User(UserSpec { forward: vec![taken], ..UserSpec::default() });
    let error = spawn(network, Lifetime::UntilStopped, &socket).unwrap_err().to_string();
    assert_eq!(error, format!("cannot forward {taken}: Address already in use (os error 98)"));
    assert!(!socket.exists());
    Outcome::Passed
}

/// Ports that stay forwarded are not closed meanwhile, nor is a connection by one that is forwarded no more.
fn ports_are_forwarded_anew_while_it_runs_all_or_none() -> Outcome {
    let [first, second, third] = [80, 81, 82].map(|port| forward(Protocol::Tcp, port));
    let end = TestEnd::user(UserSpec { forward: vec![first, second], ..UserSpec::default() });
    let mut guest = Guest::with_dhcp(end.link(), true);
    let reaches = |guest: &mut Guest, forward: &PortForward, port: u16, word: &[u8; 3]| {
        let handle = guest.tcp_listen(port);
        let mut client = connect(forward);
        client.write_all(word).unwrap();
        assert_eq!(guest.tcp_recv(handle, 3), word);
        (handle, client)
    };
    let (handle, mut old) = reaches(&mut guest, &first, 80, b"one");
    // Another guest port behind the second, the first no more, a third.
    let moved = PortForward { guest_port: 83, ..second };
    assert_eq!(end::forward(&end.socket, &[moved, third]).unwrap().forward, Some(vec![moved, third]));
    reaches(&mut guest, &moved, 83, b"two");
    reaches(&mut guest, &third, 82, b"new");
    assert!(TcpStream::connect((first.host_addr, first.host_port)).is_err());
    old.write_all(b"yet").unwrap();
    assert_eq!(guest.tcp_recv(handle, 3), b"yet");

    // None of it where one cannot be.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = PortForward { host_port: listener.local_addr().unwrap().port(), ..first };
    let refused = end::forward(&end.socket, &[first, taken, second]).unwrap_err().to_string();
    assert_eq!(refused, format!("cannot forward {taken}: Address already in use (os error 98)"));
    assert!(TcpStream::connect((first.host_addr, first.host_port)).is_err());
    reaches(&mut guest, &moved, 83, b"two");
    reaches(&mut guest, &third, 82, b"new");
    end::forward(&end.socket, &[]).unwrap();
    assert!(TcpStream::connect((third.host_addr, third.host_port)).is_err());
    Outcome::Passed
}
