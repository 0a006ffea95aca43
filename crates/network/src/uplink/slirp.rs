//! User-mode network: libslirp ends the guest's connections and opens the host's sockets for them.
//!
//! libslirp takes TCP packets over IPv4 of any length, so the guest's long frames need not be cut, only their checksums
//! filled in; over IPv6 it takes none beyond its MTU. In the other direction its segments are joined by the queue.
#![allow(unsafe_code)]

mod dns;
mod timer;

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ptr;
use std::slice;

use libslirp_sys as sys;
use spec::{PortForward, Protocol, UserSpec};

use self::dns::DnsRelay;
use self::timer::Timers;
use super::{Uplink, UplinkError};
use crate::checksum::complete;
use crate::offload::{FrameOffload, Gso, OffloadError, ReceiveOffloads};
use crate::queue::FrameQueue;
use crate::segment::segments;

/// Version of `SlirpConfig` filled in here: up to `disable_dns`, without `disable_dhcp` and the callbacks of version 4,
/// which the bindings lack.
const CONFIG_VERSION: u32 = 3;
/// Bytes of frames taken from libslirp per call into it; what goes beyond is dropped.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// The guest's network over IPv6, and the addresses in it of the host and of its name server: those of QEMU's user-mode network.
const PREFIX6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
const DNS6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);

/// A running libslirp instance.
pub(crate) struct UserNetwork {
    slirp: ptr::NonNull<sys::Slirp>,
    /// Shared with the callbacks: libslirp keeps a pointer to it.
    output: Box<Output>,
    /// None for a guest that may call nobody.
    dns: Option<DnsRelay>,
    /// Read by libslirp for as long as it lives.
    _callbacks: Box<sys::SlirpCb>,
    mtu: u16,
    /// Where ports lead that name no address.
    guest_addr: Ipv4Addr,
    forwards: Vec<PortForward>,
}

/// Frames that libslirp emits during a call into it, and its timers.
#[derive(Default)]
struct Output {
    frames: RefCell<Vec<Vec<u8>>>,
    bytes: Cell<usize>,
    timers: Timers,
}

impl UserNetwork {
    pub fn new(spec: &UserSpec) -> Result<Self, UplinkError> {
        let config = sys::SlirpConfig {
            version: CONFIG_VERSION,
            restricted: spec.restrict.into(),
            in_enabled: true,
            vnetwork: spec.subnet.network().into(),
            vnetmask: spec.subnet.mask().into(),
            vhost: spec.host_addr().into(),
            in6_enabled: spec.has_ipv6(),
            vprefix_addr6: PREFIX6.into(),
            vprefix_len: 64,
            vhost6: HOST6.into(),
            vhostname: ptr::null(),
            tftp_server_name: ptr::null(),
            tftp_path: ptr::null(),
            bootfile: ptr::null(),
            vdhcp_start: spec.guest_addr().into(),
            vnameserver: spec.dns_addr().into(),
            vnameserver6: DNS6.into(),
            vdnssearch: ptr::null_mut(),
            vdomainname: ptr::null(),
            if_mtu: spec.mtu.into(),
            if_mru: spec.mtu.into(),
            disable_host_loopback: !spec.host_loopback,
            enable_emu: false,
            outbound_addr: ptr::null(),
            outbound_addr6: ptr::null(),
            disable_dns: false,
            disable_dhcp: false,
        };
        let callbacks = Box::new(sys::SlirpCb {
            send_packet: Some(send_packet),
            guest_error: Some(guest_error),
            clock_get_ns: Some(clock_get_ns),
            timer_new: Some(timer_new),
            timer_free: Some(timer_free),
            timer_mod: Some(timer_mod),
            register_poll_fd: Some(ignore_fd),
            unregister_poll_fd: Some(ignore_fd),
            notify: Some(notify),
        });
        let output = Box::<Output>::default();
        let opaque = ptr::from_ref::<Output>(&output).cast_mut().cast();
        // SAFETY: libslirp copies `config`; `callbacks` and `output` are boxed, so they stay where they are, and live
        // as long as the instance: `Drop` ends that first.
        let slirp = unsafe { sys::slirp_new(&raw const config, &raw const *callbacks, opaque) };
        let slirp = ptr::NonNull::new(slirp).ok_or_else(|| UplinkError::Slirp(spec.subnet.to_string()))?;
        let dns = (!spec.restrict).then(|| DnsRelay::new(spec.dns_addr(), spec.mtu));
        let (mtu, guest_addr) = (spec.mtu, spec.guest_addr());
        let mut network = Self { slirp, output, dns, _callbacks: callbacks, mtu, guest_addr, forwards: Vec::new() };
        spec.forward.iter().try_for_each(|forward| network.add(*forward))?;
        Ok(network)
    }

