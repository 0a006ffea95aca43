//! The link between two living hosts is cut: hosts in network namespaces of their own.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Client;
use crate::faults::{assert_survives, assert_whole};
use crate::replicas::{Replica, Setup, World};
use crate::support::{HUNG, skipped};

/// Two namespaces and a cable; removed when dropped.
pub struct Cable {
    names: [String; 2],
}

pub fn ip(arguments: &[&str]) -> bool {
    let output = Command::new("ip").args(arguments).output().unwrap();
    if !output.status.success() {
        eprintln!("ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// Whether this process may make network namespaces. If not, a test that needs them says so.
pub fn may_make_namespaces() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skipped("network namespaces need root");
    }
    is_root
}

impl Cable {
    /// Addresses at its ends.
    const ADDRESSES: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

    fn lay(test: &str) -> Self {
        let id = std::process::id();
        let cable = Self { names: [format!("tw{id}{test}a"), format!("tw{id}{test}b")] };
        let [a, b] = &cable.names;
        assert!(ip(&["netns", "add", a]) && ip(&["netns", "add", b]));
        assert!(ip(&["-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b]));
        for (name, address) in cable.names.iter().zip(Self::ADDRESSES) {
            assert!(ip(&["-n", name, "addr", "add", &format!("{address}/24"), "dev", "eth0"]));
            assert!(ip(&["-n", name, "link", "set", "eth0", "up"]) && ip(&["-n", name, "link", "set", "lo", "up"]));
        }
        cable
    }

    fn cut(&self) {
        assert!(ip(&["-n", &self.names[0], "link", "set", "eth0", "down"]));
    }

    fn mend(&self) {
        assert!(ip(&["-n", &self.names[0], "link", "set", "eth0", "up"]));
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&["netns", "del", name]);
        }
    }
}

/// Waits until one of two replicas has ended, having lost, and the other one runs the VM alone; returns the latter.
fn wait_for_one_to_go_on(replicas: [Replica; 2]) -> Replica {
    let deadline = Instant::now() + HUNG;
    let alone = |status: &Value| status["role"] == "primary" && status["protection"]["state"] == "need-secondary";
    let [a, b] = replicas;
    let (loser, winner) = loop {
        assert!(Instant::now() < deadline, "nobody goes on\n{}\n{}", a.log(), b.log());
        match (a.status(), b.status()) {
            (Err(_), Ok(status)) if alone(&status) => break (a, b),
            (Ok(status), Err(_)) if alone(&status) => break (b, a),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(loser.wait_for_end()["end"], "lost-arbitration");
    winner
}

#[test]
fn exactly_one_goes_on_when_the_link_is_cut() {
    if !may_make_namespaces() {
        return;
    }
    let cable = Cable::lay("p");
    let setup = Setup { suspicion_ms: 500, ..Setup::redis() };
    let mut world = World::new(setup);
    world.place("a", &cable.names[0], Cable::ADDRESSES[0]);
    world.place("b", &cable.names[1], Cable::ADDRESSES[1]);
    let mut primary = world.booted();
    let client = Client::start(world.address());
    for _ in 0..3 {
        let other = if primary.host == "a" { "b" } else { "a" };
        let secondary = world.protect(&primary, other);
        client.wait_for_progress(50);
        cable.cut();
        primary = wait_for_one_to_go_on([primary, secondary]);
        client.wait_for_progress(50);
        cable.mend();
    }
    assert_whole(&client.stop());
}

#[test]
fn a_link_cut_during_the_first_copy_costs_the_client_nothing() {
    if !may_make_namespaces() {
        return;
    }
    let cable = Cable::lay("s");
    let setup = Setup { suspicion_ms: 500, ..Setup::redis() };
    let mut world = World::new(setup);
    world.place("a", &cable.names[0], Cable::ADDRESSES[0]);
    world.place("b", &cable.names[1], Cable::ADDRESSES[1]);
    let primary = world.booted();
    let client = Client::start(world.address());
    let secondary = world.start_secondary("b");
    primary.protect_by(&secondary);
    std::thread::sleep(Duration::from_millis(100));
    cable.cut();
    primary.wait_until_alone();
    assert_eq!(secondary.wait_for_end()["end"], "released");
    client.wait_for_progress(50);
    cable.mend();
    let secondary = world.protect(&primary, "b");
    assert_survives(primary, &secondary, client);
}
