//! Joins consecutive TCP segments into one long frame (generic receive offload), as an interpreted guest pays per
//! frame far more than per byte.

use crate::checksum::{store, sum};
use crate::offload::{Checksum, FrameOffload, Gso, Segmentation};
use crate::packet::TcpFrame;

const IP_START: usize = 14;
const IP_HEADER_LEN: usize = 20;
const TCP_START: usize = IP_START + IP_HEADER_LEN;
/// An IPv4 packet counts its bytes in 16 bits.
const FRAME_LEN_MAX: usize = IP_START + 65_535;
const FLAGS: usize = TCP_START + 13;
const FLAG_PSH: u8 = 0x08;
const FLAG_ACK: u8 = 0x10;

/// Appends the payload of `next` to `frame` if both are segments of one connection, the second right behind the first,
/// and a receiver could not tell the difference; else changes nothing and returns false.
///
/// The result has a partial checksum and is marked for segmentation, so its receiver must have accepted both. The
/// checksums of the parts are not verified: their source must be trusted to be right.
pub(crate) fn append(frame: &mut Vec<u8>, offload: &mut FrameOffload, next: &[u8]) -> bool {
    let (Some(first), Some(second)) = (TcpFrame::parse(frame), TcpFrame::parse(next)) else { return false };
    if !follows(&first, &second) {
        return false;
    }
    let held = first.payload().len();
    let mss = match offload.gso {
        Gso::None => held,
        Gso::TcpV4(segmentation) => usize::from(segmentation.mss),
        Gso::TcpV6(_) => return false,
    };
    // Only the last segment may be shorter than the others.
    let fits = held.is_multiple_of(mss) && second.payload().len() <= mss;
    let len = frame.len() + second.payload().len();
    let (Ok(mss), Ok(header_len), true) = (u16::try_from(mss), u16::try_from(first.payload_start), fits) else {
        return false;
    };
    if len > FRAME_LEN_MAX {
        return false;
    }

    frame.extend_from_slice(second.payload());
    // Below 65,536 by the check above.
    store(frame, IP_START + 2, (len - IP_START) as u16);
    store(frame, IP_START + 10, 0);
    let ip_checksum = !frame.get(IP_START..TCP_START).map_or(0, |header| sum(header, 0));
    store(frame, IP_START + 10, ip_checksum);
    if let (Some(flags), Some(more)) = (frame.get_mut(FLAGS), next.get(FLAGS)) {
        *flags |= more & FLAG_PSH;
    }
    if let Some(pseudo) = TcpFrame::parse(frame).map(|joined| joined.pseudo_header_sum()) {
        store(frame, TCP_START + TcpFrame::CHECKSUM_OFFSET, pseudo);
    }
    let checksum = Checksum::Partial { start: TCP_START as u16, offset: TcpFrame::CHECKSUM_OFFSET as u16 };
    *offload = FrameOffload { checksum, gso: Gso::TcpV4(Segmentation { mss, header_len }) };
    true
}

