//! What a frame leaves for others to do: checksums to fill in and TCP payload to cut into segments.
//!
//! The wire form is `struct virtio_net_hdr` of the virtio 1.2 specification, section 5.1.6, in its 12-byte form (with
//! `num_buffers`), which TAP devices speak too.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
const FLAG_NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`
const FLAG_DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_NONE`
const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`
const GSO_TCP_V4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`
const GSO_TCP_V6: u8 = 4;

/// Length of the offload header on the wire, in bytes.
pub const HEADER_LEN: usize = 12;

/// State of the transport checksum of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The frame holds its whole checksum; nobody has verified it.
    #[default]
    Complete,
    /// The sender vouches for the payload: the receiver need not verify (`VIRTIO_NET_HDR_F_DATA_VALID`).
    Verified,
    /// The checksum field holds only the sum of the pseudo header. To complete it, sum the frame from byte `start` to
    /// its end and store the complement at byte `start + offset` (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial {
        /// First byte summed, counted from the start of the Ethernet header.
        start: u16,
        /// Position of the 16-bit checksum field, counted from `start`.
        offset: u16,
    },
}

/// Whether a frame is one segment or a long one to be cut (generic segmentation offload).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// The frame is to be sent as it is.
    #[default]
    None,
    /// TCP over IPv4 with more payload than one segment may hold.
    TcpV4(Segmentation),
    /// TCP over IPv6 with more payload than one segment may hold.
    TcpV6(Segmentation),
}

/// How a long TCP frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Payload bytes of each segment but the last; at least 1.
    pub mss: u16,
    /// Bytes of Ethernet, IP and TCP header. A hint (virtio 1.2, 5.1.6.2.2): the headers themselves decide.
    pub header_len: u16,
}

/// What one frame leaves to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameOffload {
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// Segmentation wanted.
    pub gso: Gso,
}

/// Why an offload header was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum OffloadError {
    /// A GSO type that was never offered, or unknown.
    #[error("unknown segmentation type {0:#x}")]
    UnknownGso(u8),
    /// A long frame without a partial checksum (virtio 1.2, 5.1.6.2.1 demands both together), or with an MSS of 0.
    #[error("segmentation without a partial checksum or without a segment size")]
    BadGso,
    /// The checksum field would lie outside the frame.
    #[error("checksum field at byte {field} does not lie in a frame of {frame_len} bytes")]
    ChecksumOutside {
        /// Where the field would start.
        field: usize,
        /// The frame's length in bytes.
        frame_len: usize,
    },
    /// The frame is not the TCP/IP packet that its header promises.
    #[error("a frame marked for TCP segmentation does not hold a well-formed TCP packet")]
    NotTcp,
}

impl FrameOffload {
    /// Reads a `virtio_net_hdr`; `num_buffers` is ignored.
    ///
    /// # Errors
    /// See [`OffloadError`]. [`Self::check`] still has to be asked whether the header fits its frame.
    pub fn from_header(header: &[u8; HEADER_LEN]) -> Result<Self, OffloadError> {
        let [flags, gso_type, h0, h1, m0, m1, s0, s1, o0, o1, _, _] = *header;
        let checksum = if flags & FLAG_NEEDS_CHECKSUM != 0 {
            Checksum::Partial { start: u16::from_le_bytes([s0, s1]), offset: u16::from_le_bytes([o0, o1]) }
        } else if flags & FLAG_DATA_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        let segmentation = Segmentation { mss: u16::from_le_bytes([m0, m1]), header_len: u16::from_le_bytes([h0, h1]) };
        let gso = match gso_type {
            GSO_NONE => Gso::None,
            GSO_TCP_V4 => Gso::TcpV4(segmentation),
            GSO_TCP_V6 => Gso::TcpV6(segmentation),
            other => return Err(OffloadError::UnknownGso(other)),
        };
        Ok(Self { checksum, gso })
    }

