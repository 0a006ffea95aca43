//! Cutting a long TCP frame over IPv6 into segments, for a receiver that takes none beyond its MTU.

use crate::checksum::{store, sum};
use crate::offload::{OffloadError, Segmentation};
use crate::packet::TcpFrame;

/// Where the payload length stands in a frame over IPv6 (RFC 8200, section 3).
const PAYLOAD_LEN_AT: usize = 18;
/// Where the sequence number and the flags stand in the TCP header (RFC 9293, section 3.1).
const SEQUENCE_AT: usize = 4;
const FLAGS_AT: usize = 13;
/// Flags that only the last segment has: FIN and PSH.
const LAST_ONLY: u8 = 0x09;
/// The flag that only the first segment has: CWR (RFC 3168, section 6.1.2).
const FIRST_ONLY: u8 = 0x80;

/// The segments of a long frame, with their checksums.
///
/// # Errors
/// [`OffloadError::NotTcp`] if the frame is not a TCP packet over IPv6, [`OffloadError::BadGso`] for segments without payload.
pub(crate) fn segments(
    frame: &[u8],
    Segmentation { mss, .. }: Segmentation,
) -> Result<impl Iterator<Item = Vec<u8>>, OffloadError> {
    let tcp = TcpFrame::parse(frame).filter(|tcp| !tcp.is_ipv4()).ok_or(OffloadError::NotTcp)?;
    if mss == 0 {
        return Err(OffloadError::BadGso);
    }
    let (headers, start) = (tcp.headers(), tcp.tcp_start);
    let count = tcp.payload().len().div_ceil(mss.into());
    let sequence = word(headers, start + SEQUENCE_AT) << 16 | word(headers, start + SEQUENCE_AT + 2);
    let segments = tcp.payload().chunks(mss.into()).enumerate().map(move |(index, payload)| {
        let mut segment = [headers, payload].concat();
        // A frame's length is at most 16 bits.
        store(&mut segment, PAYLOAD_LEN_AT, (headers.len() - start + payload.len()) as u16);
        let sequence = sequence.wrapping_add(index as u32 * u32::from(mss));
        store(&mut segment, start + SEQUENCE_AT, (sequence >> 16) as u16);
        store(&mut segment, start + SEQUENCE_AT + 2, sequence as u16);
        if let Some(flags) = segment.get_mut(start + FLAGS_AT) {
            *flags &= if index == 0 { 0xff } else { !FIRST_ONLY };
            *flags &= if index + 1 == count { 0xff } else { !LAST_ONLY };
        }
        fill_checksum(&mut segment);
        segment
    });
    Ok(segments)
}

/// A big-endian word of the headers.
fn word(headers: &[u8], at: usize) -> u32 {
    headers.get(at..).and_then(|tail| tail.first_chunk::<2>()).map_or(0, |bytes| u16::from_be_bytes(*bytes).into())
}

fn fill_checksum(segment: &mut [u8]) {
    let Some(tcp) = TcpFrame::parse(segment) else { return };
    let (start, pseudo) = (tcp.tcp_start, tcp.pseudo_header_sum());
    store(segment, start + TcpFrame::CHECKSUM_OFFSET, pseudo);
    let checksum = !sum(segment.get(start..).unwrap_or_default(), 0);
    store(segment, start + TcpFrame::CHECKSUM_OFFSET, checksum);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u16 = 1440;
    const HEADERS_LEN: usize = 14 + 40 + 20;

    /// A frame of ACK, PSH, FIN and CWR with this payload.
    fn long(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; HEADERS_LEN];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[14] = 0x60;
        frame[18..20].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        frame[20] = 6;
        frame[22..54].fill(0xfe);
        frame[58..62].copy_from_slice(&(u32::MAX - 1000).to_be_bytes());
        frame[66] = 5 << 4;
        frame[67] = 0x99;
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn a_long_frame_is_cut_into_segments_that_are_the_same_stream() {
        let payload: Vec<u8> = (0..10_000u32).map(|number| (number % 251) as u8).collect();
        let cut = Segmentation { mss: MSS, header_len: 0 };
        let segments: Vec<_> = segments(&long(&payload), cut).unwrap().collect();
        assert_eq!(segments.len(), 7);
        let mut stream = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let tcp = TcpFrame::parse(segment).unwrap();
            assert_eq!(sum(&segment[tcp.tcp_start..], tcp.pseudo_header_sum()), 0xffff, "checksum of {index}");
            let sequence = u32::from_be_bytes(segment[58..62].try_into().unwrap());
            assert_eq!(sequence.wrapping_sub(u32::MAX - 1000) as usize, stream.len());
            let expected = [0x90, 0x10, 0x19][usize::from(index > 0) + usize::from(index == 6)];
            assert_eq!(segment[67], expected, "flags of {index}");
            stream.extend_from_slice(tcp.payload());
        }
        assert!(stream == payload);
    }

    #[test]
    fn what_is_no_tcp_over_ipv6_is_refused() {
        let cut = |frame: &[u8], mss| segments(frame, Segmentation { mss, header_len: 0 }).map(Iterator::count);
        assert_eq!(cut(&long(&[1; 3000]), 0), Err(OffloadError::BadGso));
        assert_eq!(cut(&long(&[1; 3000])[..500], MSS), Err(OffloadError::NotTcp));
        assert_eq!(cut(&[0; 100], MSS), Err(OffloadError::NotTcp));
        assert_eq!(cut(&long(&[]), MSS), Ok(0));
    }
}