/// Whether all header fields agree, apart from those that joining recomputes, and the sequence numbers join up.
fn follows(first: &TcpFrame<'_>, second: &TcpFrame<'_>) -> bool {
    let (a, b) = (first.headers(), second.headers());
    let plain = first.is_ipv4() && second.is_ipv4() && first.tcp_start == TCP_START && second.tcp_start == TCP_START;
    if !plain || a.len() != b.len() || first.payload().is_empty() || second.payload().is_empty() {
        return false;
    }
    let same = |from: usize, to: usize| a.get(from..to) == b.get(from..to);
    // Not compared: IP length, identification and checksum, TCP sequence number, PSH flag and checksum.
    let headers_agree = same(0, IP_START + 2)
        && same(IP_START + 6, IP_START + 10)
        && same(IP_START + 12, TCP_START + 4)
        && same(TCP_START + 8, FLAGS)
        && same(FLAGS + 1, TCP_START + 16)
        && same(TCP_START + 18, a.len());
    let only_ack = |headers: &[u8]| headers.get(FLAGS).is_some_and(|flags| flags & !FLAG_PSH == FLAG_ACK);
    let sequence = |headers: &[u8]| {
        headers.get(TCP_START + 4..).and_then(|tail| tail.first_chunk::<4>()).map(|bytes| u32::from_be_bytes(*bytes))
    };
    // A packet's payload is shorter than 65,536 bytes.
    let next = sequence(a).map(|start| start.wrapping_add(first.payload().len() as u32));
    headers_agree && only_ack(a) && only_ack(b) && next == sequence(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::complete;
    use proptest::prelude::*;

    fn segment(sequence: u32, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 1, 2, 3, 0x52, 0x55, 10, 0, 2, 2, 8, 0];
        let total = (40 + options.len() + payload.len()) as u16;
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([sequence as u8, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15]);
        let ip = !sum(&frame[14..34], 0);
        store(&mut frame, 24, ip);
        frame.extend([0x18, 0xeb, 0x9c, 0x40]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 9, ((20 + options.len()) * 4) as u8, flags, 0x10, 0, 0, 0, 0, 0]);
        frame.extend(options);
        frame.extend(payload);
        let tcp = TcpFrame::parse(&frame).unwrap();
        let checksum = !sum(&frame[34..], tcp.pseudo_header_sum());
        store(&mut frame, 50, checksum);
        frame
    }

    /// Cuts a long frame as its receiver's TCP would see it: (sequence number, payload, flags).
    fn cut(frame: &[u8], offload: FrameOffload) -> Vec<(u32, Vec<u8>, u8)> {
        let mut whole = frame.to_vec();
        complete(&mut whole, offload).unwrap();
        assert_eq!(sum(&whole[14..34], 0), 0xffff, "IP checksum");
        let tcp = TcpFrame::parse(&whole).unwrap();
        assert_eq!(sum(&whole[34..], tcp.pseudo_header_sum()), 0xffff, "TCP checksum");
        let mss = match offload.gso {
            Gso::TcpV4(segmentation) => usize::from(segmentation.mss),
            _ => usize::MAX,
        };
        let start = u32::from_be_bytes(whole[38..42].try_into().unwrap());
        let chunks: Vec<_> = tcp.payload().chunks(mss).collect();
        let last = chunks.len() - 1;
        let flags = |index| if index == last { whole[FLAGS] } else { whole[FLAGS] & !FLAG_PSH };
        let sequence = |index| start.wrapping_add((index * mss.min(1 << 20)) as u32);
        chunks.iter().enumerate().map(|(i, chunk)| (sequence(i), chunk.to_vec(), flags(i))).collect()
    }

    proptest! {
        #[test]
        fn joined_segments_come_apart_as_they_were(
            start: u32, mss in 1usize..1500, full in 1usize..60, last in 1usize..1500, timestamps: bool, push: bool,
        ) {
            let options: &[u8] = if timestamps { &[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8] } else { &[] };
            let mut sent = Vec::new();
            let mut next = start;
            for index in 0..=full {
                let len = if index == full { last.min(mss) } else { mss };
                let flags = if index == full && push { FLAG_ACK | FLAG_PSH } else { FLAG_ACK };
                let payload: Vec<u8> = (0..len).map(|n| (n * 7 + index) as u8).collect();
                sent.push((next, payload, flags));
                next = next.wrapping_add(len as u32);
            }
            let mut got = Vec::new();
            let mut held: Option<(Vec<u8>, FrameOffload)> = None;
            for (sequence, payload, flags) in &sent {
                let frame = segment(*sequence, *flags, options, payload);
                let joined = held.as_mut().is_some_and(|(long, offload)| append(long, offload, &frame));
                if !joined && let Some((long, offload)) = held.replace((frame, FrameOffload::default())) {
                    got.extend(cut(&long, offload));
                }
            }
            let (long, offload) = held.unwrap();
            got.extend(cut(&long, offload));
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn any_bytes_are_survived(mut a in proptest::collection::vec(any::<u8>(), 0..100), b in proptest::collection::vec(any::<u8>(), 0..100)) {
            append(&mut a, &mut FrameOffload::default(), &b);
        }

        #[test]
        fn a_change_in_any_compared_byte_forbids_joining(at in 0usize..66, bit in 0u8..8) {
            let options = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
            let first = segment(100, FLAG_ACK, &options, b"abcd");
            let mut second = segment(104, FLAG_ACK, &options, b"efgh");
            second[at] ^= 1 << bit;
            let push = at == FLAGS && 1 << bit == FLAG_PSH;
            let recomputed = [18, 19, 24, 25, 50, 51].contains(&at) || push;
            let mut joined = first.clone();
            prop_assert_eq!(append(&mut joined, &mut FrameOffload::default(), &second), recomputed);
        }
    }

    #[test]
    fn a_joined_packet_stays_within_what_ip_can_count() {
        let mut frame = segment(0, FLAG_ACK, &[], &[7; 1460]);
        let mut offload = FrameOffload::default();
        let mut sequence = 1460;
        while append(&mut frame, &mut offload, &segment(sequence, FLAG_ACK, &[], &[7; 1460])) {
            sequence += 1460;
        }
        assert_eq!(frame.len(), 54 + 1460 * 44);
    }
}
