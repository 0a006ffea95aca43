//! Peers that are not what they should be.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use replication::channel::{self, ChannelError, Connection};

use crate::client::Client;
use crate::faults::assert_whole;
use crate::replicas::{Replica, Setup, World};

const TIMEOUT: Duration = Duration::from_secs(10);

fn listens_at(secondary: &Replica) -> SocketAddr {
    secondary.status().unwrap()["listen"].as_str().unwrap().parse().unwrap()
}

/// After everything that was done to it, the secondary can still be what it is for.
fn assert_usable(world: &mut World, primary: &Replica, secondary: Replica) {
    let client = Client::start(world.address());
    primary.protect_by(&secondary);
    primary.wait_until_protected();
    client.wait_for_progress(20);
    // Whoever comes while a primary is connected is not heard.
    let _late = TcpStream::connect(listens_at(&secondary));
    client.wait_for_progress(20);
    assert_eq!(primary.status().unwrap()["protection"]["state"], "protected");
    assert_whole(&client.stop());
}

#[test]
fn garbage_instead_of_a_connection_does_no_harm() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let secondary = world.start_secondary("b");
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 70_000], &[0x16, 3, 1, 0xff, 0xff, 1], b""] {
        let mut stream = TcpStream::connect(listens_at(&secondary)).unwrap();
        // It may be closed before all of it is written.
        let _ = stream.write_all(garbage);
    }
    assert_usable(&mut world, &primary, secondary);
}

#[test]
fn whoever_has_no_certificate_of_the_cluster_is_refused() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let secondary = world.start_secondary("b");
    let stranger = world.identity("another-authority", "a");
    let refused = channel::connect(listens_at(&secondary), &stranger, "b", TIMEOUT);
    assert!(refused.is_err(), "a certificate of another cluster was accepted");
    let own = world.identity("authority", "a");
    let mistaken = channel::connect(listens_at(&secondary), &own, "c", TIMEOUT);
    assert!(mistaken.is_err(), "the secondary's certificate passed for that of another host");
    assert_usable(&mut world, &primary, secondary);
}

#[test]
fn garbage_from_a_host_of_the_cluster_does_no_harm() {
    let mut world = World::new(Setup::redis());
    let primary = world.booted();
    let secondary = world.start_secondary("b");
    let identity = world.identity("authority", "c");
    // Messages of every kind, short and as long as can be, from a host that is not the primary.
    for kind in 0..=u8::MAX {
        for len in [0, 1, 8, 4000] {
            let address = listens_at(&secondary);
            let connection = channel::connect(address, &identity, "b", TIMEOUT).unwrap();
            let _ = say(connection, kind, &vec![0xa5; len]);
        }
        if kind == 20 {
            break;
        }
    }
    assert_usable(&mut world, &primary, secondary);
}

fn say(connection: Connection, kind: u8, payload: &[u8]) -> Result<(), ChannelError> {
    let (mut sender, mut receiver, _closer) = connection.split();
    sender.send(kind, &[payload])?;
    sender.flush()?;
    // Refused with an answer, or without.
    receiver.recv(Some(TIMEOUT)).map(|_| ())
}
