//! Ethernet addresses of guests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An Ethernet address that one network card can have: not multicast, not zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

/// Why an Ethernet address was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits.
    #[error("`{0}` is not a MAC address; write six pairs of hexadecimal digits such as 52:54:00:12:34:56")]
    Malformed(String),
    /// The group bit is set, or all bytes are zero.
    #[error("`{0}` cannot be a network card's address: it is a multicast address or zero")]
    NotUnicast(String),
}

impl MacAddr {
    /// An address from its bytes in transmission order.
    ///
    /// # Errors
    /// [`MacError::NotUnicast`].
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        let mac = Self(bytes);
        if bytes[0] & 1 != 0 || bytes == [0; 6] { Err(MacError::NotUnicast(mac.to_string())) } else { Ok(mac) }
    }

    /// The address of network card number `card` of the VM called `vm`: always the same for the same pair, so that a
    /// guest keeps its address on whichever host it runs. Locally administered; 40 bits come from the pair.
    pub fn for_vm(vm: &str, card: u32) -> Self {
        let hash = fnv1a(vm.bytes().chain([0]).chain(card.to_le_bytes()));
        // FNV's high bits depend on few of the last bytes: fold them in, as the card number comes last.
        let [_, _, _, a, b, c, d, e] = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// The bytes in transmission order.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

/// The 64-bit FNV-1a hash: small, and fixed for all time, which the standard library's hashers are not.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let malformed = || MacError::Malformed(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(malformed)?;
            // `from_str_radix` alone would take `+1`.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        Self::new(bytes)
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn text_round_trips_and_bad_text_is_refused() {
        let mac: MacAddr = "52:54:00:AB:cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:0:12:34:56", "52:54:00:12:34:+6", "é2:54:00:12:34:56"]
        {
            assert_eq!(bad.parse::<MacAddr>(), Err(MacError::Malformed(bad.into())), "{bad}");
        }
        for bad in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"] {
            assert_eq!(bad.parse::<MacAddr>(), Err(MacError::NotUnicast(bad.into())), "{bad}");
        }
    }

    #[test]
    fn addresses_of_vms_are_stable_local_and_distinct() {
        // Pinned: a guest must not change its address when twinvm is upgraded.
        assert_eq!(MacAddr::for_vm("redis", 0).to_string(), "02:37:bc:e5:12:4e");
        assert_eq!(MacAddr::for_vm("redis", 1).to_string(), "02:8e:b5:eb:e4:88");
        let mut seen = HashSet::new();
        for vm in 0..200 {
            for card in 0..8 {
                let mac = MacAddr::for_vm(&format!("vm{vm}"), card);
                assert_eq!(mac.bytes()[0], 0x02);
                assert!(seen.insert(mac));
            }
        }
    }
}
