//! How a host joins a cluster: tokens, and what a new host is given.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Asks for a token with which one host can join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeToken {
    /// The name that the host must have; any if it is not said.
    #[serde(default)]
    pub host: Option<String>,
    /// For how long the token is valid, in seconds.
    pub valid_s: u64,
}

/// A token that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeToken {
    /// The token. It holds a secret.
    pub token: String,
    /// The name that the host must have.
    pub host: Option<String>,
    /// For how long it is valid, in seconds.
    pub valid_s: u64,
}

/// Asks to be a host of the cluster, by a token. Who asks has no certificate yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinCluster {
    /// The token's secret.
    pub secret: String,
    /// The name of the new host.
    pub host: String,
    /// The request for its certificate (PKCS #10), as PEM.
    pub request: String,
}

/// What a new host is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The certificate of the cluster's authority, as PEM.
    pub authority: String,
    /// Its own certificate, as PEM.
    pub certificate: String,
    /// Where the cluster store is.
    pub store: String,
    /// What it needs for etcd, if etcd gives rights to each host.
    #[serde(default)]
    pub etcd: Option<EtcdCredentials>,
}

/// With what a host is let in by etcd.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdCredentials {
    /// The certificate of the authority that signed those of etcd's members, as PEM.
    pub authority: String,
    /// The host's certificate for etcd, for the key that it has asked with, as PEM.
    pub certificate: String,
    /// Its user.
    pub user: String,
    /// The password of that user.
    pub password: String,
}

/// It holds a password: nobody needs to see that.
impl fmt::Debug for EtcdCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}
