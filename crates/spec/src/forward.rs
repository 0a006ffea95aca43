//! Host ports that lead to ports of the guest.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Transport protocol of a forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP: each connection to the host port becomes one to the guest port.
    Tcp,
    /// UDP: datagrams to the host port, and the answers to them.
    Udp,
}

/// One forwarded port, written `tcp:127.0.0.1:6379-:6379`.
///
/// Without a host address the port is open on 127.0.0.1 only; without a guest address it leads to the address that DHCP
/// gives the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortForward {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Host address listened at; 0.0.0.0 for all.
    pub host_addr: Ipv4Addr,
    /// Host port, not 0.
    pub host_port: u16,
    /// Address in the guest's network, or the guest's own if none.
    pub guest_addr: Option<Ipv4Addr>,
    /// Guest port, not 0.
    pub guest_port: u16,
}

/// Why a forwarded port was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "forwarded port `{text}`: {reason}; write it as tcp:HOST_ADDR:PORT-GUEST_ADDR:PORT, addresses optional, such as tcp:127.0.0.1:8080-:80"
)]
pub struct ForwardError {
    text: String,
    reason: String,
}

impl FromStr for PortForward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        parse(text).map_err(|reason| ForwardError { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<PortForward, String> {
    let (protocol, rest) = text.split_once(':').ok_or("the protocol is missing")?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(format!("`{other}` is neither tcp nor udp")),
    };
    let (host, guest) = rest.split_once('-').ok_or("there is no `-` between host side and guest side")?;
    let (host_addr, host_port) = parse_side("host", host)?;
    let (guest_addr, guest_port) = parse_side("guest", guest)?;
    let host_addr = host_addr.unwrap_or(Ipv4Addr::LOCALHOST);
    Ok(PortForward { protocol, host_addr, host_port, guest_addr, guest_port })
}

fn parse_side(side: &str, text: &str) -> Result<(Option<Ipv4Addr>, u16), String> {
    let (addr, port) = text.rsplit_once(':').ok_or_else(|| format!("the {side} side has no `:` before its port"))?;
    let addr = match addr {
        "" => None,
        addr => Some(addr.parse().map_err(|_| format!("`{addr}` is not an IPv4 address"))?),
    };
    match port.parse() {
        Ok(0) | Err(_) => Err(format!("`{port}` is not a port from 1 to 65535")),
        Ok(port) => Ok((addr, port)),
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}-", self.protocol, self.host_addr, self.host_port)?;
        if let Some(addr) = self.guest_addr {
            write!(f, "{addr}")?;
        }
        write!(f, ":{}", self.guest_port)
    }
}

impl TryFrom<String> for PortForward {
    type Error = ForwardError;

    fn try_from(text: String) -> Result<Self, ForwardError> {
        text.parse()
    }
}

impl From<PortForward> for String {
    fn from(forward: PortForward) -> Self {
        forward.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["tcp:127.0.0.1:6379-:6379", "udp:0.0.0.0:53-10.0.2.20:5353"] {
            assert_eq!(text.parse::<PortForward>().unwrap().to_string(), text);
        }
        assert_eq!("tcp::8080-:80".parse::<PortForward>().unwrap().to_string(), "tcp:127.0.0.1:8080-:80");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("6379", "the protocol is missing"),
            ("sctp::1-:1", "`sctp` is neither"),
            ("tcp:127.0.0.1:6379", "no `-`"),
            ("tcp:6379-6379", "host side has no `:`"),
            ("tcp::6379-6379", "guest side has no `:`"),
            ("tcp:localhost:1-:1", "`localhost` is not an IPv4 address"),
            ("tcp::0-:1", "`0` is not a port"),
            ("tcp::1-:65536", "`65536` is not a port"),
            ("tcp::1-:", "`` is not a port"),
        ] {
            let error = text.parse::<PortForward>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
