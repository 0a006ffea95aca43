//! The rights of hosts in etcd: users and roles, as its administrator gives them.
//!
//! What a host may do with the keys of a cluster's entries (etcd's own rights are by ranges of keys):
//!
//! | keys | a host | the host with the cluster's authority |
//! | --- | --- | --- |
//! | all | reads | reads |
//! | `hosts/` and `alive/` with its own name | writes | writes |
//! | `vms/` | writes: any host may become a VM's home, create one, or arbitrate about it | writes |
//! | `runs/` with its own name | writes | writes |
//! | `datastores/` | writes: which folders it uses is decided by each host for itself (`vm_folders` in its host.toml) | writes |
//! | its own receipts | writes | writes |
//! | `hosts/`, `alive/`, `tokens/`, `cluster`, `admission` | - | writes |

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::IgnoredAny;
use spec::HostName;

use super::address::{EtcdAddress, EtcdKeys};
use super::client::Client;
use super::receipts_of;
use super::wire::{Answered, Bytes, Problem};
use crate::store::{StoreError, end_of};

/// The user who may do everything, and the role of that name: etcd's own.
pub const ROOT: &str = "root";
/// For how long an etcd that is set up may not answer: its members may have been started just now, one after the other.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// The permissions that etcd knows.
const READ: &str = "READ";
const READ_WRITE: &str = "READWRITE";

/// An answer of which only is of interest that there is one.
struct Any;

impl<'de> serde::Deserialize<'de> for Any {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::Deserialize::deserialize(deserializer).map(|IgnoredAny| Self)
    }
}

/// Some answers about users have no revision in their header.
impl Answered for Any {
    fn header(&self) -> Option<super::wire::Header> {
        None
    }
}

#[derive(Serialize)]
struct User<'a> {
    name: &'a str,
    password: &'a str,
}

#[derive(Serialize)]
struct Name<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct RoleOfUser<'a> {
    user: &'a str,
    role: &'a str,
}

#[derive(Serialize)]
struct Grant<'a> {
    name: &'a str,
    perm: Permission,
}

#[derive(Serialize)]
struct Permission {
    #[serde(rename = "permType")]
    kind: &'static str,
    key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    range_end: Option<Bytes>,
}

#[derive(Serialize)]
struct Nothing {}

/// The name of a host's user in etcd, in which several clusters may be.
pub fn user_of(address: &EtcdAddress, host: &HostName) -> String {
    format!("{}/{host}", address.name)
}

/// Gives rights in etcd, with the keys of its user `root`. Everything may be done again, and may have been done before.
pub struct EtcdAccess {
    client: Client,
}

impl EtcdAccess {
    /// Prepares to. Connects to nobody.
    ///
    /// # Errors
    /// If the keys cannot be used.
    pub fn new(address: &EtcdAddress, root: &EtcdKeys) -> Result<Self, StoreError> {
        Ok(Self { client: Client::new(address.clone(), Some(root), None)? })
    }

    /// Turns rights on: from then on nobody does anything in etcd without a user. The password of `root` is that of the keys.
    ///
    /// # Errors
    /// If no member answers, or rights are on with another password.
    ///
    /// An etcd whose members have just been started may take a while to answer, so it gets [`START_PATIENCE`].
    pub fn turn_on(&self, root_password: &str) -> Result<(), StoreError> {
        let until = Instant::now() + START_PATIENCE;
        self.user(ROOT, root_password, until)?;
        self.done_by(until, "role/add", &Name { name: ROOT })?;
        self.done_by(until, "user/grant", &RoleOfUser { user: ROOT, role: ROOT })?;
        self.done_by(until, "enable", &Nothing {})
    }

    /// Gives a host its user, with this password, and what a host may do in the cluster. `has_authority` makes it the host that signs certificates.
    ///
    /// # Errors
    /// If no member answers, or `root` is refused.
    pub fn admit(&self, host: &HostName, password: &str, has_authority: bool) -> Result<(), StoreError> {
        let address = self.client.address();
        let (user, entries) = (user_of(address, host), format!("{}/k/", address.name));
        let prefix = |kind, prefix: String| Permission {
            kind,
            range_end: Some(Bytes::key(&end_of(&prefix))),
            key: Bytes::key(&prefix),
        };
        let key = |key: String| Permission { kind: READ_WRITE, key: Bytes::key(&key), range_end: None };
        let mut rights = vec![
            prefix(READ, entries.clone()),
            prefix(READ_WRITE, receipts_of(address, Some(&user))),
            prefix(READ_WRITE, format!("{entries}vms/")),
            key(format!("{entries}hosts/{host}")),
            key(format!("{entries}alive/{host}")),
            key(format!("{entries}runs/{host}")),
            prefix(READ_WRITE, format!("{entries}datastores/")),
        ];
        if has_authority {
            rights.extend(["hosts/", "alive/", "tokens/"].map(|kind| prefix(READ_WRITE, format!("{entries}{kind}"))));
            rights.extend(["cluster", "admission"].map(|name| key(format!("{entries}{name}"))));
        }
        self.done("role/add", &Name { name: &user })?;
        for perm in rights {
            self.done("role/grant", &Grant { name: &user, perm })?;
        }
        self.user(&user, password, Instant::now())?;
        self.done("user/grant", &RoleOfUser { user: &user, role: &user })
    }

    /// Takes a host's user and rights away.
    ///
    /// # Errors
    /// If no member answers, or `root` is refused.
    pub fn dismiss(&self, host: &HostName) -> Result<(), StoreError> {
        #[derive(Serialize)]
        struct Role<'a> {
            role: &'a str,
        }
        let user = user_of(self.client.address(), host);
        self.done("user/delete", &Name { name: &user })?;
        self.done("role/delete", &Role { role: &user })
    }

    /// Makes sure that there is a user with this password.
    fn user(&self, name: &str, password: &str, until: Instant) -> Result<(), StoreError> {
        self.done_by(until, "user/add", &User { name, password })?;
        // One that was there before has another one.
        self.done_by(until, "user/changepw", &User { name, password })
    }

    /// Has something done, unless it is as it should be already.
    fn done(&self, what: &str, request: &impl Serialize) -> Result<(), StoreError> {
        self.done_by(Instant::now(), what, request)
    }

    /// The same; an etcd that does not answer is asked again until then.
    fn done_by(&self, until: Instant, what: &str, request: &impl Serialize) -> Result<(), StoreError> {
        let path = format!("/v3/auth/{what}");
        let said = loop {
            match self.client.ask_until_said::<Any>(&path, request) {
                Err(StoreError::Unreachable(_)) if Instant::now() < until => {}
                said => break said?,
            }
        };
        match said {
            Ok(Any) => Ok(()),
            Err(problem) if is_done_already(&problem) => Ok(()),
            Err(problem) => Err(self.client.explain(&problem)),
        }
    }
}

/// What etcd says if there is nothing to do.
fn is_done_already(problem: &Problem) -> bool {
    let text = problem.text();
    ["already exists", "user name not found", "role name not found"].iter().any(|why| text.contains(why))
}
