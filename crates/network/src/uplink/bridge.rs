//! A port of a Linux bridge: a TAP device, which speaks the same offload header as virtio-net (kernel
//! documentation, `networking/tuntap`).
#![allow(unsafe_code)]

mod create;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use spec::{BridgeSpec, PortForward};

pub use self::create::{BridgeState, find_bridge};
use super::{Uplink, UplinkError};
use crate::backend::FRAME_LEN_MAX;
use crate::offload::{FrameOffload, HEADER_LEN, OffloadError, ReceiveOffloads};
use crate::queue::FrameQueue;

/// Frames read per call, so that the guest's side is looked after in between.
const READ_BATCH: usize = 64;
/// First bytes of the TAP device's own address, the highest that a device may have of its own accord, as Xen chooses it: a bridge takes the lowest
/// address of its ports for its own, which must not change with the VMs that come and go. The other bytes stay as the kernel has drawn them: a VM's
/// replicas have a TAP device on each of their hosts, and a bridge that still takes the address of one must not have that of another host's.
const TAP_MAC_START: [u8; 2] = [0xfe, 0xff];
/// Greatest MTU that a TAP device takes, in bytes: what a frame of 65,535 bytes holds.
const TAP_MTU_MAX: libc::c_int = 65_521;
/// How often it is looked whether the bridge is still there: the TAP device of a bridge that was deleted lives on, connected to nothing.
const BRIDGE_INTERVAL: Duration = Duration::from_millis(250);
/// `SIOCBRADDIF` of `linux/sockios.h`, which the libc crate lacks.
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

/// A TAP device attached to a bridge; it vanishes when dropped.
pub(crate) struct BridgePort {
    tap: File,
    mtu: u16,
    buffer: Vec<u8>,
    control: OwnedFd,
    bridge: String,
    bridge_index: libc::c_int,
    looked_at: Instant,
}

impl BridgePort {
    /// Creates the TAP device, names it a port of the bridge and brings it up.
    pub fn new(spec: &BridgeSpec) -> Result<Self, UplinkError> {
        let control = control_socket().map_err(|source| step("opening a control socket", source))?;
        let bridge = &spec.bridge;
        let mut request = interface_request(bridge);
        let mtu = match ioctl(control.as_raw_fd(), libc::SIOCGIFMTU, &mut request) {
            // SAFETY: the call succeeded, so this member of the union was written.
            Ok(()) => unsafe { request.ifr_ifru.ifru_mtu }.min(TAP_MTU_MAX),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                return Err(UplinkError::NoBridge(bridge.clone()));
            }
            Err(source) => return Err(step(&format!("asking for the MTU of {bridge}"), source)),
        };

        let bridge_index = index(&control, interface_request(bridge))
            .map_err(|source| step(&format!("asking for the index of {bridge}"), source))?;

        let tap = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|source| step("opening /dev/net/tun", source))?;
        let mut request = interface_request(spec.tap.as_deref().unwrap_or_default());
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // The flags take 15 bits.
        request.ifr_ifru.ifru_flags = flags as i16;
        ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &mut request)
            .map_err(|source| step("creating a TAP device", source))?;
        let name = request.ifr_name;

        let named = |action: &str| format!("{action} of TAP device {}", text(&name));
        let mut header_len = HEADER_LEN as libc::c_int;
        ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &mut header_len)
            .map_err(|source| step(&named("setting the header length"), source))?;

        let mut request = request_for(name);
        ioctl(control.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request)
            .map_err(|source| step(&named("asking for the address"), source))?;
        // SAFETY: the call succeeded, so this member of the union was written.
        let address = unsafe { &mut request.ifr_ifru.ifru_hwaddr.sa_data };
        for (to, from) in address.iter_mut().zip(TAP_MAC_START) {
            *to = from.cast_signed();
        }
        ioctl(control.as_raw_fd(), libc::SIOCSIFHWADDR, &mut request)
            .map_err(|source| step(&named("setting the address"), source))?;

        // Before it is a port: a bridge lowers its own MTU to that of its least port.
        let mut request = request_for(name);
        request.ifr_ifru.ifru_mtu = mtu;
        ioctl(control.as_raw_fd(), libc::SIOCSIFMTU, &mut request)
            .map_err(|source| step(&named("setting the MTU"), source))?;

        // The host does not speak over this interface itself; without this its IPv6 would wake the guest for nothing.
        // A kernel without IPv6 lacks the file.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", text(&name)), "1");

        let tap_index =
            index(&control, request_for(name)).map_err(|source| step(&named("asking for the index"), source))?;
        let mut request = interface_request(bridge);
        request.ifr_ifru.ifru_ifindex = tap_index;
        ioctl(control.as_raw_fd(), SIOCBRADDIF, &mut request).map_err(|source| match source.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL) => UplinkError::NotABridge(bridge.clone()),
            _ => step(&format!("attaching TAP device {} to bridge {bridge}", text(&name)), source),
        })?;

        let mut request = request_for(name);
        ioctl(control.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request)
            .map_err(|source| step(&named("asking for the flags"), source))?;
        // SAFETY: the call succeeded, so this member of the union was written.
        unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16 };
        ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request)
            .map_err(|source| step(&named("bringing up"), source))?;

        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        Ok(Self {
            tap,
            mtu,
            buffer: vec![0; HEADER_LEN + FRAME_LEN_MAX],
            control,
            bridge: bridge.clone(),
            bridge_index,
            looked_at: Instant::now(),
        })
    }

    /// Fails if the bridge is gone, or is another one by now, to which nothing is connected here.
    fn check_bridge(&mut self) -> io::Result<()> {
        if self.looked_at.elapsed() < BRIDGE_INTERVAL {
            return Ok(());
        }
        self.looked_at = Instant::now();
        match index(&self.control, interface_request(&self.bridge)) {
            Ok(index) if index == self.bridge_index => Ok(()),
            _ => Err(io::Error::other(format!("bridge {} was deleted", self.bridge))),
        }
    }
}

