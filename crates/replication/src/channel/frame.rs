//! The layout of a frame.

use super::error::ChannelError;

/// Longest payload of a frame, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Where the kind is.
pub(super) const KIND_OFFSET: usize = 4;

/// Length, kind and checksum, in bytes.
pub(super) const HEADER_BYTES: usize = 9;

/// What was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The kind that it was sent as.
    pub kind: u8,
    /// The bytes that the frame carries.
    pub payload: &'a [u8],
}

/// The header of a frame whose payload consists of `parts`.
pub(super) fn header(kind: u8, parts: &[&[u8]]) -> Result<[u8; HEADER_BYTES], ChannelError> {
    let bytes = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.len() as u64));
    let len = u32::try_from(bytes).ok().filter(|&len| len as usize <= PAYLOAD_BYTES_MAX);
    let len = len.ok_or(ChannelError::TooLong(bytes))?.to_le_bytes();
    let checksum = checksum(len, kind, parts).to_le_bytes();
    let [l0, l1, l2, l3] = len;
    let [c0, c1, c2, c3] = checksum;
    Ok([l0, l1, l2, l3, kind, c0, c1, c2, c3])
}

/// The frame at the beginning of `bytes` and its length on the wire, if all of it is there.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, ChannelError> {
    let Some((&[l0, l1, l2, l3, kind, c0, c1, c2, c3], rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    if len as usize > PAYLOAD_BYTES_MAX {
        return Err(ChannelError::TooLong(len.into()));
    }
    let Some(payload) = rest.get(..len as usize) else { return Ok(None) };
    if checksum([l0, l1, l2, l3], kind, &[payload]) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(ChannelError::Checksum);
    }
    Ok(Some((Frame { kind, payload }, HEADER_BYTES + payload.len())))
}

fn checksum(len: [u8; 4], kind: u8, parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(&[kind]);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = header(kind, parts).unwrap().to_vec();
        bytes.extend(parts.concat());
        bytes
    }

    proptest! {
        #[test]
        fn a_frame_is_found_whatever_follows_it(kind: u8, a: Vec<u8>, b: Vec<u8>, rest: Vec<u8>) {
            let mut bytes = wire(kind, &[&a, &b]);
            let len = bytes.len();
            for part in 0..len {
                prop_assert_eq!(parse(&bytes[..part]).unwrap(), None);
            }
            bytes.extend(rest);
            let payload = [a, b].concat();
            prop_assert_eq!(parse(&bytes).unwrap(), Some((Frame { kind, payload: &payload }, len)));
        }

        #[test]
        fn a_changed_bit_is_noticed(kind: u8, payload in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = wire(kind, &[&payload]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // A length that grew waits for more; TLS would have refused all of it anyway.
            prop_assert!(!matches!(parse(&bytes), Ok(Some(_))));
        }
    }

    #[test]
    fn lengths_are_bounded_on_both_sides() {
        let half = vec![0; PAYLOAD_BYTES_MAX / 2];
        assert!(header(0, &[&half, &half]).is_ok());
        assert!(matches!(header(0, &[&half, &half, &[0]]), Err(ChannelError::TooLong(_))));
        let mut bytes = wire(0, &[]);
        bytes[..4].copy_from_slice(&(PAYLOAD_BYTES_MAX as u32 + 1).to_le_bytes());
        assert!(matches!(parse(&bytes), Err(ChannelError::TooLong(_))));
    }
}
