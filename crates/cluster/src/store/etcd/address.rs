//! Where an etcd cluster is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the address of an etcd cluster begins.
pub const SCHEME: &str = "etcd://";
/// What keys begin with if the address does not say it.
const NAME_DEFAULT: &str = "twinvm";

/// Where an etcd cluster is, and under which name it holds a cluster of twinvm's: `etcd://HOST:PORT,HOST:PORT/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdAddress {
    /// Its members, as `HOST:PORT` of where they serve clients: each is tried in turn.
    pub members: Vec<String>,
    /// What all keys begin with: several clusters may be in one etcd.
    pub name: String,
}

/// The files with which one proves to etcd who one is, and is proved to whom one talks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdKeys {
    /// The certificate of the authority that signed those of etcd's members, as PEM.
    pub ca: PathBuf,
    /// This host's certificate, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// Who it is to etcd, if etcd gives rights to users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<EtcdUser>,
}

/// A user of etcd's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdUser {
    /// Its name.
    pub name: String,
    /// The file with its password.
    pub password: PathBuf,
}

impl FromStr for EtcdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text}: {why}; write for example {SCHEME}192.0.2.1:2379,192.0.2.2:2379");
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not begin with etcd://"))?;
        let (members, name) = rest.split_once('/').unwrap_or((rest, NAME_DEFAULT));
        let members: Vec<String> = members.split(',').map(str::to_owned).collect();
        for member in &members {
            let (host, port) = member.rsplit_once(':').unwrap_or((member, ""));
            let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte);
            if host.is_empty() || !host.bytes().all(is_host) {
                return Err(wrong(&format!("`{member}` names no host")));
            }
            if !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return Err(wrong(&format!("`{member}` has no port")));
            }
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(is_name) {
            return Err(wrong("the name after the slash has to be of 1 to 64 letters, digits, `-`, `_` and `.`"));
        }
        Ok(Self { members, name: name.to_owned() })
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.members.join(","))?;
        if self.name == NAME_DEFAULT { Ok(()) } else { write!(f, "/{}", self.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_members_and_perhaps_a_name() {
        for text in ["etcd://192.0.2.1:2379", "etcd://a.example:1,b:2,[2001:db8::1]:3", "etcd://a:1/lab-2"] {
            assert_eq!(text.parse::<EtcdAddress>().unwrap().to_string(), text);
        }
        let address: EtcdAddress = "etcd://a:1,b:2/lab".parse().unwrap();
        assert_eq!((address.members, &*address.name), (vec!["a:1".to_owned(), "b:2".to_owned()], "lab"));
        for (text, why) in [
            ("a:1", "does not begin"),
            ("etcd://", "names no host"),
            ("etcd://a", "no port"),
            ("etcd://a:0", "no port"),
            ("etcd://a:70000", "no port"),
            ("etcd://a:1,", "names no host"),
            ("etcd://a@b:1", "names no host"),
            ("etcd://a:1/", "the name"),
            ("etcd://a:1/x/y", "the name"),
        ] {
            let error = text.parse::<EtcdAddress>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
