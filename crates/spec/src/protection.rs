//! [`Protection`]: what becomes of a VM when its host is lost.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What becomes of a VM when its host is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// It is off until its host is back.
    #[default]
    None,
    /// It is restarted on another host.
    Ha,
    /// It goes on without a break, on the host of its secondary.
    Ft,
}

impl Protection {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Ha, Self::Ft];

    /// As in a spec.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ha => "ha",
            Self::Ft => "ft",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// Not the name of a protection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no protection {0:?}: it is none, ha or ft")]
pub struct UnknownProtection(String);

impl FromStr for Protection {
    type Err = UnknownProtection;

    fn from_str(name: &str) -> Result<Self, UnknownProtection> {
        let found = Self::ALL.into_iter().find(|protection| protection.label() == name);
        found.ok_or_else(|| UnknownProtection(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protections_are_read_as_they_are_written() {
        for protection in Protection::ALL {
            assert_eq!(protection.to_string().parse::<Protection>().unwrap(), protection);
            assert_eq!(serde_json::to_value(protection).unwrap(), protection.label());
        }
        assert!("mirror".parse::<Protection>().unwrap_err().to_string().contains("none, ha or ft"));
    }
}
