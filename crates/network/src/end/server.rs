//! The network end's poll loop: one thread, one client, one uplink.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::process;
use std::time::{Duration, Instant};

use protocol::Generation;
use spec::{NetworkSpec, PortForward};

use super::control::EndStatus;
use super::{EndConfig, EndError, Lifetime, system};
use crate::backend::{Attach, BackendError, FRAME_LEN_MAX, SendOutcome};
use crate::offload::{Checksum, ReceiveOffloads};
use crate::queue::FrameQueue;
use crate::seqpacket::{Incoming, SeqListener, SeqSocket};
use crate::uplink::{BridgePort, Uplink, UplinkError, UserNetwork};
use crate::wire::{self, Attached, Message};

/// Frames taken from the client before the uplink is looked after again.
const CLIENT_BATCH: usize = 64;
/// Frames taken from a client whose place another one takes: more than its socket holds.
const LAST_BATCH: usize = 4096;
/// Connections that have not said yet what they want.
const WAITING_MAX: usize = 16;
/// How long they may take.
const WAITING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long no connection is accepted after that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A network end that listens for VM processes.
pub struct End {
    // Fields are dropped in this order: whoever waits for the end to stop finds the socket gone.
    listener: SeqListener,
    uplink: Box<dyn Uplink>,
    client: Option<Client>,
    waiting: Vec<Waiting>,
    stop_requests: Vec<SeqSocket>,
    to_guest: FrameQueue,
    status: EndStatus,
    lifetime: Lifetime,
    /// Frames come unasked, and none is worth more than later ones.
    is_bridged: bool,
    /// When the last client went, or somebody asked to keep this, or the start.
    alone_since: Instant,
    /// Given up so that a VM process can connect even when the guest has used up all descriptors.
    reserve: Option<File>,
    accept_after: Option<Instant>,
    buffer: Vec<u8>,
}

/// The VM process.
struct Client {
    socket: SeqSocket,
    /// It has said what its guest takes.
    ready: bool,
    /// It takes nothing more for now.
    full: bool,
}

/// A connection before its first message.
struct Waiting {
    socket: SeqSocket,
    deadline: Instant,
}

impl End {
    /// Sets up the network and listens at `socket`.
    ///
    /// # Errors
    /// [`EndError`].
    pub fn new(config: &EndConfig, socket: &Path) -> Result<Self, EndError> {
        config.network.validate()?;
        let listener =
            SeqListener::bind(socket).map_err(|source| EndError::Socket { path: socket.to_owned(), source })?;
        let uplink: Box<dyn Uplink> = match &config.network {
            NetworkSpec::User(user) => Box::new(UserNetwork::new(user)?),
            NetworkSpec::Bridge(bridge) => Box::new(BridgePort::new(bridge)?),
        };
        // Zero is no end's.
        let identity = system::random_u64()
            .map_err(|source| EndError::System { action: "drawing a random number", source })?
            .max(1);
        Ok(Self {
            listener,
            uplink,
            client: None,
            waiting: Vec::new(),
            stop_requests: Vec::new(),
            to_guest: FrameQueue::default(),
            status: EndStatus { pid: process::id(), end: identity, ..EndStatus::default() },
            lifetime: config.lifetime,
            is_bridged: matches!(config.network, NetworkSpec::Bridge(_)),
            alone_since: Instant::now(),
            reserve: open_reserve(),
            accept_after: None,
            buffer: vec![0; FRAME_LEN_MAX],
        })
    }

