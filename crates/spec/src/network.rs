//! What a VM spec says about one network card.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::forward::{PortForward, Protocol};
use crate::mac::MacAddr;

/// MTU of Ethernet, in bytes.
const MTU_DEFAULT: u16 = 1500;
/// Least MTU that libslirp and IPv6 allow, in bytes.
const MTU_MIN: u16 = 1280;
/// Greatest MTU that libslirp allows, in bytes.
const MTU_MAX: u16 = 65_521;
/// Longest name of a Linux network interface, in bytes (`IFNAMSIZ` less the terminator).
const INTERFACE_NAME_LEN_MAX: usize = 15;

/// One network card: the mode, and what belongs to it.
///
/// ```toml
/// mode = "user"
/// forward = ["tcp:127.0.0.1:6379-:6379"]
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum NetworkSpec {
    /// A private network behind the user's own sockets. Needs no privilege.
    User(UserSpec),
    /// A port of a Linux bridge. Needs `CAP_NET_ADMIN`.
    Bridge(BridgeSpec),
}

/// A user-mode network: DHCP, DNS forwarding, outbound TCP and UDP over IPv4 and IPv6, forwarded ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserSpec {
    /// The card's address; derived from the VM's name if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Longest IP packet, in bytes: 1280 to 65,521.
    pub mtu: u16,
    /// The guest's network, of /8 to /27.
    pub subnet: Ipv4Subnet,
    /// The guest's address, given by DHCP; network address + 15 if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_addr: Option<Ipv4Addr>,
    /// The gateway's address, which stands for the host; network address + 2 if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_addr: Option<Ipv4Addr>,
    /// The name server's address, behind which are the host's name servers; network address + 3 if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_addr: Option<Ipv4Addr>,
    /// Forwarded ports.
    pub forward: Vec<PortForward>,
    /// Cut the guest off from everything but its forwarded ports.
    pub restrict: bool,
    /// Let the guest reach services on the host's own loopback address by way of `host_addr`. Off by default, as
    /// services there often trust whoever can reach them. Without it, forwarded UDP ports do not answer clients on
    /// the loopback address.
    pub host_loopback: bool,
    /// Offer IPv6 as well: the guest makes itself an address in fec0::/64, and the host is fec0::2. Without effect where `restrict` is set, which
    /// libslirp does not keep to over IPv6.
    pub ipv6: bool,
}

/// A port of a Linux bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeSpec {
    /// The card's address; derived from the VM's name if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The bridge's name.
    pub bridge: String,
    /// Name of the TAP device to create; chosen by the kernel if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
}

/// Why the description of a network was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NetworkError {
    /// Not of the form 10.0.2.0/24.
    #[error("`{0}` is not an IPv4 network; write it as 10.0.2.0/24")]
    Subnet(String),
    /// Too many or too few addresses.
    #[error("network {0}: the prefix must be /8 to /27")]
    Prefix(Ipv4Subnet),
    /// An address that the network does not hold, or that it needs for itself.
    #[error("{what} {addr} is not an address of a machine in {subnet}")]
    OutsideSubnet {
        /// What the address is of, in words.
        what: &'static str,
        /// The address.
        addr: Ipv4Addr,
        /// The network.
        subnet: Ipv4Subnet,
    },
    /// Two of the guest, the gateway and the name server have one address.
    #[error("guest_addr, host_addr and dns_addr must be three addresses")]
    SameAddress,
    /// MTU out of range.
    #[error("mtu = {0}: must be {MTU_MIN} to {MTU_MAX}")]
    Mtu(u16),
    /// libslirp takes the guest's answers to a client on the host's loopback address for a guest that calls there.
    #[error("{0}: forwarding UDP from a loopback address needs host_loopback = true")]
    UdpFromLoopback(PortForward),
    /// The same host port twice.
    #[error("host port of {0} is forwarded twice")]
    ForwardedTwice(PortForward),
    /// A name that no network interface can have.
    #[error("`{0}` cannot be the name of a network interface")]
    InterfaceName(String),
}

