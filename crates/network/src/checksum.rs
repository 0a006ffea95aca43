//! Internet checksums (RFC 1071), and the completion of those that a frame leaves open.

use crate::offload::{Checksum, FrameOffload, Gso, OffloadError};
use crate::packet::TcpFrame;

/// The ones' complement sum of `bytes` as big-endian 16-bit words, not yet complemented; an odd last byte is padded
/// with zero. `seed` is an earlier sum to go on from.
pub(crate) fn sum(bytes: &[u8], seed: u16) -> u16 {
    // The sum does not depend on word size or byte order (RFC 1071, section 2), so take eight bytes at a time in the
    // host's order and swap once at the end.
    let mut total: u128 = u128::from(seed.to_be());
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        total += u128::from(u64::from_ne_bytes(*word));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total += u128::from(u64::from_ne_bytes(last));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    // The loop leaves at most 16 bits.
    u16::from_be(total as u16)
}

/// Does what a frame leaves open for a receiver that takes TCP packets of any length but wants checksums: the
/// checksum is stored in `frame`; a long TCP frame stays long.
///
/// # Errors
/// [`OffloadError`]; `frame` is unchanged then.
pub(crate) fn complete(frame: &mut [u8], offload: FrameOffload) -> Result<(), OffloadError> {
    offload.check(frame.len())?;
    let Checksum::Partial { start, offset } = offload.checksum else { return Ok(()) };
    let (start, offset) = match offload.gso {
        Gso::None => (usize::from(start), usize::from(offset)),
        // Guests differ in whether the pseudo header they summed holds the length of the whole or of one segment: sum
        // it anew from the headers.
        Gso::TcpV4(_) | Gso::TcpV6(_) => {
            let tcp = TcpFrame::parse(frame).ok_or(OffloadError::NotTcp)?;
            let (start, pseudo) = (tcp.tcp_start, tcp.pseudo_header_sum());
            store(frame, start + TcpFrame::CHECKSUM_OFFSET, pseudo);
            (start, TcpFrame::CHECKSUM_OFFSET)
        }
    };
    let Some(summed) = frame.get(start..) else { return Err(OffloadError::NotTcp) };
    let checksum = match !sum(summed, 0) {
        // In UDP zero means "none"; the other zero of ones' complement is right for every protocol.
        0 => 0xffff,
        checksum => checksum,
    };
    store(frame, start + offset, checksum);
    Ok(())
}

/// Stores a big-endian word at `at`, if that lies inside.
pub(crate) fn store(frame: &mut [u8], at: usize, value: u16) {
    if let Some(field) = frame.get_mut(at..).and_then(|tail| tail.first_chunk_mut::<2>()) {
        *field = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Segmentation;
    use proptest::prelude::*;

    /// Word by word as RFC 1071 has it, after padding.
    fn slow_sum(bytes: &[u8], seed: u16) -> u16 {
        let mut total = u32::from(seed);
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    /// The two zeros of ones' complement are one number.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a.is_multiple_of(0xffff) && b.is_multiple_of(0xffff))
    }

    proptest! {
        #[test]
        fn sum_equals_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..300), seed: u16) {
            prop_assert!(same(sum(&bytes, seed), slow_sum(&bytes, seed)));
        }

        #[test]
        fn a_completed_checksum_verifies(
            mut frame in proptest::collection::vec(any::<u8>(), 0..200), start in 0u16..220, offset in (0u16..110).prop_map(|n| n * 2),
        ) {
            let before = frame.clone();
            let offload = FrameOffload { checksum: Checksum::Partial { start, offset }, gso: Gso::None };
            let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
            let done = complete(&mut frame, offload);
            prop_assert_eq!(done.is_ok(), field + 2 <= frame.len());
            if done.is_ok() {
                // The field's old value is a part of the sum: put it back beside the new one.
                let old = u16::from_be_bytes([before[field], before[field + 1]]);
                prop_assert!(same(slow_sum(&frame[start..], old), 0xffff));
            } else {
                prop_assert_eq!(frame, before);
            }
        }

        #[test]
        fn any_frame_with_any_header_is_survived(
            mut frame in proptest::collection::vec(any::<u8>(), 0..120), start: u16, offset: u16, mss: u16, v6: bool,
        ) {
            let segmentation = Segmentation { mss, header_len: offset };
            let gso = if v6 { Gso::TcpV6(segmentation) } else { Gso::TcpV4(segmentation) };
            let checksum = Checksum::Partial { start: start % 130, offset: offset % 20 };
            let _ = complete(&mut frame, FrameOffload { checksum, gso });
        }
    }
}
