//! Where an etcd cluster is.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
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

impl EtcdAddress {
    /// The same, beginning with the member that is on this machine, if one is, by its IP address: it is there whenever whoever asks is, and every other one may be on
    /// the machine that has just been lost.
    pub fn nearest_first(&self) -> Self {
        let mut nearest = self.clone();
        nearest.members.sort_by_cached_key(|member| !is_on_this_machine(member));
        nearest
    }
}

/// Whether an address is one of this machine's. Nothing is sent: to reach an address of its own, the kernel takes that as the sender's.
fn is_on_this_machine(member: &str) -> bool {
    let Ok(member) = member.parse::<SocketAddr>() else { return false };
    let any: IpAddr = if member.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let sender = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(member)?;
        socket.local_addr()
    });
    sender.is_ok_and(|sender| sender.ip() == member.ip())
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
    fn the_member_on_this_machine_comes_first_and_the_others_as_they_are_named() {
        let nearest = |text: &str| text.parse::<EtcdAddress>().unwrap().nearest_first().to_string();
        // The addresses are for documentation, and nobody's; names are not looked up.
        let far = "etcd://203.0.113.201:2379,localhost:2379,203.0.113.202:2379";
        assert_eq!(nearest(&format!("{far},127.0.0.1:2379")), format!("etcd://127.0.0.1:2379,{}", &far[7..]));
        assert_eq!(nearest(far), far);
    }

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