impl NetworkSpec {
    /// The card's address, if the spec gives one.
    pub fn mac(&self) -> Option<MacAddr> {
        match self {
            Self::User(user) => user.mac,
            Self::Bridge(bridge) => bridge.mac,
        }
    }

    /// Checks what parsing alone cannot.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn validate(&self) -> Result<(), NetworkError> {
        match self {
            Self::User(user) => user.validate(),
            Self::Bridge(bridge) => {
                check_interface_name(&bridge.bridge)?;
                bridge.tap.as_deref().map_or(Ok(()), check_interface_name)
            }
        }
    }
}

/// Checks that an interface can have this name: the kernel's rule (`dev_valid_name`), and no `%`, of which TUNSETIFF makes a number.
///
/// # Errors
/// [`NetworkError::InterfaceName`].
pub fn check_interface_name(name: &str) -> Result<(), NetworkError> {
    let fits = (1..=INTERFACE_NAME_LEN_MAX).contains(&name.len());
    let forbidden = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, 0 | 0x0b | b'/' | b':' | b'%');
    if !fits || name == "." || name == ".." || name.bytes().any(forbidden) {
        return Err(NetworkError::InterfaceName(name.to_owned()));
    }
    Ok(())
}

impl Default for UserSpec {
    fn default() -> Self {
        Self {
            mac: None,
            mtu: MTU_DEFAULT,
            subnet: Ipv4Subnet { network: Ipv4Addr::new(10, 0, 2, 0), prefix_len: 24 },
            guest_addr: None,
            host_addr: None,
            dns_addr: None,
            forward: Vec::new(),
            restrict: false,
            host_loopback: false,
            ipv6: true,
        }
    }
}

impl UserSpec {
    /// The guest's address.
    pub fn guest_addr(&self) -> Ipv4Addr {
        self.guest_addr.unwrap_or_else(|| self.subnet.nth(15))
    }

    /// The gateway's address.
    pub fn host_addr(&self) -> Ipv4Addr {
        self.host_addr.unwrap_or_else(|| self.subnet.nth(2))
    }

    /// The name server's address.
    pub fn dns_addr(&self) -> Ipv4Addr {
        self.dns_addr.unwrap_or_else(|| self.subnet.nth(3))
    }

    /// Whether there is IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.ipv6 && !self.restrict
    }

    fn validate(&self) -> Result<(), NetworkError> {
        let subnet = self.subnet;
        if !(8..=27).contains(&subnet.prefix_len) {
            return Err(NetworkError::Prefix(subnet));
        }
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err(NetworkError::Mtu(self.mtu));
        }
        let (guest, host, dns) = (self.guest_addr(), self.host_addr(), self.dns_addr());
        let forwarded = self.forward.iter().filter_map(|forward| forward.guest_addr);
        let named = [("guest_addr", guest), ("host_addr", host), ("dns_addr", dns)];
        for (what, addr) in named.into_iter().chain(forwarded.map(|addr| ("forwarded guest address", addr))) {
            if !subnet.holds_machine(addr) {
                return Err(NetworkError::OutsideSubnet { what, addr, subnet });
            }
        }
        if guest == host || host == dns || dns == guest {
            return Err(NetworkError::SameAddress);
        }
        for (index, forward) in self.forward.iter().enumerate() {
            if forward.protocol == Protocol::Udp && forward.host_addr.is_loopback() && !self.host_loopback {
                return Err(NetworkError::UdpFromLoopback(*forward));
            }
            let key = |forward: &PortForward| (forward.protocol, forward.host_addr, forward.host_port);
            if self.forward.iter().take(index).any(|earlier| key(earlier) == key(forward)) {
                return Err(NetworkError::ForwardedTwice(*forward));
            }
        }
        Ok(())
    }
}

/// An IPv4 network, written `10.0.2.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Subnet {
    network: Ipv4Addr,
    prefix_len: u8,
}

impl Ipv4Subnet {
    /// The network address.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// The mask, such as 255.255.255.0.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.mask_bits())
    }

    fn mask_bits(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0)
    }

    fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | (n & !self.mask_bits()))
    }

    /// Whether `addr` is in the network and neither its first nor its last address.
    fn holds_machine(self, addr: Ipv4Addr) -> bool {
        let host_bits = addr.to_bits() & !self.mask_bits();
        addr.to_bits() & self.mask_bits() == self.network.to_bits() && host_bits != 0 && host_bits != !self.mask_bits()
    }
}

