//! The bridged network, in network namespaces of the tests' own.
#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use network::end::{self, EndConfig, Lifetime};
use network::{Attach, BridgeState, FRAME_LEN_MAX, FrameBackend, Link, ReceiveOffloads, find_bridge};
use smoltcp::wire::Ipv4Cidr;
use spec::{BridgeSpec, NetworkSpec};

use crate::guest::Guest;
use crate::host::{TestEnd, echo_once, pattern, spawn, this_program};
use crate::{Outcome, Test};

pub const TESTS: &[Test] = &[
    ("bridge::guest_talks_to_the_bridge_with_offloads", guest_talks_to_the_bridge_with_offloads),
    ("bridge::guest_talks_to_the_bridge_without_offloads", guest_talks_to_the_bridge_without_offloads),
    ("bridge::tap_is_a_quiet_port_and_vanishes_with_its_end", tap_is_a_quiet_port_and_vanishes_with_its_end),
    ("bridge::taps_of_one_guest_have_addresses_of_their_own", taps_of_one_guest_have_addresses_of_their_own),
    ("bridge::deleted_tap_ends_the_end", deleted_tap_ends_the_end),
    ("bridge::deleted_bridge_ends_the_end", deleted_bridge_ends_the_end),
    (
        "bridge::frames_from_long_before_a_takeover_do_not_reach_the_guest",
        frames_from_long_before_a_takeover_do_not_reach_the_guest,
    ),
    ("bridge::a_bridge_is_made_with_its_ports_once", a_bridge_is_made_with_its_ports_once),
    ("bridge::mistakes_are_named", mistakes_are_named),
];

const BRIDGE_ADDR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Moves this thread, and what it starts from now on, to a new network namespace with a bridge `br0`. Says why not.
fn enter_namespace() -> Result<(), &'static str> {
    // SAFETY: plain calls; a new network namespace affects this thread only.
    let entered = unsafe { libc::geteuid() == 0 && libc::unshare(libc::CLONE_NEWNET) == 0 };
    if !entered {
        return Err("making a network namespace needs root");
    }
    if ip("link add br0 type bridge").is_err() {
        return Err("the program `ip` is missing, or there are no bridges");
    }
    ip("addr add 10.99.0.1/24 dev br0").unwrap();
    ip("link set br0 up").unwrap();
    Ok(())
}

/// Runs `ip`, which must succeed, and returns what it says.
fn ip(arguments: &str) -> io::Result<String> {
    let output = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(io::Error::other(format!("ip {arguments} failed"))) }
}

fn spec() -> BridgeSpec {
    BridgeSpec { mac: None, bridge: "br0".into(), tap: Some("tap0".into()) }
}

fn transfer(offloads: bool) -> Guest {
    const LEN: usize = 4 << 20;
    let end = TestEnd::new(NetworkSpec::Bridge(spec()));
    let mut guest = Guest::new(end.link(), offloads);
    guest.set_address(Ipv4Cidr::new(Ipv4Addr::new(10, 99, 0, 2), 24), None);
    let (port, echo) = echo_once(BRIDGE_ADDR, LEN);
    let handle = guest.tcp_connect(BRIDGE_ADDR, port);
    let bytes = pattern(LEN);
    guest.tcp_send(handle, &bytes);
    assert!(guest.tcp_recv(handle, LEN) == bytes, "the echo differs");
    echo.join().unwrap();
    assert_eq!(end::status(&end.socket).unwrap().malformed, 0);
    guest
}

fn guest_talks_to_the_bridge_with_offloads() -> Outcome {
    if let Err(reason) = enter_namespace() {
        return Outcome::Skipped(reason);
    }
    let long = transfer(true).long_frames();
    assert!(long.sent > 20 && long.received > 20, "{} sent, {} received", long.sent, long.received);
    Outcome::Passed
}

fn guest_talks_to_the_bridge_without_offloads() -> Outcome {
    if let Err(reason) = enter_namespace() {
        return Outcome::Skipped(reason);
    }
    let long = transfer(false).long_frames();
    assert_eq!((long.sent, long.received), (0, 0));
    Outcome::Passed
}

