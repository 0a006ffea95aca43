//! The network between the machines, and the world outside of them, where clients are.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};

use crate::page::HOSTS;
use crate::support::emulated::qemu;
use crate::support::guest::free_port;
use crate::switch::{Participant, Switch};

/// The network, and the address that the outside has there.
const SUBNET: &str = "net=192.0.2.0/24,host=192.0.2.2,dhcpstart=192.0.2.200";
/// The switch's port to the outside, after those to the machines.
const OUTSIDE: usize = HOSTS.len();

/// A switch that every machine is connected to, and QEMU without a machine as a further participant: its user-mode stack connects to guests for clients
/// of this machine. That takes no root. Connections end in that process, so they outlive the machines.
pub struct Network {
    switch: Switch,
    ports: Vec<(SocketAddr, u16)>,
    outside: Child,
}

impl Network {
    /// A network from whose outside these guests' ports can be reached.
    pub fn new(services: &[SocketAddr]) -> Self {
        let machine = Participant { takes_unknown: true };
        // It would answer whatever it gets, also what is for others.
        let outside = Participant { takes_unknown: false };
        let switch = Switch::new(&[[machine; HOSTS.len()].as_slice(), &[outside]].concat());
        let ports: Vec<(SocketAddr, u16)> = services.iter().map(|service| (*service, free_port())).collect();
        let forwards: Vec<String> = ports
            .iter()
            .map(|(service, port)| format!("hostfwd=tcp:127.0.0.1:{port}-{}:{}", service.ip(), service.port()))
            .collect();
        let outside = qemu::program()
            .args(["-M", "none", "-nodefaults", "-display", "none"])
            .args(["-netdev", &format!("user,id=outside,restrict=on,{SUBNET},{}", forwards.join(","))])
            .args(["-netdev", &switch.port(OUTSIDE, "net")])
            .args(["-netdev", "hubport,id=outside-port,hubid=0,netdev=outside"])
            .args(["-netdev", "hubport,id=net-port,hubid=0,netdev=net"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { switch, ports, outside }
    }

    /// QEMU's words for a machine's port.
    pub fn port(&self, machine: usize, id: &str) -> String {
        self.switch.port(machine, id)
    }

    /// Where clients reach a service from outside.
    pub fn address_of(&self, service: SocketAddr) -> SocketAddr {
        let (_, port) = self.ports.iter().find(|(known, _)| *known == service).unwrap();
        (Ipv4Addr::LOCALHOST, *port).into()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}