    fn add(&mut self, forward: PortForward) -> Result<(), UplinkError> {
        let guest_addr = forward.guest_addr.unwrap_or(self.guest_addr);
        // SAFETY: the instance lives; the other arguments are plain values.
        let refused = unsafe {
            sys::slirp_add_hostfwd(
                self.slirp.as_ptr(),
                (forward.protocol == Protocol::Udp).into(),
                forward.host_addr.into(),
                forward.host_port.into(),
                guest_addr.into(),
                forward.guest_port.into(),
            )
        } < 0;
        if refused {
            return Err(UplinkError::Forward { forward, source: io::Error::last_os_error() });
        }
        self.forwards.push(forward);
        Ok(())
    }

    /// Listens at a port no more. Connections that it has led to the guest stay.
    fn remove(&mut self, forward: PortForward) {
        // SAFETY: the instance lives; the other arguments are plain values.
        unsafe {
            sys::slirp_remove_hostfwd(
                self.slirp.as_ptr(),
                (forward.protocol == Protocol::Udp).into(),
                forward.host_addr.into(),
                forward.host_port.into(),
            )
        };
        self.forwards.retain(|kept| *kept != forward);
    }

    /// Gives libslirp a frame of the guest's.
    fn input(&self, frame: &[u8]) {
        let Ok(len) = c_int::try_from(frame.len()) else { return };
        // SAFETY: the instance lives; `frame` is valid for reads of `len` bytes, and libslirp copies it.
        unsafe { sys::slirp_input(self.slirp.as_ptr(), frame.as_ptr(), len) };
    }

    /// Moves what libslirp has emitted to the guest's queue.
    fn flush(&self, to_guest: &mut FrameQueue) {
        self.output.bytes.set(0);
        for frame in self.output.frames.borrow_mut().drain(..) {
            to_guest.push_verified(frame);
        }
    }
}

impl Uplink for UserNetwork {
    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn prepare(&mut self, fds: &mut Vec<libc::pollfd>, timeout_ms: &mut u32, room: bool) {
        let mut plan = PollPlan { base: fds.len(), fds, room };
        // SAFETY: the instance lives; `add_poll` gets `plan` for the duration of the call only.
        unsafe {
            sys::slirp_pollfds_fill(self.slirp.as_ptr(), timeout_ms, Some(add_poll), ptr::from_mut(&mut plan).cast());
        }
        if let Some(dns) = &self.dns {
            dns.prepare(fds, timeout_ms, room);
        }
        *timeout_ms = self.output.timers.wait_ms(now_ms()).map_or(*timeout_ms, |wait| wait.min(*timeout_ms));
    }

    fn process(&mut self, fds: &[libc::pollfd], to_guest: &mut FrameQueue) -> io::Result<()> {
        for (callback, opaque) in self.output.timers.take_due(now_ms()) {
            // SAFETY: libslirp has given both, and the instance lives.
            callback.into_iter().for_each(|callback| unsafe { callback(opaque) });
        }
        let mut fds = fds;
        // SAFETY: the instance lives; `get_revents` gets `fds` for the duration of the call only.
        unsafe {
            sys::slirp_pollfds_poll(self.slirp.as_ptr(), 0, Some(get_revents), ptr::from_mut(&mut fds).cast());
        }
        if let Some(dns) = &mut self.dns {
            dns.process(|frame| to_guest.push_verified(frame));
        }
        self.flush(to_guest);
        Ok(())
    }

    fn send(&mut self, frame: &mut [u8], offload: FrameOffload, to_guest: &mut FrameQueue) -> Result<(), OffloadError> {
        if let Gso::TcpV6(segmentation) = offload.gso {
            offload.check(frame.len())?;
            segments(frame, segmentation)?.for_each(|segment| self.input(&segment));
        } else {
            complete(frame, offload)?;
            if !self.dns.as_mut().is_some_and(|dns| dns.take(frame)) {
                self.input(frame);
            }
        }
        self.flush(to_guest);
        Ok(())
    }

    fn accept(&mut self, _offloads: ReceiveOffloads) {}

    fn forwards(&self) -> Option<&[PortForward]> {
        Some(&self.forwards)
    }

    fn forward(&mut self, ports: &[PortForward]) -> Result<(), UplinkError> {
        let before = self.forwards.clone();
        // One that leads elsewhere now has the same host port.
        before.iter().filter(|forward| !ports.contains(forward)).for_each(|forward| self.remove(*forward));
        let new: Vec<PortForward> = ports.iter().filter(|forward| !before.contains(forward)).copied().collect();
        let added = new.iter().try_for_each(|forward| self.add(*forward));
        if added.is_err() {
            self.forwards.clone().iter().filter(|now| !before.contains(now)).for_each(|forward| self.remove(*forward));
            for forward in &before {
                if !self.forwards.contains(forward)
                    && let Err(error) = self.add(*forward)
                {
                    tracing::warn!(%error, "a port that was forwarded before is not any more");
                }
            }
        }
        added
    }
}

