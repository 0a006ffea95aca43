//! A guest: a TCP/IP stack behind a network card with or without offloads.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use network::{
    BackendError, Checksum, FRAME_LEN_MAX, FrameBackend, FrameOffload, Gso, ReceiveOffloads, Segmentation, SendOutcome,
};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::time::Instant as GuestInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr};

pub const MAC: [u8; 6] = [0x02, 1, 2, 3, 4, 5];
const MSS: u16 = 1460;
const MSS6: u16 = 1440;
const ALL_OFFLOADS: ReceiveOffloads = ReceiveOffloads { checksum: true, tso4: true, tso6: true };

/// Frames longer than one segment that a card has moved.
#[derive(Clone, Copy, Default)]
pub struct LongFrames {
    pub sent: u64,
    pub received: u64,
}

struct Card {
    backend: Box<dyn FrameBackend>,
    offloads: bool,
    unsent: VecDeque<(Vec<u8>, FrameOffload)>,
    buffer: Vec<u8>,
    long: LongFrames,
}

impl Card {
    fn send_unsent(&mut self) {
        while let Some((frame, offload)) = self.unsent.front() {
            match self.backend.send(frame, *offload) {
                Ok(SendOutcome::Sent) => {}
                Ok(SendOutcome::Full) => return,
                Err(BackendError::Disconnected) => {}
                Err(error) => panic!("{error}"),
            }
            self.unsent.pop_front();
        }
    }

    fn send(&mut self, mut frame: Vec<u8>) {
        let mut offload = FrameOffload::default();
        let ip = if self.offloads { Ip::of(&frame) } else { None };
        if let Some(ip) = ip {
            let field = match ip.protocol {
                6 => Some(16),
                17 => Some(6),
                _ => None,
            };
            if let Some(offset) = field {
                let (start, pseudo) = (ip.header_end, ip.pseudo_header_sum(&frame).to_be_bytes());
                frame[start + offset..start + offset + 2].copy_from_slice(&pseudo);
                offload.checksum = Checksum::Partial { start: start as u16, offset: offset as u16 };
            }
            if frame.len() > 1514 {
                self.long.sent += 1;
                let header_len = ip.header_end as u16 + 20;
                offload.gso = match ip.is_v6 {
                    false => Gso::TcpV4(Segmentation { mss: MSS, header_len }),
                    true => Gso::TcpV6(Segmentation { mss: MSS6, header_len }),
                };
            }
        }
        self.unsent.push_back((frame, offload));
        self.send_unsent();
    }

    fn recv(&mut self) -> Option<Vec<u8>> {
        let received = match self.backend.recv(&mut self.buffer) {
            Ok(received) => received?,
            Err(BackendError::Disconnected) => return None,
            Err(error) => panic!("{error}"),
        };
        let mut frame = self.buffer[..received.len].to_vec();
        if !self.offloads {
            assert_eq!(received.offload, FrameOffload::default(), "this guest takes no offloads");
        }
        if received.offload.gso != Gso::None {
            self.long.received += 1;
        }
        if self.offloads {
            raise_mss(&mut frame);
        }
        Some(frame)
    }
}

/// The IP header of a frame; those that smoltcp sends have neither options nor extensions.
#[derive(Clone, Copy)]
struct Ip {
    is_v6: bool,
    protocol: u8,
    addresses_at: usize,
    header_end: usize,
}

impl Ip {
    fn of(frame: &[u8]) -> Option<Self> {
        match frame.get(12..14)? {
            [8, 0] => Some(Self { is_v6: false, protocol: *frame.get(23)?, addresses_at: 26, header_end: 34 }),
            [0x86, 0xdd] => Some(Self { is_v6: true, protocol: *frame.get(20)?, addresses_at: 22, header_end: 54 }),
            _ => None,
        }
    }

    /// The sum that a guest leaves in the checksum field.
    fn pseudo_header_sum(self, frame: &[u8]) -> u16 {
        let len = (frame.len() - self.header_end) as u32;
        let addresses = frame[self.addresses_at..self.header_end].chunks(2);
        let words = addresses.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let mut sum = words.sum::<u32>() + u32::from(self.protocol) + len;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

/// Lets the stack make long segments, as one with segmentation offload does: the peer's MSS option in a SYN is
/// replaced by a large one. (The card does not verify checksums then.)
fn raise_mss(frame: &mut [u8]) {
    let Some(ip) = Ip::of(frame).filter(|ip| ip.protocol == 6) else { return };
    let Some(tcp) = frame.get_mut(ip.header_end..).filter(|tcp| tcp.len() >= 24) else { return };
    if tcp[13] & 2 != 0 && tcp[20..22] == [2, 4] {
        tcp[22..24].copy_from_slice(&60_000u16.to_be_bytes());
    }
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Card);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.send(frame);
        result
    }
}