    /// Serves until told to stop: over the socket, by `termination` becoming readable, by `parent` being hung up, or by
    /// the configured lifetime.
    ///
    /// # Errors
    /// [`EndError::UplinkLost`] and [`EndError::System`].
    pub fn run(mut self, termination: Option<BorrowedFd<'_>>, parent: Option<BorrowedFd<'_>>) -> Result<(), EndError> {
        let raw = |fd: Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd());
        let mut fds = Vec::new();
        while self.stop_requests.is_empty() && !self.is_orphaned() {
            fds.clear();
            fds.push(poll_fd(raw(termination), libc::POLLIN));
            // Only the hang-up counts, which is reported unasked.
            fds.push(poll_fd(raw(parent), 0));
            let accepting = self.accept_after.is_none_or(|after| after <= Instant::now());
            fds.push(poll_fd(if accepting { self.listener.as_fd().as_raw_fd() } else { -1 }, libc::POLLIN));
            fds.push(self.client_poll_fd());
            fds.extend(self.waiting.iter().map(|waiting| poll_fd(waiting.socket.as_fd().as_raw_fd(), libc::POLLIN)));
            let uplink_at = fds.len();
            let mut timeout_ms = self.timeout_ms();
            self.uplink.prepare(&mut fds, &mut timeout_ms, self.to_guest.has_room());
            system::poll(&mut fds, timeout_ms).map_err(|source| EndError::System { action: "waiting", source })?;

            let (own, uplink) = fds.split_at(uplink_at);
            let woken = |index: usize| own.get(index).is_some_and(|fd| fd.revents != 0);
            if woken(0) || woken(1) {
                break;
            }
            if woken(3) {
                self.serve_client(CLIENT_BATCH);
            }
            self.uplink.process(uplink, &mut self.to_guest).map_err(EndError::UplinkLost)?;
            if self.is_bridged && self.client.is_none() {
                // Else the kernel would keep the first frames of all, and hand them to whoever comes next.
                self.to_guest.make_room();
            }
            let asking: Vec<bool> = (4..uplink_at).map(woken).collect();
            self.serve_waiting(&asking);
            if woken(2) {
                self.accept();
            }
            self.deliver();
        }
        Ok(())
    }

    fn is_orphaned(&self) -> bool {
        match self.lifetime {
            Lifetime::WithoutClient { limit_s } => {
                self.client.is_none() && self.alone_since.elapsed() >= Duration::from_secs(limit_s.into())
            }
            Lifetime::UntilStopped | Lifetime::WithParent => false,
        }
    }

    /// Until when to wait if nothing happens.
    fn timeout_ms(&self) -> u32 {
        let mut until: Vec<Instant> = self.waiting.iter().map(|waiting| waiting.deadline).collect();
        until.extend(self.accept_after);
        if let (Lifetime::WithoutClient { limit_s }, None) = (self.lifetime, &self.client) {
            until.extend(self.alone_since.checked_add(Duration::from_secs(limit_s.into())));
        }
        let now = Instant::now();
        until.into_iter().min().map_or(u32::MAX, |until| {
            // Rounded up, so as not to wake just before.
            u32::try_from(until.saturating_duration_since(now).as_millis() + 1).unwrap_or(u32::MAX)
        })
    }

    fn client_poll_fd(&self) -> libc::pollfd {
        match &self.client {
            Some(client) => {
                let events = if client.full { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
                poll_fd(client.socket.as_fd().as_raw_fd(), events)
            }
            None => poll_fd(-1, 0),
        }
    }

    /// Takes what the client has sent, at most `messages_max` messages.
    fn serve_client(&mut self, messages_max: usize) {
        for _ in 0..messages_max {
            let Some(client) = &mut self.client else { return };
            client.full = false;
            match wire::recv(&client.socket, &mut self.buffer) {
                Ok(None) => return,
                Ok(Some(Message::Frame { mut received, .. })) => {
                    // No guest can vouch for its frames to others.
                    if received.offload.checksum == Checksum::Verified {
                        received.offload.checksum = Checksum::Complete;
                    }
                    self.status.from_guest_frames += 1;
                    self.status.from_guest_bytes += received.len as u64;
                    let frame = self.buffer.get_mut(..received.len).unwrap_or_default();
                    if self.uplink.send(frame, received.offload, &mut self.to_guest).is_err() {
                        self.status.malformed += 1;
                    }
                }
                Ok(Some(Message::Other { kind: wire::ACCEPT, value })) => {
                    let offloads = ReceiveOffloads::from_bits(value);
                    client.ready = true;
                    self.to_guest.accept(offloads);
                    self.uplink.accept(offloads);
                }
                Ok(Some(Message::Other { .. }))
                | Err(BackendError::Offload(_) | BackendError::Malformed | BackendError::BufferTooShort { .. }) => {
                    self.status.malformed += 1;
                }
                Err(error) => {
                    tracing::info!(%error, "VM process has left");
                    self.detach();
                }
            }
        }
    }

    fn detach(&mut self) {
        self.client = None;
        self.alone_since = Instant::now();
    }

    fn deliver(&mut self) {
        let Some(client) = self.client.as_mut().filter(|client| client.ready && !client.full) else { return };
        let (status, full) = (&mut self.status, &mut client.full);
        let result = self.to_guest.deliver(|number, frame, offload| {
            match wire::send_frame(&client.socket, number, frame, offload)? {
                SendOutcome::Sent => {
                    status.to_guest_frames += 1;
                    status.to_guest_bytes += frame.len() as u64;
                }
                SendOutcome::Full => *full = true,
            }
            Ok::<_, BackendError>(!*full)
        });
        if let Err(error) = result {
            tracing::info!(%error, "VM process has left");
            self.detach();
        }
    }

    fn accept(&mut self) {
        self.accept_after = None;
        for _ in 0..WAITING_MAX {
            match self.listener.accept() {
                Ok(Some(socket)) => {
                    if !is_trusted(&socket) {
                        continue;
                    }
                    if self.waiting.len() >= WAITING_MAX {
                        self.waiting.remove(0);
                    }
                    self.waiting.push(Waiting { socket, deadline: Instant::now() + WAITING_TIMEOUT });
                }
                Ok(None) => break,
                Err(error) => {
                    if self.reserve.take().is_none() {
                        tracing::warn!(%error, "cannot accept a connection");
                        self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                        break;
                    }
                }
            }
        }
        if self.reserve.is_none() {
            self.reserve = open_reserve();
        }
    }

    /// Hears the connections that `asking` marks, in their order.
    fn serve_waiting(&mut self, asking: &[bool]) {
        if self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        for (index, connection) in waiting.into_iter().enumerate() {
            if asking.get(index).is_some_and(|asking| *asking) {
                self.hear(connection.socket);
            } else if connection.deadline > now {
                self.waiting.push(connection);
            }
        }
    }

    /// Does what a connection's first message asks for. Answers to a fresh connection always find room.
    fn hear(&mut self, socket: SeqSocket) {
        let received = socket.try_recv(&mut self.buffer, &mut []);
        let Ok(Incoming::Message { len, truncated: false }) = received else { return };
        let message = &self.buffer.get(..len).unwrap_or_default().to_vec()[..];
        if let Some(attach) = wire::parse_attach(message) {
            return self.attach(socket, &attach);
        }
        let _ = match message {
            [wire::ATTACH, ..] => refuse(&socket, "it speaks another version"),
            [kind @ (wire::STATUS | wire::KEEP)] => {
                if *kind == wire::KEEP {
                    self.alone_since = Instant::now();
                }
                let json = serde_json::to_vec(&self.status()).unwrap_or_default();
                socket.try_send([&[wire::STATUS_REPLY], &json])
            }
            [wire::FORWARD, ports @ ..] => self.forward(&socket, ports),
            [wire::STOP] => {
                self.stop_requests.push(socket);
                Ok(true)
            }
            _ => {
                self.status.malformed += 1;
                refuse(&socket, "it does not know this request")
            }
        };
    }

    /// Forwards the ports that somebody asks for, and says how the end is then, or why it does not.
    fn forward(&mut self, socket: &SeqSocket, ports: &[u8]) -> io::Result<bool> {
        let Ok(ports) = serde_json::from_slice::<Vec<PortForward>>(ports) else {
            self.status.malformed += 1;
            return refuse(socket, "these are no ports");
        };
        match self.uplink.forward(&ports) {
            Ok(()) => {
                let json = serde_json::to_vec(&self.status()).unwrap_or_default();
                socket.try_send([&[wire::STATUS_REPLY], &json])
            }
            // Before it was confined it was perhaps root.
            Err(UplinkError::Forward { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                let reason = "the network end may not open such a port once it runs";
                socket.try_send([&[wire::NEEDS_START], reason.as_bytes()])
            }
            Err(error) => refuse(socket, &error.to_string()),
        }
    }

    /// Lets a VM process take the place of the one before, unless it belongs to a replica that was superseded.
    fn attach(&mut self, socket: SeqSocket, attach: &Attach) {
        let highest = self.status.generation;
        if !protocol::may_attach(Generation::new(highest), Generation::new(attach.generation)) {
            self.status.superseded += 1;
            let reason = format!("generation {} was superseded by generation {highest}", attach.generation);
            tracing::warn!(reason, "VM process refused");
            let _ = refuse(&socket, &reason);
            return;
        }
        // What the one before sent before this moment it was entitled to send.
        self.serve_client(LAST_BATCH);
        self.status.generation = attach.generation;
        if let Some(max_age) = attach.max_age {
            self.to_guest.drop_older_than(max_age);
        }
        self.to_guest.attach(self.status.end, attach.resume);
        let next_frame = self.to_guest.retained().next_number();
        let attached = Attached { mtu: self.uplink.mtu(), end: self.status.end, next_frame };
        if socket.try_send([&attached.to_message(), &[]]).is_err() {
            tracing::info!("VM process has left at once");
        }
        self.client = Some(Client { socket, ready: false, full: false });
        self.status.attachments += 1;
    }

    fn status(&self) -> EndStatus {
        let retained = self.to_guest.retained();
        EndStatus {
            attached: self.client.is_some(),
            mtu: self.uplink.mtu(),
            forward: self.uplink.forwards().map(<[PortForward]>::to_vec),
            to_guest_dropped: self.to_guest.dropped(),
            retained_frames: retained.frames() as u64,
            retained_bytes: retained.bytes() as u64,
            resent_frames: retained.resent(),
            missed_frames: retained.missed(),
            ..self.status.clone()
        }
    }
}

fn refuse(socket: &SeqSocket, reason: &str) -> io::Result<bool> {
    socket.try_send([&[wire::REFUSED], reason.as_bytes()])
}

/// Whether the peer runs as the same user or as root.
fn is_trusted(socket: &SeqSocket) -> bool {
    socket.peer_user().is_ok_and(|user| user == system::own_user() || user == 0)
}

fn open_reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

fn poll_fd(fd: i32, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}
