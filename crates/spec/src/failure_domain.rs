//! [`FailureDomain`]: what a host fails together with.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most parts of a domain.
const PARTS_MAX: usize = 8;
/// Longest part, in bytes.
const PART_BYTES_MAX: usize = 63;

/// Where a host is, from what is largest to what is smallest: `rack1/power2` is the second power circuit of the first rack. What takes a domain takes all
/// that lies in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FailureDomain(String);

/// Not a failure domain.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} cannot be a failure domain: use 1 to 8 names such as rack1/power2, each of 1 to 63 letters, digits, '-', '_' or '.', starting with a letter or digit"
)]
pub struct FailureDomainError(String);

impl FailureDomain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether one of the two lies in the other, or they are the same: `rack1` and `rack1/power2` do, as what takes the rack takes both; `rack1/power1`
    /// and `rack1/power2` do not, nor do `rack1` and `rack10`.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.split('/').zip(other.0.split('/')).all(|(a, b)| a == b)
    }
}

impl TryFrom<String> for FailureDomain {
    type Error = FailureDomainError;

    fn try_from(text: String) -> Result<Self, FailureDomainError> {
        let is_name = |part: &str| {
            part.len() <= PART_BYTES_MAX
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        if text.split('/').count() <= PARTS_MAX && text.split('/').all(is_name) {
            Ok(Self(text))
        } else {
            Err(FailureDomainError(text))
        }
    }
}

impl FromStr for FailureDomain {
    type Err = FailureDomainError;

    fn from_str(text: &str) -> Result<Self, FailureDomainError> {
        Self::try_from(text.to_owned())
    }
}

impl From<FailureDomain> for String {
    fn from(domain: FailureDomain) -> Self {
        domain.0
    }
}

impl fmt::Display for FailureDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_domain_fails_with_it() {
        let overlaps = |a: &str, b: &str| {
            let (a, b): (FailureDomain, FailureDomain) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.overlaps(&b), b.overlaps(&a));
            a.overlaps(&b)
        };
        assert!(overlaps("rack1", "rack1") && overlaps("rack1", "rack1/power2") && overlaps("a/b", "a/b/c"));
        assert!(!overlaps("rack1/power1", "rack1/power2") && !overlaps("rack1", "rack10"));
        assert!(!overlaps("rack1/power2", "rack2/power2"));
    }

    #[test]
    fn a_domain_is_names_in_a_row() {
        let longest = vec!["x".repeat(63); PARTS_MAX].join("/");
        for text in ["rack1", "Rack_1.a/power-2", &longest] {
            assert_eq!(text.parse::<FailureDomain>().unwrap().to_string(), text);
        }
        let (long, many) = ("x".repeat(64), ["x"; PARTS_MAX + 1].join("/"));
        for text in ["", "/", "rack1/", "/rack1", "a//b", "a b", "-a", "a/.b", &long, &many] {
            assert!(text.parse::<FailureDomain>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<FailureDomain>("\"a//b\"").is_err());
    }
}
