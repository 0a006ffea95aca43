//! A guest with an address of its own, on bridges: each host has its own network end, as on separate machines. Hosts are network
//! namespaces, and so is the switch, a bridge that they are connected to; the client is there as well. So these tests share no address with
//! the machine that they run on, nor with what an earlier run that was killed has left.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use std::{fs, panic, thread};

use network::end::{EndConfig, Lifetime};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use spec::{BridgeSpec, NetworkSpec};

use crate::client::Client;
use crate::faults::{assert_survives, assert_whole};
use crate::partition::{ip, may_make_namespaces};
use crate::replicas::{Replica, Setup, World};
use crate::support::HUNG;

/// The client's address, on the switch.
const CLIENT: &str = "10.98.0.1/24";
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);

/// The bridge that is the switch.
const SWITCH: &str = "switch";

/// The switch; removed when dropped, with everything that is connected to it.
pub struct Switch {
    /// Its namespace.
    name: String,
    pub hosts: Vec<Host>,
}

/// A host: its namespace, and the network end of the VM there.
pub struct Host {
    pub namespace: String,
    pub socket: PathBuf,
    end: Child,
}

impl Switch {
    /// Makes one and moves the calling thread there, and with it the threads that it starts from now on.
    pub fn enter() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tws{}n{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        assert!(ip(&["netns", "add", &name]));
        let switch = Self { name, hosts: Vec::new() };
        let namespace = fs::File::open(Path::new("/run/netns").join(&switch.name)).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        assert!(ip(&["link", "add", SWITCH, "type", "bridge"]) && ip(&["addr", "add", CLIENT, "dev", SWITCH]));
        assert!(ip(&["link", "set", SWITCH, "up"]) && ip(&["link", "set", "lo", "up"]));
        switch
    }

    /// Connects a host with a bridge of its own, which has the host's address.
    pub fn connect(&mut self, folder: &Path, address: &str) -> &Host {
        self.connect_by(folder, address, None)
    }

    /// The same, by a network card with this MAC address.
    fn connect_by(&mut self, folder: &Path, address: &str, mac: Option<&str>) -> &Host {
        let number = self.hosts.len();
        let (namespace, port) = (format!("{}h{number}", self.name), format!("port{number}"));
        assert!(ip(&["netns", "add", &namespace]));
        assert!(ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]));
        assert!(ip(&["link", "set", &port, "master", SWITCH, "up"]));
        let inside = |arguments: &[&str]| ip(&[&["-n", &namespace], arguments].concat());
        assert!(mac.is_none_or(|mac| inside(&["link", "set", "eth0", "address", mac])));
        assert!(inside(&["link", "add", "br0", "type", "bridge"]));
        assert!(inside(&["link", "set", "eth0", "master", "br0", "up"]));
        assert!(inside(&["addr", "add", &format!("{address}/24"), "dev", "br0"]));
        assert!(inside(&["link", "set", "br0", "up"]) && inside(&["link", "set", "lo", "up"]));
        let socket = folder.join(format!("end{number}.sock"));
        let end = start_end(&namespace, &socket);
        self.hosts.push(Host { namespace, socket, end });
        self.hosts.last().unwrap()
    }
}

impl Host {
    pub fn kill_end(&mut self) {
        self.end.kill().unwrap();
        self.end.wait().unwrap();
    }

    /// What whoever owns it does when it has died.
    fn restart_end(&mut self) {
        self.end = start_end(&self.namespace, &self.socket);
    }
}

