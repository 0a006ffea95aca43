//! The network between the machines, and the world outside of them, where clients are.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Stdio};

use crate::support::emulated::qemu;
use crate::support::guest::free_port;

/// The multicast group that frames go to, within this machine.
const GROUP: Ipv4Addr = Ipv4Addr::new(230, 0, 0, 1);
/// The network, and the address that the outside has there.
const SUBNET: &str = "net=192.0.2.0/24,host=192.0.2.2,dhcpstart=192.0.2.200";

/// A network that every machine is connected to, and QEMU without a machine as a further participant: its user-mode stack connects to guests for clients
/// of this machine. That takes no root. Connections end in that process, so they outlive the machines.
pub struct Network {
    group_port: u16,
    ports: Vec<(SocketAddr, u16)>,
    outside: Child,
}

impl Network {
    /// A network from whose outside these guests' ports can be reached.
    pub fn new(services: &[SocketAddr]) -> Self {
        let group_port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let ports: Vec<(SocketAddr, u16)> = services.iter().map(|service| (*service, free_port())).collect();
        let forwards: Vec<String> = ports
            .iter()
            .map(|(service, port)| format!("hostfwd=tcp:127.0.0.1:{port}-{}:{}", service.ip(), service.port()))
            .collect();
        let outside = qemu::program()
            .args(["-M", "none", "-nodefaults", "-display", "none"])
            .args(["-netdev", &format!("user,id=outside,restrict=on,{SUBNET},{}", forwards.join(","))])
            .args(["-netdev", &participant(group_port, "net")])
            .args(["-netdev", "hubport,id=outside-port,hubid=0,netdev=outside"])
            .args(["-netdev", "hubport,id=net-port,hubid=0,netdev=net"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { group_port, ports, outside }
    }

    /// QEMU's words for a participant.
    pub fn participant(&self, id: &str) -> String {
        participant(self.group_port, id)
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

fn participant(group_port: u16, id: &str) -> String {
    format!("socket,id={id},mcast={GROUP}:{group_port},localaddr=127.0.0.1")
}