impl FromStr for Ipv4Subnet {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let malformed = || NetworkError::Subnet(text.to_owned());
        let (network, prefix_len) = text.split_once('/').ok_or_else(malformed)?;
        let network: Ipv4Addr = network.parse().map_err(|_| malformed())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| malformed())?;
        let subnet = Self { network, prefix_len };
        // Bits behind the prefix are a mistake in one of the two.
        if prefix_len > 32 || network.to_bits() & !subnet.mask_bits() != 0 { Err(malformed()) } else { Ok(subnet) }
    }
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl TryFrom<String> for Ipv4Subnet {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<Ipv4Subnet> for String {
    fn from(subnet: Ipv4Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkSpec, String> {
        let spec: NetworkSpec = toml::from_str(text).map_err(|error| error.to_string())?;
        spec.validate().map_err(|error| error.to_string())?;
        Ok(spec)
    }

    #[test]
    fn defaults_are_the_customary_addresses() {
        let NetworkSpec::User(user) = parse("mode = 'user'").unwrap() else { panic!() };
        assert_eq!(user.guest_addr(), Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(user.host_addr(), Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(user.dns_addr(), Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(user.subnet.mask(), Ipv4Addr::new(255, 255, 255, 0));
    }

    #[test]
    fn a_spec_survives_json_as_it_does_when_passed_to_the_end() {
        for text in [
            "mode = 'user'\nmac = '52:54:00:12:34:56'\nforward = ['tcp:127.0.0.1:1-:2', 'udp:0.0.0.0:3-10.9.0.4:5']\nsubnet = '10.9.0.0/16'",
            "mode = 'bridge'\nbridge = 'br0'\ntap = 'vm1'",
        ] {
            let spec = parse(text).unwrap();
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<NetworkSpec>(&json).unwrap(), spec, "{json}");
        }
    }

    #[test]
    fn mistakes_are_refused_with_their_reason() {
        for (text, reason) in [
            ("mode = 'tunnel'", "unknown variant `tunnel`"),
            ("mode = 'user'\nforwards = []", "unknown field `forwards`"),
            ("mode = 'user'\nbridge = 'br0'", "unknown field `bridge`"),
            ("mode = 'bridge'", "missing field `bridge`"),
            ("mode = 'bridge'\nbridge = 'br/0'", "cannot be the name of a network interface"),
            ("mode = 'bridge'\nbridge = 'br0'\ntap = 'tap%d'", "cannot be the name of a network interface"),
            ("mode = 'bridge'\nbridge = '0123456789abcdef'", "cannot be the name of a network interface"),
            ("mode = 'user'\nforward = ['tcp:80']", "no `-`"),
            ("mode = 'user'\nmac = '33:33:00:00:00:01'", "multicast"),
            ("mode = 'user'\nmtu = 100", "mtu = 100: must be 1280 to 65521"),
            ("mode = 'user'\nsubnet = '10.0.2.1/24'", "`10.0.2.1/24` is not an IPv4 network"),
            ("mode = 'user'\nsubnet = '10.0.2.0/33'", "`10.0.2.0/33` is not an IPv4 network"),
            ("mode = 'user'\nsubnet = '0.0.0.0/0'", "must be /8 to /27"),
            ("mode = 'user'\nguest_addr = '10.0.3.1'", "guest_addr 10.0.3.1 is not an address of a machine"),
            ("mode = 'user'\nhost_addr = '10.0.2.255'", "host_addr 10.0.2.255 is not"),
            ("mode = 'user'\ndns_addr = '10.0.2.2'", "must be three addresses"),
            ("mode = 'user'\nforward = ['tcp::1-1.2.3.4:1']", "forwarded guest address 1.2.3.4 is not"),
            ("mode = 'user'\nforward = ['tcp::1-:1', 'tcp:127.0.0.1:1-:2']", "forwarded twice"),
            ("mode = 'user'\nforward = ['udp::1-:1']", "needs host_loopback = true"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
