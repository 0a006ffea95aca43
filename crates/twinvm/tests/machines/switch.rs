//! A switch: a frame goes where its destination was last heard of, and to all where nobody knows.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes of an address of Ethernet.
const ADDRESS_LEN: usize = 6;
/// More than any frame has.
const FRAME_MAX: usize = 65_536;
/// How often a thread looks whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Who is at a port.
#[derive(Clone, Copy)]
pub struct Participant {
    /// It gets frames to addresses that were not heard of yet, as at any switch.
    pub takes_unknown: bool,
}

/// The switch; it ends when this is dropped. QEMU sends it a frame a datagram.
pub struct Switch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Port {
    participant: Participant,
    socket: UdpSocket,
    /// The UDP port of whoever is there.
    peer: u16,
}

struct Shared {
    ports: Vec<Port>,
    /// Where addresses were last heard of.
    known: Mutex<HashMap<[u8; ADDRESS_LEN], usize>>,
    stop: AtomicBool,
}

impl Switch {
    /// A switch with a port for each participant.
    pub fn new(participants: &[Participant]) -> Self {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // All at the same time, so that they differ.
        let peers: Vec<UdpSocket> = participants.iter().map(|_| bind()).collect();
        let port = |(participant, peer): (&Participant, &UdpSocket)| {
            let socket = bind();
            socket.set_read_timeout(Some(LOOK_INTERVAL)).unwrap();
            Port { participant: *participant, socket, peer: peer.local_addr().unwrap().port() }
        };
        let ports = participants.iter().zip(&peers).map(port).collect();
        let shared = Arc::new(Shared { ports, known: Mutex::default(), stop: AtomicBool::default() });
        let serve = |number| {
            let shared = shared.clone();
            thread::spawn(move || shared.serve(number))
        };
        let threads = (0..participants.len()).map(serve).collect();
        Self { shared, threads }
    }

    /// QEMU's words for what is connected to a port.
    pub fn port(&self, number: usize, id: &str) -> String {
        let Port { socket, peer, .. } = &self.shared.ports[number];
        let own = socket.local_addr().unwrap().port();
        format!("socket,id={id},udp=127.0.0.1:{own},localaddr=127.0.0.1:{peer}")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Passes on what comes in by a port.
    fn serve(&self, number: usize) {
        let mut frame = [0; FRAME_MAX];
        while !self.stop.load(Ordering::Acquire) {
            match self.ports[number].socket.recv(&mut frame) {
                Ok(len) => self.pass(number, &frame[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                // Nobody is at the port at the moment.
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn pass(&self, from: usize, frame: &[u8]) {
        for to in self.destinations(from, frame) {
            let Port { socket, peer, .. } = &self.ports[to];
            // A machine without power hears nothing.
            let _ = socket.send_to(frame, (Ipv4Addr::LOCALHOST, *peer));
        }
    }

    /// The ports that a frame goes to; notes where it comes from.
    fn destinations(&self, from: usize, frame: &[u8]) -> Vec<usize> {
        let Some((destination, rest)) = frame.split_first_chunk::<ADDRESS_LEN>() else { return Vec::new() };
        let Some(source) = rest.first_chunk::<ADDRESS_LEN>() else { return Vec::new() };
        let mut known = self.known.lock().unwrap();
        known.insert(*source, from);
        let is_for_many = destination[0] & 1 == 1;
        match known.get(destination) {
            Some(&to) => Vec::from_iter((to != from).then_some(to)),
            None => {
                let takes = |port: &Port| is_for_many || port.participant.takes_unknown;
                let others = (0..self.ports.len()).filter(|&to| to != from);
                others.filter(|&to| takes(&self.ports[to])).collect()
            }
        }
    }
}

#[test]
fn frames_go_where_their_destination_was_heard_of() {
    let switch = Switch::new(&[true, true, true, false].map(|takes_unknown| Participant { takes_unknown }));
    let frame = |to: u8, from: u8| [[to; ADDRESS_LEN], [from; ADDRESS_LEN]].concat();
    let destinations = |from, frame: &[u8]| switch.shared.destinations(from, frame);
    assert_eq!(destinations(0, &frame(0xff, 2)), [1, 2, 3]);
    assert_eq!(destinations(0, &frame(4, 2)), [1, 2], "nobody was asked, or somebody who answers everything");
    assert_eq!(destinations(1, &frame(2, 4)), [0]);
    assert_eq!(destinations(0, &frame(4, 2)), [1]);
    // It has moved.
    assert_eq!(destinations(2, &frame(0xff, 4)), [0, 1, 3]);
    assert_eq!(destinations(0, &frame(4, 2)), [2]);
    assert!(destinations(2, &frame(4, 2)).is_empty() && destinations(0, &[1; 11]).is_empty());
}
