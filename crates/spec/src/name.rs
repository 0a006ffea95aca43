//! Names of hosts and VMs.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ReplicaId;

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// A name that cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// Not one of a host.
    #[error("{0:?} cannot be the name of a host: use 1 to 63 lower-case letters, digits and '-', not at either end")]
    Host(String),
    /// Not one of a VM.
    #[error(
        "{0:?} cannot be the name of a VM: use 1 to 63 letters, digits, '-', '_' or '.', starting with a letter or digit"
    )]
    Vm(String),
    /// Not one of a snapshot.
    #[error(
        "{0:?} cannot be the name of a snapshot: use 1 to 63 letters, digits, '-', '_' or '.', starting with a letter or digit"
    )]
    Snapshot(String),
    /// Not one of a datastore.
    #[error(
        "{0:?} cannot be the name of a datastore: use 1 to 63 letters, digits, '-', '_' or '.', starting with a letter or digit"
    )]
    Datastore(String),
}

/// The name of a host: a label of the domain name system in lower case (RFC 1123), since it stands in certificates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// The name of a VM: what [`VmSpec::name`](crate::VmSpec::name) may be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// The name of a snapshot of a VM that has a host; it is part of a file's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

/// The name of a datastore.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatastoreName(String);

impl TryFrom<String> for HostName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if (1..=NAME_BYTES_MAX).contains(&name.len()) && letters && !name.starts_with('-') && !name.ends_with('-') {
            Ok(Self(name))
        } else {
            Err(NameError::Host(name))
        }
    }
}

impl TryFrom<String> for VmName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        if is_plain(&name) { Ok(Self(name)) } else { Err(NameError::Vm(name)) }
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        if is_plain(&name) { Ok(Self(name)) } else { Err(NameError::Snapshot(name)) }
    }
}

impl TryFrom<String> for DatastoreName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        if is_plain(&name) { Ok(Self(name)) } else { Err(NameError::Datastore(name)) }
    }
}

/// Whether a name fits into keys of the store and names of files.
fn is_plain(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

impl HostName {
    /// The id of the replicas on this host.
    pub fn replica(&self) -> ReplicaId {
        ReplicaId::new(&self.0)
    }

    /// Whether this is the host of a replica.
    pub fn is(&self, replica: &ReplicaId) -> bool {
        self.0 == replica.as_str()
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::try_from(name.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }
    };
}

as_text!(HostName);
as_text!(VmName);
as_text!(SnapshotName);
as_text!(DatastoreName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_certificates_keys_and_files() {
        for good in ["a", "0", "host-1", &"x".repeat(63)] {
            assert_eq!(good.parse::<HostName>().unwrap(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert_eq!(bad.parse::<HostName>(), Err(NameError::Host(bad.to_owned())));
        }
        for good in ["a", "0", "Redis_1.test-", &"x".repeat(63)] {
            assert_eq!(good.parse::<VmName>().unwrap(), good);
        }
        for bad in ["", ".", "..", "-a", "_a", "a/claim", "a b", "ä", "a\0", &"x".repeat(64)] {
            assert_eq!(bad.parse::<VmName>(), Err(NameError::Vm(bad.to_owned())));
            assert_eq!(bad.parse::<SnapshotName>(), Err(NameError::Snapshot(bad.to_owned())));
        }
        assert!(serde_json::from_str::<VmName>("\"a/b\"").is_err(), "names are checked when they are read");
    }
}