fn tap_is_a_quiet_port_and_vanishes_with_its_end() -> Outcome {
    if let Err(reason) = enter_namespace() {
        return Outcome::Skipped(reason);
    }
    ip("link set br0 mtu 1400").unwrap();
    let end = TestEnd::new(NetworkSpec::Bridge(spec()));
    let port = ip("link show dev tap0").unwrap();
    assert!(port.contains("master br0") && port.contains("mtu 1400"), "{port}");
    // A bridge takes the lowest address of its ports.
    assert!(port.contains("link/ether fe:ff:"), "{port}");
    assert_eq!(end.link().mtu(), 1400);
    assert!(ip("-6 addr show dev tap0").unwrap().is_empty());
    drop(end);
    assert!(ip("link show").unwrap().contains("br0") && !ip("link show").unwrap().contains("tap0"));
    // The kernel chooses a name where the spec has none.
    let end = TestEnd::new(NetworkSpec::Bridge(BridgeSpec { tap: None, ..spec() }));
    assert!(ip("link show master br0").unwrap().contains("tap"));
    end.process.stop().unwrap();
    Outcome::Passed
}

/// A VM's replicas have a TAP device on each of their hosts. The addresses of these were the same, and a bridge that had taken its own for its own was
/// thought by the other host to be itself.
fn taps_of_one_guest_have_addresses_of_their_own() -> Outcome {
    if let Err(reason) = enter_namespace() {
        return Outcome::Skipped(reason);
    }
    let [first, second] = ["tap0", "tap1"].map(|tap| {
        let end = TestEnd::new(NetworkSpec::Bridge(BridgeSpec { tap: Some(tap.into()), ..spec() }));
        let port = ip(&format!("-brief link show dev {tap}")).unwrap();
        drop(end);
        port.split_whitespace().nth(2).unwrap().to_owned()
    });
    assert_ne!(first, second);
    Outcome::Passed
}

fn deleted_tap_ends_the_end() -> Outcome {
    if let Err(reason) = enter_namespace() {
        return Outcome::Skipped(reason);
    }
    let end = TestEnd::new(NetworkSpec::Bridge(spec()));
    let mut guest = Guest::new(end.link(), true);
    ip("link del tap0").unwrap();
    guest.run_until("the end of the end", |_| !end.socket.exists());
    guest.run_for(Duration::from_millis(10));
    Outcome::Passed
}

/// Its TAP device lives on, and nothing would come over it any more.
fn deleted_bridge_ends_the_end() -> Outcome {
    if let Err(reason) = enter_namespace() {
        return Outcome::Skipped(reason);
    }
    let end = TestEnd::new(NetworkSpec::Bridge(spec()));
    let mut guest = Guest::new(end.link(), true);
    ip("link del br0").unwrap();
    // Another one of the same name is not the one that the device was connected to.
    ip("link add br0 type bridge").unwrap();
    guest.run_until("the end of the end", |_| !end.socket.exists());
    Outcome::Passed
}