fn start_end(namespace: &str, socket: &Path) -> Child {
    let config = EndConfig {
        network: NetworkSpec::Bridge(BridgeSpec { mac: None, bridge: "br0".to_owned(), tap: None }),
        lifetime: Lifetime::UntilStopped,
    };
    let end = Command::new("ip")
        .args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_twinvm"), "net-end", "--config"])
        .arg(serde_json::to_string(&config).unwrap())
        .arg("--socket")
        .arg(socket)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + HUNG;
    while network::end::status(socket).is_err() {
        assert!(Instant::now() < deadline, "the network end does not answer");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    end
}

/// Runs a test in a thread of its own, which may go to another network namespace: the tests' threads may be used again. Without the right to
/// make namespaces it does not run.
pub fn on_bridges(test: fn()) {
    if may_make_namespaces()
        && let Err(failure) = thread::spawn(test).join()
    {
        panic::resume_unwind(failure);
    }
}

/// A service on bridges, protected: primary on `a`, secondary on `b`, and a client that counts.
fn bridged(folder: &Path) -> (Switch, World, Replica, Replica, Client) {
    let mut switch = Switch::enter();
    let mut world = World::new(Setup::redis());
    world.set_guest_address(GUEST);
    for (number, name) in ["a", "b"].into_iter().enumerate() {
        let address = format!("10.98.0.{}", 11 + number);
        let host = switch.connect(folder, &address);
        world.place(name, &host.namespace, &address);
        world.set_end(name, &host.socket);
    }
    let primary = world.booted();
    let secondary = world.protect(&primary, "b");
    let client = Client::start(world.address());
    client.wait_for_progress(50);
    (switch, world, primary, secondary, client)
}

/// Unlike those through a user-mode one, connections over a bridge are the guest's own.
#[test]
fn a_connection_over_bridges_survives_the_death_of_network_ends() {
    on_bridges(|| {
        let folder = tempfile::tempdir().unwrap();
        let (mut switch, _world, primary, secondary, client) = bridged(folder.path());
        // That of the primary, then that of the secondary.
        for number in [0, 1] {
            switch.hosts[number].kill_end();
            switch.hosts[number].restart_end();
            client.wait_for_progress(50);
        }
        primary.wait_until_protected();
        secondary.wait("its network", |status| status["faults"].as_array().is_some_and(Vec::is_empty));
        switch.hosts[0].kill_end();
        primary.kill();
        secondary.wait_for_takeover();
        client.wait_for_progress(50);
        // That of a primary that has taken over.
        switch.hosts[1].kill_end();
        switch.hosts[1].restart_end();
        client.wait_for_progress(50);
        assert_whole(&client.stop());
    });
}

#[test]
fn a_vm_whose_network_end_does_not_come_back_moves_to_its_secondary() {
    on_bridges(|| {
        let folder = tempfile::tempdir().unwrap();
        let (mut switch, _world, primary, secondary, client) = bridged(folder.path());
        switch.hosts[0].kill_end();
        secondary.wait_for_takeover();
        assert_eq!(primary.wait_for_end()["end"], "lost-arbitration");
        client.wait_for_progress(50);
        assert_whole(&client.stop());
    });
}

impl Drop for Switch {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            let _ = host.end.kill();
            let _ = host.end.wait();
            ip(&["netns", "del", &host.namespace]);
        }
        ip(&["netns", "del", &self.name]);
    }
}

#[test]
fn a_connection_over_bridges_survives_the_loss_of_the_host_and_its_network_end() {
    on_bridges(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut switch = Switch::enter();
        let mut world = World::new(Setup::redis());
        world.set_guest_address(GUEST);
        for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
            let address = format!("10.98.0.{}", 11 + number);
            // The highest there is: the bridge takes that of the guest's TAP device for its own, and the hosts still reach each other.
            let mac = format!("fe:ff:ff:ff:ff:f{number}");
            let host = switch.connect_by(folder.path(), &address, Some(&mac));
            world.place(name, &host.namespace, &address);
            world.set_end(name, &host.socket);
        }
        let mut primary = world.booted();
        let client = Client::start(world.address());
        for (number, name) in ["b", "c"].into_iter().enumerate() {
            let secondary = world.protect(&primary, name);
            client.wait_for_progress(50);
            // All of the host dies.
            switch.hosts[number].end.kill().unwrap();
            primary.kill();
            secondary.wait_for_takeover();
            client.wait_for_progress(50);
            primary = secondary;
        }
        assert_whole(&client.stop());
    });
}

/// Nobody is connected to a secondary's own network end before it takes over, and it notices all the same when that is gone.
#[test]
fn a_secondary_without_its_network_end_makes_room_for_another() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    world.set_end("b", Path::new("/nonexistent/end.sock"));
    let useless = world.start_secondary("b");
    primary.protect_by(&useless);
    let end = useless.wait_for_end();
    assert_eq!(end["end"], "failed", "{end}");
    primary.wait_until_alone();
    let client = Client::start(world.address());
    let secondary = world.protect(&primary, "c");
    client.wait_for_progress(50);
    assert_survives(primary, &secondary, client);
}
