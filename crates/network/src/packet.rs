//! The headers of a TCP packet in an Ethernet frame, as far as offloads need them.

use crate::checksum::sum;

const ETHERNET_LEN: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const IPV6_LEN: usize = 40;
const PROTOCOL_TCP: u8 = 6;
/// The "more fragments" bit and the fragment offset of the IPv4 header.
const IPV4_FRAGMENT: u16 = 0x3fff;

/// Where the headers of a TCP packet end. Made only from frames that hold those headers whole, whose IP length
/// equals the frame's, and which are neither fragments nor behind IPv6 extension headers or VLAN tags.
#[derive(Clone, Copy)]
pub(crate) struct TcpFrame<'a> {
    frame: &'a [u8],
    /// Start of the TCP header.
    pub tcp_start: usize,
    /// Start of the payload.
    pub payload_start: usize,
    addresses: &'a [u8],
}

impl<'a> TcpFrame<'a> {
    /// Position of the checksum in the TCP header (RFC 9293, section 3.1).
    pub const CHECKSUM_OFFSET: usize = 16;

    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET_LEN..)?;
        let (ip_header_len, addresses) = match frame.get(12..14)?.try_into().ok()? {
            ETHERTYPE_IPV4 => {
                let header: &[u8; 20] = ip.first_chunk()?;
                let header_len = usize::from(header[0] & 0xf) * 4;
                let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let fragment = u16::from_be_bytes([header[6], header[7]]) & IPV4_FRAGMENT;
                let sound = header[0] >> 4 == 4 && header_len >= 20 && total_len == ip.len() && fragment == 0;
                if !sound || header[9] != PROTOCOL_TCP {
                    return None;
                }
                (header_len, ip.get(12..20)?)
            }
            ETHERTYPE_IPV6 => {
                let header: &[u8; IPV6_LEN] = ip.first_chunk()?;
                let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
                if header[0] >> 4 != 6 || header[6] != PROTOCOL_TCP || payload_len + IPV6_LEN != ip.len() {
                    return None;
                }
                (IPV6_LEN, ip.get(8..40)?)
            }
            _ => return None,
        };
        let tcp_start = ETHERNET_LEN + ip_header_len;
        let tcp: &[u8; 20] = frame.get(tcp_start..)?.first_chunk()?;
        let tcp_header_len = usize::from(tcp[12] >> 4) * 4;
        let payload_start = tcp_start + tcp_header_len;
        (tcp_header_len >= 20 && payload_start <= frame.len()).then_some(Self {
            frame,
            tcp_start,
            payload_start,
            addresses,
        })
    }

    /// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1), not complemented.
    pub fn pseudo_header_sum(&self) -> u16 {
        // A frame is at most 16 bits long, as its IP header counts its bytes.
        let len = (self.frame.len() - self.tcp_start) as u16;
        let [len0, len1] = len.to_be_bytes();
        sum(&[len0, len1, 0, PROTOCOL_TCP], sum(self.addresses, 0))
    }

    /// Ethernet, IP and TCP headers.
    pub fn headers(&self) -> &'a [u8] {
        &self.frame[..self.payload_start]
    }

    pub fn payload(&self) -> &'a [u8] {
        &self.frame[self.payload_start..]
    }

    pub fn is_ipv4(&self) -> bool {
        self.addresses.len() == 8
    }
}
