use serde::{Deserialize, Serialize};
use spec::HostName;

use super::UnknownFields;

/// A token with which one further host may join. The store knows it by the digest of its secret only, and forgets it when it expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The name of the host that it is for; whatever name the host has if it is not said.
    #[serde(default)]
    pub host: Option<HostName>,
    /// Who has used it.
    #[serde(default)]
    pub used_by: Option<TokenUse>,
    /// The lease in the store with which it goes.
    pub lease: u64,
    /// What a newer version has added.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// How a token was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// The host that joined.
    pub host: HostName,
    /// The digest of its public key: the same host may ask again, as the answer may have got lost.
    pub key_digest: String,
}