impl Uplink for BridgePort {
    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn prepare(&mut self, fds: &mut Vec<libc::pollfd>, timeout_ms: &mut u32, room: bool) {
        *timeout_ms = (*timeout_ms).min(BRIDGE_INTERVAL.as_millis() as u32);
        // Without room the kernel queues, and then drops.
        let fd = if room { self.tap.as_raw_fd() } else { -1 };
        fds.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    }

    fn process(&mut self, fds: &[libc::pollfd], to_guest: &mut FrameQueue) -> io::Result<()> {
        self.check_bridge()?;
        if fds.first().is_none_or(|fd| fd.revents == 0) {
            return Ok(());
        }
        for _ in 0..READ_BATCH {
            let len = match self.tap.read(&mut self.buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let Some((header, frame)) = self.buffer.get(..len).and_then(|read| read.split_first_chunk()) else {
                continue;
            };
            let offload = FrameOffload::from_header(header);
            match offload.and_then(|offload| offload.check(frame.len()).map(|()| offload)) {
                Ok(offload) => to_guest.push(frame.to_vec(), offload),
                Err(error) => tracing::debug!(%error, "dropped a frame of the kernel"),
            }
            if !to_guest.has_room() {
                break;
            }
        }
        Ok(())
    }

    fn send(&mut self, frame: &mut [u8], offload: FrameOffload, _: &mut FrameQueue) -> Result<(), OffloadError> {
        let header = offload.to_header();
        let parts = [io::IoSlice::new(&header), io::IoSlice::new(frame)];
        // What the kernel finds malformed or has no room for is lost, as on any network.
        if let Err(error) = self.tap.write_vectored(&parts) {
            tracing::debug!(%error, len = frame.len(), "the kernel dropped a frame of the guest");
        }
        Ok(())
    }

    fn accept(&mut self, offloads: ReceiveOffloads) {
        let mut flags = 0;
        for (accepted, flag) in [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
        ] {
            if accepted {
                flags |= flag;
            }
        }
        // SAFETY: this request takes a plain value.
        let result = unsafe { libc::ioctl(self.tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
        if result < 0 {
            // The queue then does or drops what the guest does not take.
            tracing::warn!(error = %io::Error::last_os_error(), "cannot set the offloads of a TAP device");
        }
    }

    fn forward(&mut self, _ports: &[PortForward]) -> Result<(), UplinkError> {
        Err(UplinkError::NoForwards)
    }
}

/// The number of an interface, which no other one ever gets.
fn index(control: &OwnedFd, mut request: libc::ifreq) -> io::Result<libc::c_int> {
    ioctl(control.as_raw_fd(), libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: the call succeeded, so this member of the union was written.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

fn step(action: &str, source: io::Error) -> UplinkError {
    let action = action.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => UplinkError::Privilege { action, source },
        _ => UplinkError::Tap { action, source },
    }
}

type InterfaceName = [libc::c_char; libc::IFNAMSIZ];

fn text(name: &InterfaceName) -> String {
    name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(byte.cast_unsigned())).collect()
}

fn interface_request(name: &str) -> libc::ifreq {
    let mut field: InterfaceName = [0; libc::IFNAMSIZ];
    // The last byte stays zero, as the terminator; longer names were refused with the spec.
    for (to, from) in field.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request_for(field)
}

fn request_for(name: InterfaceName) -> libc::ifreq {
    // SAFETY: an `ifreq` is integers and a pointer, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name = name;
    request
}

fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: plain call.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is an open descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Performs a request that reads or writes a `T`.
fn ioctl<T>(fd: RawFd, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: every caller passes the type that its request takes, exclusively borrowed for the call.
    let result = unsafe { libc::ioctl(fd, request, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