/// The end of a secondary, to which nobody is connected, gets what the bridge sends to all ports.
fn frames_from_long_before_a_takeover_do_not_reach_the_guest() -> Outcome {
    const OLD: u32 = 6000;
    let max_age = Duration::from_secs(1);
    if let Err(reason) = enter_namespace() {
        return Outcome::Skipped(reason);
    }
    let end = TestEnd::new(NetworkSpec::Bridge(spec()));
    let socket = UdpSocket::bind((BRIDGE_ADDR, 0)).unwrap();
    socket.set_broadcast(true).unwrap();
    let everybody = (Ipv4Addr::new(10, 99, 0, 255), 9);
    // More than the end and its device hold.
    for number in 0..OLD {
        socket.send_to(&number.to_be_bytes(), everybody).unwrap();
        if number % 100 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    thread::sleep(max_age + Duration::from_millis(100));
    let attach = Attach { max_age: Some(max_age), ..Attach::default() };
    let mut link = Link::connect(&end.socket, &attach).unwrap();
    link.accept(ReceiveOffloads::default()).unwrap();
    socket.send_to(&OLD.to_be_bytes(), everybody).unwrap();
    let (mut buffer, deadline) = (vec![0; FRAME_LEN_MAX], Instant::now() + Duration::from_secs(30));
    loop {
        assert!(Instant::now() < deadline, "nothing comes");
        let Some(received) = link.recv(&mut buffer).unwrap() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        // Ethernet, IP and UDP without options, then the number; padding may follow.
        let frame = &buffer[..received.len];
        if frame.len() >= 46 && frame[12..14] == [8, 0] && frame[23] == 17 {
            let number = u32::from_be_bytes(frame[42..46].try_into().unwrap());
            assert_eq!(number, OLD, "a frame of long ago");
            return Outcome::Passed;
        }
    }
}

/// Row 32: `twinvm network add --create`.
fn a_bridge_is_made_with_its_ports_once() -> Outcome {
    if let Err(reason) = enter_namespace() {
        return Outcome::Skipped(reason);
    }
    ip("link add veth0 type veth peer name veth1").unwrap();
    let error = |name: &str, ports: &[String]| find_bridge(name, !ports.is_empty(), ports).unwrap_err().to_string();
    assert!(error("br7", &[]).contains("`twinvm network add br7 --create`"), "{}", error("br7", &[]));
    assert_eq!(error("lo", &[]), "network interface `lo` is not a bridge");
    assert_eq!(error("veth1", &["veth0".into()]), "network interface `veth1` is not a bridge");
    assert!(error("br/7", &[]).contains("cannot be the name"));
    assert_eq!(find_bridge("br0", true, &[]).unwrap(), BridgeState::Found);
    assert_eq!(find_bridge("br7", true, &["veth0".to_owned()]).unwrap(), BridgeState::Created);
    let (bridge, port) = (ip("-o link show br7").unwrap(), ip("-o link show veth0").unwrap());
    assert!(bridge.contains(",UP"), "{bridge}");
    assert!(port.contains("master br7") && port.contains(",UP"), "{port}");
    assert_eq!(find_bridge("br7", true, &[]).unwrap(), BridgeState::Found);
    assert!(error("br7", &["nonesuch".into()]).contains("attaching nonesuch"));
    Outcome::Passed
}

fn mistakes_are_named() -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("net.sock");
    if let Err(reason) = enter_namespace() {
        // What an end without privilege says can be seen without privilege.
        let error =
            spawn(NetworkSpec::Bridge(BridgeSpec { bridge: "lo".into(), ..spec() }), Lifetime::WithParent, &socket);
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("network mode `bridge` needs root or CAP_NET_ADMIN: "), "{error}");
        return Outcome::Skipped(reason);
    }
    let error = |bridge: &str| {
        let network = NetworkSpec::Bridge(BridgeSpec { bridge: bridge.into(), ..spec() });
        spawn(network, Lifetime::WithParent, &socket).unwrap_err().to_string()
    };
    assert!(error("br7").starts_with("there is no network interface `br7`"), "{}", error("br7"));
    assert_eq!(error("lo"), "network interface `lo` is not a bridge");
    assert!(!ip("link show").unwrap().contains("tap0"));
    without_privilege(&socket);
    Outcome::Passed
}

/// The same end, run as nobody.
fn without_privilege(socket: &Path) {
    let config = EndConfig { network: NetworkSpec::Bridge(spec()), lifetime: Lifetime::WithParent };
    let json = serde_json::to_string(&config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), permissions).unwrap();
    let socket = folder.path().join(socket.file_name().unwrap());
    // A copy, as nobody may not be allowed to reach the original.
    let program = folder.path().join("net-end");
    std::fs::copy(this_program(), &program).unwrap();
    let output = Command::new(program)
        .args(["net-end", "--config", &json, "--socket"])
        .arg(&socket)
        .uid(65_534)
        .gid(65_534)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("error: network mode `bridge` needs root or CAP_NET_ADMIN: "), "{said}");
}
