//! [`VmId`]: which VM a VM is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Tells a VM from all others, its clones included. It is 128 bits, written as 32 hexadecimal digits as a machine-id is (machine-id(5)), and not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(u128);

/// Text that is no [`VmId`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a VM's ID: write 32 hexadecimal digits, not all of them zero")]
pub struct VmIdError(String);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for VmId {
    type Err = VmIdError;

    /// Reads the digits; the hyphens of a UUID may stand between them.
    fn from_str(text: &str) -> Result<Self, VmIdError> {
        let digits: String = text.chars().filter(|&c| c != '-').collect();
        let bad = || VmIdError(text.to_owned());
        if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        match u128::from_str_radix(&digits, 16) {
            Ok(id) if id != 0 => Ok(Self(id)),
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for VmId {
    type Error = VmIdError;

    fn try_from(text: String) -> Result<Self, VmIdError> {
        text.parse()
    }
}

impl From<VmId> for String {
    fn from(id: VmId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_32_digits() {
        let id: VmId = "00f3a0b1-5c2d-4e6f-8a9b-0c1d2e3f4a5b".parse().unwrap();
        assert_eq!(id.to_string(), "00f3a0b15c2d4e6f8a9b0c1d2e3f4a5b");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "1", &"0".repeat(32), &"g".repeat(32), &"1".repeat(33), "+00f3a0b15c2d4e6f8a9b0c1d2e3f4a5"] {
            assert!(bad.parse::<VmId>().is_err(), "{bad}");
        }
    }
}