impl Drop for UserNetwork {
    fn drop(&mut self) {
        // SAFETY: the instance lives until here, and what it points to is dropped after this.
        unsafe { sys::slirp_cleanup(self.slirp.as_ptr()) };
    }
}

/// Where [`add_poll`] puts descriptors.
struct PollPlan<'a> {
    fds: &'a mut Vec<libc::pollfd>,
    /// Descriptors before libslirp's first.
    base: usize,
    room: bool,
}

const EVENTS: [(c_int, i16); 5] = [
    (sys::SLIRP_POLL_IN, libc::POLLIN),
    (sys::SLIRP_POLL_OUT, libc::POLLOUT),
    (sys::SLIRP_POLL_PRI, libc::POLLPRI),
    (sys::SLIRP_POLL_ERR, libc::POLLERR),
    (sys::SLIRP_POLL_HUP, libc::POLLHUP),
];

extern "C" fn add_poll(fd: c_int, events: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: `opaque` is the `PollPlan` that `prepare` passes, exclusively borrowed during its call.
    let plan = unsafe { &mut *opaque.cast::<PollPlan<'_>>() };
    let mut wanted = EVENTS.iter().filter(|(theirs, _)| events & theirs != 0).fold(0, |all, (_, ours)| all | ours);
    if !plan.room {
        wanted &= !(libc::POLLIN | libc::POLLPRI);
    }
    // The kernel reports errors and hang-ups even unasked: without room that would be a busy loop.
    let waits = wanted & (libc::POLLIN | libc::POLLOUT | libc::POLLPRI) != 0;
    plan.fds.push(libc::pollfd { fd: if waits { fd } else { -1 }, events: wanted, revents: 0 });
    c_int::try_from(plan.fds.len() - 1 - plan.base).unwrap_or(-1)
}

extern "C" fn get_revents(index: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: `opaque` is the slice that `process` passes, borrowed during its call.
    let fds = unsafe { *opaque.cast::<&[libc::pollfd]>() };
    let revents = usize::try_from(index).ok().and_then(|index| fds.get(index)).map_or(0, |fd| fd.revents);
    EVENTS.iter().filter(|(_, ours)| revents & ours != 0).fold(0, |all, (theirs, _)| all | theirs)
}

extern "C" fn send_packet(bytes: *const c_void, len: usize, opaque: *mut c_void) -> isize {
    // SAFETY: `opaque` is the `Output` given to `slirp_new`, of which only shared references exist.
    let output = unsafe { &*opaque.cast::<Output>() };
    // SAFETY: libslirp passes a frame of `len` bytes.
    let frame = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), len) };
    let total = output.bytes.get().saturating_add(len);
    if total <= OUTPUT_BYTES_MAX {
        output.bytes.set(total);
        output.frames.borrow_mut().push(frame.to_vec());
    }
    isize::try_from(len).unwrap_or(isize::MAX)
}

extern "C" fn guest_error(message: *const c_char, _opaque: *mut c_void) {
    // SAFETY: libslirp passes a terminated string.
    let message = unsafe { CStr::from_ptr(message) };
    tracing::debug!(message = %message.to_string_lossy(), "guest misbehaves on its network");
}

extern "C" fn clock_get_ns(_opaque: *mut c_void) -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writes; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// Now, as timers count.
fn now_ms() -> i64 {
    clock_get_ns(ptr::null_mut()) / 1_000_000
}

fn timers<'a>(opaque: *mut c_void) -> &'a Timers {
    // SAFETY: `opaque` is the `Output` given to `slirp_new`, which outlives the instance, and of which only shared references exist.
    let output = unsafe { &*opaque.cast::<Output>() };
    &output.timers
}

extern "C" fn timer_new(callback: sys::SlirpTimerCb, callback_opaque: *mut c_void, opaque: *mut c_void) -> *mut c_void {
    timers(opaque).add(callback, callback_opaque)
}

extern "C" fn timer_free(timer: *mut c_void, opaque: *mut c_void) {
    timers(opaque).set(timer, None);
}

extern "C" fn timer_mod(timer: *mut c_void, expires_at_ms: i64, opaque: *mut c_void) {
    timers(opaque).set(timer, Some(expires_at_ms));
}

/// The descriptors to poll are gathered anew before each wait.
extern "C" fn ignore_fd(_fd: c_int, _opaque: *mut c_void) {}

/// The loop asks libslirp before each wait anyway.
extern "C" fn notify(_opaque: *mut c_void) {}