impl phy::Device for Card {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: GuestInstant) -> Option<(Rx, Tx<'_>)> {
        if !self.unsent.is_empty() {
            return None;
        }
        self.recv().map(|frame| (Rx(frame), Tx(self)))
    }

    fn transmit(&mut self, _: GuestInstant) -> Option<Tx<'_>> {
        self.unsent.is_empty().then_some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        if self.offloads {
            capabilities.max_transmission_unit = 65_000;
            capabilities.checksum = ChecksumCapabilities::default();
            capabilities.checksum.tcp = phy::Checksum::None;
            capabilities.checksum.udp = phy::Checksum::None;
        }
        capabilities
    }
}

pub struct Guest {
    card: Card,
    interface: Interface,
    pub sockets: SocketSet<'static>,
    start: Instant,
    next_port: u16,
}

impl Guest {
    /// A guest without an address.
    pub fn new(mut backend: Box<dyn FrameBackend>, offloads: bool) -> Self {
        backend.accept(if offloads { ALL_OFFLOADS } else { ReceiveOffloads::default() }).unwrap();
        let mut card = Card {
            backend,
            offloads,
            unsent: VecDeque::new(),
            buffer: vec![0; FRAME_LEN_MAX],
            long: LongFrames::default(),
        };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let interface = Interface::new(config, &mut card, GuestInstant::ZERO);
        Self { card, interface, sockets: SocketSet::new(Vec::new()), start: Instant::now(), next_port: 40_000 }
    }

    /// A guest that has got its address by DHCP.
    pub fn with_dhcp(backend: Box<dyn FrameBackend>, offloads: bool) -> Self {
        let mut guest = Self::new(backend, offloads);
        guest.dhcp();
        guest
    }

    /// Gets an address, the router and the name servers, and uses the first two.
    pub fn dhcp(&mut self) -> (Ipv4Cidr, Option<Ipv4Addr>, Vec<Ipv4Addr>) {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        let mut lease = None;
        self.run_until("DHCP", |guest| {
            if let Some(dhcpv4::Event::Configured(config)) = guest.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
                lease = Some((config.address, config.router, config.dns_servers.to_vec()));
            }
            lease.is_some()
        });
        let lease = lease.unwrap();
        self.set_address(lease.0, lease.1);
        lease
    }

    pub fn set_address(&mut self, address: Ipv4Cidr, router: Option<Ipv4Addr>) {
        self.interface.update_ip_addrs(|addresses| addresses.push(IpCidr::Ipv4(address)).unwrap());
        if let Some(router) = router {
            self.interface.routes_mut().add_default_ipv4_route(router).unwrap();
        }
    }

    /// Moves frames and runs the stack until `done`.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what} takes too long");
            self.step();
        }
    }

    /// Runs the stack for a while.
    pub fn run_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.step();
        }
    }

    fn step(&mut self) {
        let now = GuestInstant::from_micros(self.start.elapsed().as_micros() as i64);
        self.card.send_unsent();
        let changed = self.interface.poll(now, &mut self.card, &mut self.sockets);
        if changed == smoltcp::iface::PollResult::None {
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// A guest with an address in a user-mode network's IPv6.
    pub fn with_ipv6(backend: Box<dyn FrameBackend>, offloads: bool) -> Self {
        let mut guest = Self::new(backend, offloads);
        let address = IpCidr::new(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15).into(), 64);
        guest.interface.update_ip_addrs(|addresses| addresses.push(address).unwrap());
        guest
    }

    pub fn tcp_connect(&mut self, addr: impl Into<IpAddress>, port: u16) -> SocketHandle {
        let handle = self.sockets.add(tcp_socket());
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.connect(self.interface.context(), (addr.into(), port), self.next_port).unwrap();
        handle
    }

    pub fn tcp_listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.sockets.add(tcp_socket());
        self.sockets.get_mut::<tcp::Socket>(handle).listen(port).unwrap();
        handle
    }

    pub fn udp_bind(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends all of `bytes`.
    pub fn tcp_send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let mut sent = 0;
        self.run_until("sending", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_send() {
                sent += socket.send_slice(&bytes[sent..]).unwrap();
            }
            sent == bytes.len()
        });
    }

    /// Receives `len` bytes.
    pub fn tcp_recv(&mut self, handle: SocketHandle, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut got = 0;
        self.run_until("receiving", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_recv() {
                got += socket.recv_slice(&mut bytes[got..]).unwrap();
            }
            got == len
        });
        bytes
    }

    pub fn long_frames(&self) -> LongFrames {
        self.card.long
    }

    /// Puts another backend behind the card, as a VM process does that takes over.
    pub fn replace_backend(&mut self, mut backend: Box<dyn FrameBackend>) {
        backend.accept(if self.card.offloads { ALL_OFFLOADS } else { ReceiveOffloads::default() }).unwrap();
        self.card.backend = backend;
    }
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 256 * 1024]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket
}
