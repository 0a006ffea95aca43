//! The leases under which hosts run VMs that others may restart.

use std::collections::BTreeSet;
use std::time::Duration;

use spec::HostName;

use super::ClusterError;
use super::cluster::Cluster;
use crate::store::{LeaseId, Op};

/// What is there as long as a host's run lease.
pub(super) const RUN_LEASES: &str = "runs/";

fn run_lease_key(host: &HostName) -> String {
    format!("{RUN_LEASES}{host}")
}

impl Cluster {
    /// Gives a host a run lease that ends after `ttl`. Whatever it had before is worth nothing any more, so it must have ended.
    pub fn take_run_lease(&self, host: &HostName, ttl: Duration) -> Result<LeaseId, ClusterError> {
        let key = run_lease_key(host);
        let lease = self.hosts_store().grant_lease(ttl)?;
        let value = lease.0.to_string();
        self.hosts_store().transact(&[], &[Op::Put { key: &key, value: value.as_bytes(), lease: Some(lease) }])?;
        Ok(lease)
    }

    /// Renews a run lease; whether it was there.
    pub fn renew_run_lease(&self, lease: LeaseId) -> Result<bool, ClusterError> {
        Ok(self.hosts_store().keep_lease(lease)?)
    }

    /// The hosts whose run leases are good.
    pub(super) fn run_leases(&self) -> Result<BTreeSet<HostName>, ClusterError> {
        let entries = self.hosts_store().list(RUN_LEASES)?.entries;
        Ok(entries.iter().filter_map(|(key, _)| key.strip_prefix(RUN_LEASES)?.parse().ok()).collect())
    }
}
