//! The tokens with which hosts join.

use std::time::Duration;

use spec::HostName;

use super::cluster::{ATTEMPTS_MAX, Cluster, read_from};
use super::{ClusterError, TokenRecord, TokenUse, UnknownFields, encode};
use crate::store::{Compare, LeaseId, Op, Outcome, StoreError};

/// Where tokens are, by the digests of their secrets.
pub(super) const TOKENS: &str = "tokens/";

fn token_key(digest: &str) -> String {
    format!("{TOKENS}{digest}")
}

impl Cluster {
    /// Keeps a token for as long as it is valid, which the store counts. `digest` is that of its secret, as hexadecimal digits.
    ///
    /// # Errors
    /// [`ClusterError::TokenUsed`] if there is one with that secret already.
    pub fn add_token(&self, digest: &str, host: Option<HostName>, valid: Duration) -> Result<(), ClusterError> {
        let key = token_key(digest);
        let lease = self.hosts_store().grant_lease(valid)?;
        let token = TokenRecord { host, used_by: None, lease: lease.0, unknown: UnknownFields::default() };
        let value = encode(&key, &token)?;
        let op = Op::Put { key: &key, value: &value, lease: Some(lease) };
        match self.hosts_store().transact(&[Compare { key: &key, version: 0 }], &[op])? {
            Outcome::Done { .. } => Ok(()),
            Outcome::Conflict => Err(ClusterError::TokenUsed),
        }
    }

    /// A token, by the digest of its secret.
    ///
    /// # Errors
    /// [`ClusterError::NoToken`] if there is none, or it has expired.
    pub fn token(&self, digest: &str) -> Result<TokenRecord, ClusterError> {
        Ok(read_from(&**self.hosts_store(), &token_key(digest))?.ok_or(ClusterError::NoToken)?.0)
    }

    /// Uses a token up: of all who try, one succeeds, and may try again.
    ///
    /// # Errors
    /// [`ClusterError::NoToken`] if there is none or it has expired, [`ClusterError::TokenUsed`] if it was used by another one.
    pub fn use_token(&self, digest: &str, by: &TokenUse) -> Result<(), ClusterError> {
        let key = token_key(digest);
        for _ in 0..ATTEMPTS_MAX {
            let read = read_from::<TokenRecord>(&**self.hosts_store(), &key)?;
            let (token, version) = read.ok_or(ClusterError::NoToken)?;
            match &token.used_by {
                Some(used_by) if used_by == by => return Ok(()),
                Some(_) => return Err(ClusterError::TokenUsed),
                None => {}
            }
            let lease = Some(LeaseId(token.lease));
            let value = encode(&key, &TokenRecord { used_by: Some(by.clone()), ..token })?;
            match self
                .hosts_store()
                .transact(&[Compare { key: &key, version }], &[Op::Put { key: &key, value: &value, lease }])
            {
                Ok(Outcome::Done { .. }) => return Ok(()),
                Ok(Outcome::Conflict) => {}
                Err(StoreError::LeaseEnded) => return Err(ClusterError::NoToken),
                Err(error) => return Err(error.into()),
            }
        }
        Err(ClusterError::Contended(key))
    }
}
