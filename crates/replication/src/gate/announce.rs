//! Telling a network where a VM is now.

use spec::MacAddr;

const BROADCAST: [u8; 6] = [0xff; 6];
/// RARP's EtherType (RFC 903).
const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses (RFC 826).
const ADDRESS_TYPES: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// "Request reverse" (RFC 903).
const OPERATION: [u8; 2] = [0, 3];
/// Least length of an Ethernet frame, without frame check sequence.
const FRAME_LEN_MIN: usize = 60;

/// A RARP request of a card for its own address, as QEMU's `announce_self` sends it (`announce_self_create` in
/// `net/announce.c`): switches learn from its source address at which port the card is, and stations ignore it.
pub(super) fn announcement(mac: MacAddr) -> Vec<u8> {
    let mac = mac.bytes();
    let unknown = [0; 4];
    let mut frame =
        [&BROADCAST[..], &mac, &ETHERTYPE_RARP, &ADDRESS_TYPES, &OPERATION, &mac, &unknown, &mac, &unknown].concat();
    frame.resize(FRAME_LEN_MIN, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_that_of_qemu() {
        let frame = announcement(MacAddr::new([2, 1, 2, 3, 4, 5]).unwrap());
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1, 2, 3, 4, 5, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3, 2, 1, 2, 3, 4, 5,
            0, 0, 0, 0, 2, 1, 2, 3, 4, 5, 0, 0, 0, 0,
        ];
        assert_eq!(frame[..42], expected);
        assert_eq!((frame.len(), frame[42..].iter().any(|&byte| byte != 0)), (60, false));
    }
}