    /// The `virtio_net_hdr` of this frame, with `num_buffers` = 1 as a device without mergeable buffers must set it.
    pub fn to_header(self) -> [u8; HEADER_LEN] {
        let (flags, start, offset) = match self.checksum {
            Checksum::Complete => (0, 0, 0),
            Checksum::Verified => (FLAG_DATA_VALID, 0, 0),
            Checksum::Partial { start, offset } => (FLAG_NEEDS_CHECKSUM, start, offset),
        };
        let (gso_type, Segmentation { mss, header_len }) = match self.gso {
            Gso::None => (GSO_NONE, Segmentation { mss: 0, header_len: 0 }),
            Gso::TcpV4(segmentation) => (GSO_TCP_V4, segmentation),
            Gso::TcpV6(segmentation) => (GSO_TCP_V6, segmentation),
        };
        let [h0, h1] = header_len.to_le_bytes();
        let [m0, m1] = mss.to_le_bytes();
        let [s0, s1] = start.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        [flags, gso_type, h0, h1, m0, m1, s0, s1, o0, o1, 1, 0]
    }

    /// Whether this can be said of a frame of `frame_len` bytes.
    ///
    /// # Errors
    /// [`OffloadError::ChecksumOutside`] or [`OffloadError::BadGso`].
    pub fn check(self, frame_len: usize) -> Result<(), OffloadError> {
        if let Checksum::Partial { start, offset } = self.checksum {
            let field = usize::from(start) + usize::from(offset);
            if field + 2 > frame_len {
                return Err(OffloadError::ChecksumOutside { field, frame_len });
            }
        }
        match (self.gso, self.checksum) {
            (Gso::None, _) => Ok(()),
            (Gso::TcpV4(s) | Gso::TcpV6(s), Checksum::Partial { .. }) if s.mss > 0 => Ok(()),
            _ => Err(OffloadError::BadGso),
        }
    }
}

/// What the receiver of frames is willing to do itself: what a guest's driver negotiated for frames towards it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveOffloads {
    /// Partial and verified checksums (`VIRTIO_NET_F_GUEST_CSUM`).
    pub checksum: bool,
    /// Long TCP frames over IPv4 (`VIRTIO_NET_F_GUEST_TSO4`, which needs `checksum`).
    pub tso4: bool,
    /// Long TCP frames over IPv6 (`VIRTIO_NET_F_GUEST_TSO6`, which needs `checksum`).
    pub tso6: bool,
}

impl ReceiveOffloads {
    /// Whether a frame with this offload may be handed to the receiver.
    pub fn allow(self, offload: FrameOffload) -> bool {
        let checksum = self.checksum || offload.checksum == Checksum::Complete;
        let gso = match offload.gso {
            Gso::None => true,
            Gso::TcpV4(_) => self.tso4,
            Gso::TcpV6(_) => self.tso6,
        };
        checksum && gso
    }

    pub(crate) fn to_bits(self) -> u8 {
        u8::from(self.checksum) | u8::from(self.tso4) << 1 | u8::from(self.tso6) << 2
    }

    /// Long frames need partial checksums, so without `checksum` the others fall away.
    pub(crate) fn from_bits(bits: u8) -> Self {
        let checksum = bits & 1 != 0;
        Self { checksum, tso4: checksum && bits & 2 != 0, tso6: checksum && bits & 4 != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_that_is_understood_survives_the_wire(header: [u8; HEADER_LEN]) {
            if let Ok(offload) = FrameOffload::from_header(&header) {
                prop_assert_eq!(FrameOffload::from_header(&offload.to_header()), Ok(offload));
            }
        }
    }

    #[test]
    fn layout_is_that_of_virtio() {
        let offload = FrameOffload {
            checksum: Checksum::Partial { start: 0x0102, offset: 0x0304 },
            gso: Gso::TcpV6(Segmentation { mss: 0x0506, header_len: 0x0708 }),
        };
        assert_eq!(offload.to_header(), [1, 4, 8, 7, 6, 5, 2, 1, 4, 3, 1, 0]);
    }

    #[test]
    fn long_frames_need_a_partial_checksum_inside_the_frame() {
        let gso = Gso::TcpV4(Segmentation { mss: 1460, header_len: 54 });
        let partial = Checksum::Partial { start: 34, offset: 16 };
        assert_eq!(FrameOffload { checksum: Checksum::Complete, gso }.check(3000), Err(OffloadError::BadGso));
        assert_eq!(FrameOffload { checksum: partial, gso }.check(52), Ok(()));
        assert_eq!(
            FrameOffload { checksum: partial, gso }.check(51),
            Err(OffloadError::ChecksumOutside { field: 50, frame_len: 51 })
        );
        let far = Checksum::Partial { start: u16::MAX, offset: u16::MAX };
        assert!(FrameOffload { checksum: far, gso: Gso::None }.check(65_550).is_err());
    }
}
