//! The leases under which hosts run VMs that others may restart.

use std::collections::BTreeSet;
use std::time::Duration;

use spec::HostName;

use super::ClusterError;
use super::cluster::Cluster;
use crate::store::{Changes, LeaseId, Op};

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

    /// Waits until a run lease has begun or ended after `since`, up to `timeout`: what it answered before; none for now. Answers that, and whether one has, or may have.
    pub fn wait_for_run_leases(&self, since: Option<u64>, timeout: Duration) -> Result<(u64, bool), ClusterError> {
        let store = self.hosts_store();
        let Some(since) = since else { return Ok((store.list(RUN_LEASES)?.revision, true)) };
        Ok(match store.watch(RUN_LEASES, since, timeout)? {
            Changes::Seen { revision, changes } => (revision, !changes.is_empty()),
            Changes::Compacted => (store.list(RUN_LEASES)?.revision, true),
        })
    }

    /// The hosts whose run leases are good.
    pub(super) fn run_leases(&self) -> Result<BTreeSet<HostName>, ClusterError> {
        let entries = self.hosts_store().list(RUN_LEASES)?.entries;
        Ok(entries.iter().filter_map(|(key, _)| key.strip_prefix(RUN_LEASES)?.parse().ok()).collect())
    }
}
