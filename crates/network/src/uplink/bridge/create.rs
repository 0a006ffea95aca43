//! Making a bridge.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use spec::check_interface_name;

use super::super::UplinkError;
use super::{SIOCBRADDIF, control_socket, index, interface_request, ioctl, step};

/// `SIOCBRADDBR` of `linux/sockios.h`, which the libc crate lacks: the argument is the name.
const SIOCBRADDBR: libc::c_ulong = 0x89a0;
/// `SIOCETHTOOL` of `linux/sockios.h`, with `ETHTOOL_GDRVINFO` of `linux/ethtool.h`: `struct ethtool_drvinfo`, which begins with the command and the driver's name.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 3;
const DRIVER_NAME_AT: usize = 4;
const DRIVER_INFORMATION_BYTES: usize = 196;

/// What was there, and what was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeState {
    /// The bridge was there.
    Found,
    /// It was made, and is up.
    Created,
}

/// Looks for a bridge on this machine, and makes one if that is wanted; it is brought up, and `ports`, interfaces of this machine, become ports of it. It lasts until the machine
/// boots again.
///
/// # Errors
/// [`UplinkError`]: the name cannot be that of an interface, there is none and none was wanted, it is something else, or the privilege is missing.
pub fn find_bridge(name: &str, create: bool, ports: &[String]) -> Result<BridgeState, UplinkError> {
    for name in ports.iter().map(String::as_str).chain([name]) {
        check_interface_name(name)?;
    }
    let control = control_socket().map_err(|source| step("opening a control socket", source))?;
    let there = index(&control, interface_request(name)).is_ok();
    if !there && !create {
        return Err(UplinkError::NoBridge(name.to_owned()));
    }
    if !there {
        let mut request = interface_request(name).ifr_name;
        ioctl(control.as_raw_fd(), SIOCBRADDBR, &mut request)
            .map_err(|source| step(&format!("making bridge {name}"), source))?;
    }
    if !is_bridge(&control, name).map_err(|source| step(&format!("asking what {name} is"), source))? {
        return Err(UplinkError::NotABridge(name.to_owned()));
    }
    for port in ports {
        attach(&control, name, port)?;
    }
    if !there || !ports.is_empty() {
        ports.iter().map(String::as_str).chain([name]).try_for_each(|name| bring_up(&control, name))?;
    }
    Ok(if there { BridgeState::Found } else { BridgeState::Created })
}

fn attach(control: &OwnedFd, bridge: &str, port: &str) -> Result<(), UplinkError> {
    let what = format!("attaching {port} to bridge {bridge}");
    let mut request = interface_request(bridge);
    request.ifr_ifru.ifru_ifindex = index(control, interface_request(port)).map_err(|source| step(&what, source))?;
    ioctl(control.as_raw_fd(), SIOCBRADDIF, &mut request).map_err(|source| step(&what, source))
}

/// Whether the kernel's driver of an interface is that of bridges.
fn is_bridge(control: &OwnedFd, name: &str) -> io::Result<bool> {
    let mut information = [0u8; DRIVER_INFORMATION_BYTES];
    information[..DRIVER_NAME_AT].copy_from_slice(&ETHTOOL_GDRVINFO.to_ne_bytes());
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_data = information.as_mut_ptr().cast();
    match ioctl(control.as_raw_fd(), SIOCETHTOOL, &mut request) {
        Ok(()) => Ok(information.get(DRIVER_NAME_AT..).is_some_and(|name| name.starts_with(b"bridge\0"))),
        // An interface without such a driver, such as the loopback.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

fn bring_up(control: &OwnedFd, name: &str) -> Result<(), UplinkError> {
    let up = || -> io::Result<()> {
        let mut request = interface_request(name);
        ioctl(control.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: the call succeeded, so this member of the union was written.
        unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16 };
        ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request)
    };
    up().map_err(|source| step(&format!("bringing up {name}"), source))
}
